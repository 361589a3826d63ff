"""The pipelines and their components as IR YAML, kept in the repository so that they can be uploaded without Python."""

import ast
import contextlib
import importlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from latte.errors import UserError
from latte.steps import STEPS
from pipelines.cluster import FANNED_OUT, Cluster

PIPELINES = ("train_and_evaluate", "nightly_retrain", "bulk_sample")


def pipeline(name: str, cluster: Cluster | None = None, fanned_out: Collection[str] = FANNED_OUT) -> Any:
    """The pipeline of this name, made of KFP components; takes seconds.

    Args:
        name: one of PIPELINES, or hello.
        cluster: with what the steps run.
        fanned_out: steps with a loop over several tasks, see `settings.fanned_out`; all of them do for any settings.
    """
    pipeline = getattr(importlib.import_module(f"pipelines.{name}"), name)
    if cluster in (None, Cluster()) and set(fanned_out) == set(FANNED_OUT):
        return pipeline
    from pipelines import parts

    with parts.on(cluster or Cluster(), fanned_out):
        return _again(pipeline)


def here(name: str, fanned_out: Collection[str] = FANNED_OUT) -> Any:
    """The pipeline of this name for this machine: without what only a cluster does, retries and the exit task."""
    from pipelines import parts

    with parts.here(), parts.on(Cluster(), fanned_out):
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
    from kfp.dsl.graph_component import GraphComponent

    if isinstance(component, GraphComponent):
        _without_docs(component.pipeline_spec)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            compiler.Compiler().compile(component, str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return path


def _without_docs(spec: Any) -> None:
    """Leave out of a pipeline what its components say of themselves: a run's nodes hold it eight times for each task.

    The components' own YAML has it; of the pipeline's inputs it stays, for KFP's form.
    """
    for component in spec.components.values():
        for definitions in (component.input_definitions, component.output_definitions):
            for each in (*definitions.parameters.values(), *definitions.artifacts.values()):
                each.ClearField("description")
    for executor in spec.deployment_spec["executors"].values():
        command = executor["container"]["command"]
        for number, word in enumerate(command):
            # KFP's own program in sh is indented within its lines.
            command[number] = _without_docstring(word) if "\ndef " in word else re.sub(" +", " ", word)


def _without_docstring(source: str) -> str:
    module = ast.parse(source)
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(module)
