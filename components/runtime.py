"""Around every component's step: have its work done, hand the manifest to KFP, fail in one clear line."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from components import placement, tries
from components.tries import RUN_ENV
from components.volcano import launcher
from components.work import Work
from latte import machine_errors, storage, tracking
from latte.errors import LatteError
from latte.facts import Notes, RunMetrics
from latte.steps import tell
from latte.storage import manifest
from latte.terminal import shown

T = TypeVar("T")
# `latte-pipeline run` sets it and reads the events; on a cluster the UI tells the same.
EVENTS_ENV = "LATTE_RUN_EVENTS"


def run_step(
    task: str,
    step: str,
    settings: Mapping[str, Any],
    wired: Mapping[str, Any],
    function: str = "run",
    arguments: Mapping[str, Any] | None = None,
    output: Any = None,
    metrics: Any = None,
    here: bool = False,
) -> manifest.Manifest:
    """Run one function of a step and write what KFP shows of it; in this process, or in a Volcano Job (LATTE_LAUNCH).

    On a cluster the process that KFP starts has another one do it, which it starts anew where it fails
    (`components.tries`), and leaves with its exit code: what the other has written is the task's output.

    Args:
        task: name of the task in messages.
        step: name in `latte.steps.STEPS`.
        settings: keys of the step's config as the user gave them.
        wired: keys that the pipeline fills in; `settings` must not set them.
        function: what to call in the step's module.
        arguments: its arguments after the config.
        output: KFP artifact that receives the manifest as its content and its summary as metadata.
        metrics: KFP Metrics artifact that receives the numbers of the manifest.
        here: in this process, even where a Volcano Job does the other work of the task.

    Returns:
        The manifest. Leaves the process with the error's exit code after one line on a LatteError.
    """
    tried_again(task, str(wired["root"]))
    work = Work(task, step, settings, wired, function, arguments or {})
    with tracking.of_task(task) as tracker:
        result = _run(work, output, metrics, here)
        if tracker is not None:
            _track(tracker, work, result)
    return result


def _run(work: Work, output: Any, metrics: Any, here: bool) -> manifest.Manifest:
    task, started = work.task, time.time()
    _emit(event="started", task=task)
    try:
        launch = None if here else placement.launch_of_this_step()
        result = work.run() if launch is None else launcher.run(work, launch)
    except LatteError as error:
        _fail(task, error)
    except Exception as error:
        of_the_machine = machine_errors.explained(error)
        if of_the_machine is not None:
            _fail(task, of_the_machine)
        reason = str(error).partition("\n")[0]
        _emit(event="failed", task=task, message=f"{type(error).__name__}: {reason}", exit_code=1, traceback=True)
        raise
    for note in Notes.of(result).notes:
        _emit(event="note", task=task, message=note)
    if result.kind in tell.RESULTS and os.environ.get(RUN_ENV):
        try:
            tell.leave_result(str(work.wired["root"]), os.environ[RUN_ENV], result)
        except LatteError as error:
            _fail(task, error)
    if output is not None:
        manifest.write(result, output.path)
        output.metadata.update(result.summary())
    if metrics is not None:
        for key, value in result.metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                metrics.log_metric(key, value)
    _emit(event="finished", task=task, seconds=time.time() - started, summary=result.summary())
    return result


def _track(tracker: tracking.Tracker, work: Work, result: manifest.Manifest) -> None:
    """Tell MLflow the settings of the step, the numbers of its manifest and the curve of training."""
    own = work.config().model_dump(exclude=set(work.wired))
    texts = {key: value for key, value in result.metrics.items() if isinstance(value, str) and not key.endswith("_uri")}
    tags = {"kind": result.kind, "name": result.name, "uri": result.uri, "fingerprint": result.fingerprint, **texts}
    tracker.batch(
        params=dict(tracking.flat(own, f"{work.step}.")),
        metrics={**tracking.numbers(result.metrics), **{f"count/{key}": count for key, count in result.counts.items()}},
        tags={f"latte.{key}": value for key, value in tags.items() if value},
    )
    if work.step == "train" and (uri := RunMetrics.of(result).metrics_uri):
        try:
            tracker.curve(storage.read_bytes(uri).decode().splitlines())
        except LatteError as error:
            print(f"MLflow: no curve: {shown(error)}", file=sys.stderr, flush=True)


def handed_on(task: str, root: str, made: manifest.Manifest) -> str:
    """URI of a copy of a manifest, which later tasks are given: named by its content, beside the manifest's own.

    Whatever becomes of the place meanwhile, a larger set or a longer run, the later tasks go by what this run made. A
    manifest that lies under another root is named itself.
    """
    if not made.uri.startswith(root.rstrip("/") + "/"):
        return made.file
    uri = storage.join(made.uri, "handed-on", f"{manifest.fingerprint(made)[:16]}.json")

    def keep() -> str:
        with contextlib.suppress(LatteError):  # not there, or damaged
            if manifest.read(uri) == made:
                return uri
        manifest.write(made, uri, root)
        return uri

    return guarded(task, keep)


def tried_again(task: str, root: str) -> None:
    """Have all of this task done by another process, started anew where it fails, and leave with its exit code.

    Returns at once in that process, and where nothing is tried again: on one machine.

    Args:
        task: name of the task in messages.
        root: that its last word goes under.
    """
    retry = guarded(task, tries.of_this_step)
    if retry is not None:
        sys.exit(tries.supervise(task, root, retry, EVENTS_ENV))


def guarded(task: str, call: Callable[[], T]) -> T:
    """The result of `call`; a LatteError of it is one line, and ends the process with the error's exit code."""
    try:
        return call()
    except LatteError as error:
        _fail(task, error)


def _fail(task: str, error: LatteError) -> NoReturn:
    print(f"error: {task}: {shown(error)}", file=sys.stderr, flush=True)
    _emit(event="failed", task=task, message=str(error), exit_code=error.exit_code)
    sys.exit(error.exit_code)


def _emit(**event: Any) -> None:
    path = os.environ.get(EVENTS_ENV)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            # One write below the pipe size: lines of parallel tasks do not mix.
            file.write(json.dumps({"time": time.time(), **event}, default=str) + "\n")
