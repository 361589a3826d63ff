"""Weights of a pipeline, converted one after the other."""

from typing import Any

from components.runtime import run_step


def convert_all(
    root: str, vae: dict[str, Any], detector: dict[str, Any], pretrained: dict[str, Any]
) -> tuple[str, str, str]:
    """URIs of the manifests of the weights, each in a place named by its content; "" for what has no settings."""
    made = []
    for name, settings in (("vae", vae), ("i3d", detector), ("pretrained", pretrained)):
        wired = {"root": root, "name": name}
        # In the pod itself: no accelerator is of use to it.
        made.append(run_step(f"convert {name}", "convert", settings, wired, here=True).file if settings else "")
    return made[0], made[1], made[2]
