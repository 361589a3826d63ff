"""Around every component's step: have its work done, hand the manifest to KFP, fail in one clear line."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components import placement
from components.volcano import launcher
from components.work import Work
from latte import manifest
from latte.errors import LatteError

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
    """Run one function of a step and write what KFP shows of it; in this process, or in a Volcano Job (LATTE_LAUNCH).

    Args:
        task: as in `components.work.Work`, and so are the next six.
        module: see there.
        config_class: see there.
        settings: see there.
        wired: see there.
        function: see there.
        arguments: see there.
        output: KFP artifact that receives the manifest as its content and its summary as metadata.
        metrics: KFP Metrics artifact that receives the numbers of the manifest.

    Returns:
        The manifest. Leaves the process with the error's exit code after one line on a LatteError.
    """
    work = Work(task, module, config_class, settings, wired, function, arguments or {})
    started = time.time()
    _emit(event="started", task=task)
    try:
        launch = placement.launch_of_this_step()
        result = work.run() if launch is None else launcher.run(work, launch)
    except LatteError as error:
        print(f"error: {task}: {error}", file=sys.stderr, flush=True)
        _emit(event="failed", task=task, message=str(error), exit_code=error.exit_code)
        sys.exit(error.exit_code)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        _emit(event="failed", task=task, message=f"{type(error).__name__}: {reason}", exit_code=1, traceback=True)
        raise
    for note in result.config.get("notes", []):
        _emit(event="note", task=task, message=note)
    if output is not None:
        manifest.write(result, output.path)
        output.metadata.update(result.summary())
    if metrics is not None:
        for key, value in result.metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                metrics.log_metric(key, value)
    _emit(event="finished", task=task, seconds=time.time() - started, summary=result.summary())
    return result


def _emit(**event: Any) -> None:
    path = os.environ.get(EVENTS_ENV)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            # One write below the pipe size: lines of parallel tasks do not mix.
            file.write(json.dumps({"time": time.time(), **event}, default=str) + "\n")
