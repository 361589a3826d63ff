"""Convert: published (or seeded random) weights become checked weights under the root."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def convert(root: str, name: str, settings: dict, weights: dsl.Output[dsl.Model]) -> None:
    """Convert published weights, checked strictly, into `weights/<name>/` under the root.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the weights, for example "vae".
        settings: Keys of latte.steps.convert.ConvertConfig: kind, source, …
        weights: Manifest of the converted weights.
    """
    from components.runtime import run_step

    run_step(f"convert {name}", "convert", settings, {"root": root, "name": name}, output=weights)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def convert_pretrained(root: str, settings: dict) -> str:
    """Convert the Latte weights that training starts from.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        settings: Keys of latte.steps.convert.ConvertConfig; empty where training starts from fresh weights.

    Returns:
        URI of the weights' manifest, or nothing where there are no settings.
    """
    from components.runtime import run_step

    if not settings:
        return ""
    wired = {"root": root, "name": "pretrained"}
    return run_step("convert pretrained", "convert", settings, wired).file
