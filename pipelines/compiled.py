"""The pipelines and their components as IR YAML, kept in the repository so that they can be uploaded without Python."""

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

from latte.errors import UserError
from pipelines.cluster import Cluster

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


def pipeline(name: str, cluster: Cluster | None = None) -> Any:
    """The pipeline of this name, made of KFP components, for a cluster with these settings; takes seconds."""
    made = getattr(importlib.import_module(f"pipelines.{name}"), name)
    if cluster is None or cluster == Cluster():
        return made
    from kfp import dsl

    from pipelines import parts

    with parts.on(cluster):
        return dsl.pipeline(name=made.name, description=made.description)(made.pipeline_func)


def write_all(folder: Path, cluster: Cluster | None = None) -> list[Path]:
    """Compile everything under `folder`, laid out as in the repository; returns the files written."""
    written = []
    for step, names in COMPONENTS.items():
        module = importlib.import_module(f"components.{step}.component")
        for name in names:
            file = "component.yaml" if len(names) == 1 else f"{name.removeprefix(step + '_')}.yaml"
            written.append(write(getattr(module, name), folder / "components" / step / file))
    return written + [write(pipeline(name, cluster), folder / "pipelines" / f"{name}.yaml") for name in PIPELINES]


def write(component: object, path: Path) -> Path:
    """Compile a component or a pipeline into a YAML file; returns its path.

    Raises:
        UserError: the file cannot be written.
    """
    from kfp import compiler

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            compiler.Compiler().compile(component, str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return path
