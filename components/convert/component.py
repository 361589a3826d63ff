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

    run_step(f"convert {name}", "convert", "ConvertConfig", settings, {"root": root, "name": name}, output=weights)
