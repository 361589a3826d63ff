"""The pipeline and its components as IR YAML, kept in the repository so that they can be uploaded without Python."""

import contextlib
import importlib
import os
from pathlib import Path

from kfp import compiler

COMPONENTS = {
    "convert": ("convert",),
    "encode": ("encode_plan", "encode_shards", "encode_merge"),
    "train": ("train",),
    "sample": ("sample_plan", "sample_shards", "sample_merge"),
    "score": ("score",),
    "report": ("report",),
}


def write_all(folder: Path) -> list[Path]:
    """Compile everything under `folder`, laid out as in the repository; returns the files written."""
    written = []
    for step, names in COMPONENTS.items():
        module = importlib.import_module(f"components.{step}.component")
        for name in names:
            file = "component.yaml" if len(names) == 1 else f"{name.removeprefix(step + '_')}.yaml"
            written.append(_write(getattr(module, name), folder / "components" / step / file))
    pipeline = importlib.import_module("pipelines.train_and_evaluate").train_and_evaluate
    written.append(_write(pipeline, folder / "pipelines" / "train_and_evaluate.yaml"))
    return written


def _write(component: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        compiler.Compiler().compile(component, str(path))
    return path
