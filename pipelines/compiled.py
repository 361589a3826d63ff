"""The pipelines and their components as IR YAML, kept in the repository so that they can be uploaded without Python."""

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

COMPONENTS = {
    "convert": ("convert",),
    "encode": ("encode_plan", "encode_shards", "encode_merge"),
    "train": ("train",),
    "sample": ("sample_plan", "sample_shards", "sample_merge"),
    "score": ("score",),
    "promote": ("promote", "promote_start", "promote_checkpoint"),
    "report": ("report",),
}
PIPELINES = ("train_and_evaluate", "nightly_retrain", "bulk_sample")


def pipeline(name: str) -> Any:
    """The pipeline function of this name, made of KFP components; importing it takes seconds."""
    return getattr(importlib.import_module(f"pipelines.{name}"), name)


def write_all(folder: Path) -> list[Path]:
    """Compile everything under `folder`, laid out as in the repository; returns the files written."""
    written = []
    for step, names in COMPONENTS.items():
        module = importlib.import_module(f"components.{step}.component")
        for name in names:
            file = "component.yaml" if len(names) == 1 else f"{name.removeprefix(step + '_')}.yaml"
            written.append(write(getattr(module, name), folder / "components" / step / file))
    return written + [write(pipeline(name), folder / "pipelines" / f"{name}.yaml") for name in PIPELINES]


def write(component: object, path: Path) -> Path:
    """Compile a component or a pipeline into a YAML file; returns its path."""
    from kfp import compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        compiler.Compiler().compile(component, str(path))
    return path
