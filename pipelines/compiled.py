"""The pipelines and their components as IR YAML, kept in the repository so that they can be uploaded without Python."""

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

from latte.errors import UserError
from latte.steps import STEPS
from pipelines.cluster import Cluster

PIPELINES = ("train_and_evaluate", "nightly_retrain", "bulk_sample")


def pipeline(name: str, cluster: Cluster | None = None) -> Any:
    """The pipeline of this name, made of KFP components, for a cluster with these settings; takes seconds."""
    pipeline = getattr(importlib.import_module(f"pipelines.{name}"), name)
    if cluster is None or cluster == Cluster():
        return pipeline
    from pipelines import parts

    with parts.on(cluster):
        return _again(pipeline)


def here(name: str) -> Any:
    """The pipeline of this name for this machine: without what only a cluster does, retries and the exit task."""
    from pipelines import parts

    with parts.here():
        return _again(pipeline(name))


def _again(pipeline: Any) -> Any:
    from kfp import dsl

    return dsl.pipeline(name=pipeline.name, description=pipeline.description)(pipeline.pipeline_func)


def write_all(folder: Path, cluster: Cluster | None = None) -> list[Path]:
    """Compile everything under `folder`, laid out as in the repository; returns the files written."""
    written = [path for step in STEPS for path in write_components(step, folder)]
    return written + [write(pipeline(name, cluster), folder / "pipelines" / f"{name}.yaml") for name in PIPELINES]


def write_components(step: str, folder: Path) -> list[Path]:
    """Compile the components of one step under `folder`; returns the files written."""
    names = STEPS[step].components
    written = []
    for name in names:
        module = importlib.import_module(f"components.{step}.component")
        file = "component.yaml" if len(names) == 1 else f"{name.removeprefix(step + '_')}.yaml"
        written.append(write(getattr(module, name), folder / "components" / step / file))
    return written


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
