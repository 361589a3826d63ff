"""Around every component's step: build the config, run it, hand the manifest to KFP, fail in one clear line."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latte import manifest
from latte.config import Config, build
from latte.errors import LatteError, UserError

# `latte-pipeline run` sets it and reads the events; on a cluster the UI tells the same.
EVENTS_ENV = "LATTE_RUN_EVENTS"


def run_step(
    task: str,
    module: str,
    config_class: str,
    settings: Mapping[str, Any],
    wired: Mapping[str, Any],
    function: str = "run",
    arguments: Mapping[str, Any] | None = None,
    output: Any = None,
    metrics: Any = None,
) -> manifest.Manifest:
    """Run one function of a step inside a component and write what KFP shows of it.

    Args:
        task: the task's name in messages and in the time table, for example "sample (untrained)".
        module: module under `latte.steps`.
        config_class: name of the config class in that module.
        settings: the pipeline's parameter for this step, as the user wrote it.
        wired: keys that the pipeline fills in (root, name, manifests); `settings` must not set them.
        function: what to call in the module: `function(config, **arguments) -> Manifest`.
        arguments: further arguments, for example the task number of a fan-out.
        output: KFP artifact that receives the manifest as its content and its summary as metadata.
        metrics: KFP Metrics artifact that receives the numbers of the manifest.

    Returns:
        The manifest. Leaves the process with the error's exit code after one line on a LatteError.
    """
    started = time.time()
    _emit(event="started", task=task)
    try:
        config = build_config(module, config_class, settings, wired, source=task)
        step: Callable[..., manifest.Manifest] = getattr(importlib.import_module(f"latte.steps.{module}"), function)
        result = step(config, **(arguments or {}))
    except LatteError as error:
        print(f"error: {task}: {error}", file=sys.stderr, flush=True)
        _emit(event="failed", task=task, message=str(error), exit_code=error.exit_code)
        sys.exit(error.exit_code)
    if output is not None:
        manifest.write(result, output.path)
        output.metadata.update(result.summary())
    if metrics is not None:
        for key, value in result.metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                metrics.log_metric(key, value)
    _emit(event="finished", task=task, seconds=time.time() - started, summary=result.summary())
    return result


def build_config(
    module: str, config_class: str, settings: Mapping[str, Any], wired: Mapping[str, Any], source: str
) -> Config:
    """The step's config from the user's settings and the pipeline's own keys.

    Raises:
        UserError: the settings set a key of the pipeline's, or a key is unknown or bad.
    """
    own = sorted(set(settings) & set(wired))
    if own:
        raise UserError(f"{source}: {own[0]} is filled in by the pipeline; leave it out")
    cls: type[Config] = getattr(importlib.import_module(f"latte.steps.{module}"), config_class)
    return build(cls, {**settings, **wired}, source)


def _emit(**event: Any) -> None:
    path = os.environ.get(EVENTS_ENV)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            # One write below the pipe size: lines of parallel tasks do not mix.
            file.write(json.dumps({"time": time.time(), **event}, default=str) + "\n")
