"""Convert: published (or seeded random) weights become checked weights under the root."""

from typing import NamedTuple

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
def convert_all(
    root: str,
    vae: dict,
    detector: dict,
    pretrained: dict,
) -> NamedTuple("Made", [("vae", str), ("i3d", str), ("pretrained", str)]):  # type: ignore[valid-type]
    """Convert all weights of a pipeline, each checked strictly, into `weights/` under the root.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        vae: Keys of latte.steps.convert.ConvertConfig for the autoencoder.
        detector: The same for the detector that scores.
        pretrained: The same for the Latte that training starts from; empty where it starts from fresh weights.

    Returns:
        URIs of the manifests of the weights, each named by its content; nothing for what has no settings.
    """
    from components.convert.wiring import convert_all

    return convert_all(root, vae, detector, pretrained)
