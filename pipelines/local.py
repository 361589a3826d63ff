"""Run the pipeline here: the same components and DAG as on a cluster, through kfp.local, over a real object store.

The steps are processes of this machine, or containers of the image that they run in on a cluster.
"""

import builtins
import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import filelock
import psutil

from components.image import IMAGE
from components.runtime import EVENTS_ENV
from latte import signals, storage
from latte.errors import LatteError, UserError
from pipelines import compiled, console, containers, processes, settings, store, telling, tracking

# In the run's folder: where its data is.
PLACE = "root.json"
PROGRESS_INTERVAL_S = "2"
POLITE_S = 20.0


@dataclass(frozen=True)
class Finished:
    """A run that has come to its end.

    Attributes:
        root: where its data is; out of reach by now if the store was the run's own.
        report: the copy of the report in the run's folder.
        seconds: how long it took.
        events: what its tasks told, in order: "started" and "finished", the latter with the manifest's summary.
    """

    root: str
    report: Path
    seconds: float
    events: tuple[dict[str, Any], ...]

    def summaries(self, kind: str) -> list[dict[str, Any]]:
        """Summaries of the manifests of this kind that the run's tasks made or found."""
        return _summaries(self.events, kind)


def run(
    config: settings.AnyConfig,
    run_dir: Path,
    root: str | None = None,
    port: int | None = None,
    terminal: TextIO | io.TextIOBase | None = None,
    in_containers: bool = False,
) -> Finished:
    """Run a pipeline to its end on this machine, as `latte-pipeline run` and the notebooks do.

    Args:
        config: checked settings; their class says which pipeline.
        run_dir: the run's folder: log, KFP's small artifacts, report.html, and the store's data if it is the run's own.
        root: where the heavy data goes; None starts SeaweedFS inside `run_dir`, unless AWS_ENDPOINT_URL_S3 is set, or
            takes a folder inside `run_dir` where there is no SeaweedFS for this machine.
        port: port of that SeaweedFS; a free one when None.
        terminal: where one line a task and the newest progress go; standard error when None.
        in_containers: run the steps in containers of `components.image.IMAGE`.

    Raises:
        UserError: a bad root or port, a folder in use, no Docker, an image that cannot be had.
        LatteError: a step failed; the error's exit code is the step's.
    """
    run_dir = run_dir.absolute()
    root = storage.root_uri(root) if root is not None else None
    settings.refuse_placeholders("--root", root)
    settings.refuse_placeholders("--run-dir", str(run_dir))
    teller = telling.Teller(config, run_dir)
    with teller.telling():
        return _run(config, run_dir, root, port, terminal or sys.stderr, in_containers, teller)


def _run(
    config: settings.AnyConfig,
    run_dir: Path,
    root: str | None,
    port: int | None,
    terminal: TextIO | io.TextIOBase,
    in_containers: bool,
    teller: telling.Teller,
) -> Finished:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run_dir}: {error.strerror}") from None
    if root is None and os.environ.get("AWS_ENDPOINT_URL_S3"):
        raise UserError("AWS_ENDPOINT_URL_S3 is set: name a bucket there with --root s3://bucket/prefix")
    image = containers.require(IMAGE) if in_containers else None
    with (
        _single_run(run_dir),
        processes.tied_to_this_process(run_dir, in_containers),
        _signals_end_the_run(run_dir, in_containers),
        _root(run_dir, root, config.prefix, port, terminal) as place,
        teller.telling(root),
        tracking.of_run(config.mlflow, config.pipeline, config.name, terminal),
    ):
        storage.check_root(place)
        storage.write_json(str(run_dir / PLACE), {"root": place, "own_store": root is None})
        done = _run_pipeline(config, run_dir, place, terminal, image, teller)
        teller.succeeded(root)
        return done


@contextlib.contextmanager
def reopened(run_dir: Path) -> Iterator[str]:
    """The root of an earlier run, while a `with` block lasts; the run's own store is started for that time.

    Raises:
        UserError: no folder of a run, or the run is at work.
        StorageError: the store does not start.
    """
    run_dir = run_dir.absolute()
    if not is_run(run_dir):
        raise UserError(f"{run_dir}: not the folder of a run")
    recorded = run_dir / PLACE
    place: dict[str, Any] = storage.read_json(str(recorded)) if recorded.exists() else {"own_store": True}
    if not place["own_store"]:
        yield str(place["root"])
        return
    with (
        _single_run(run_dir),
        processes.tied_to_this_process(run_dir),
        store.serve(run_dir / "store") as served,
        _environment(served.environment),
    ):
        yield str(place.get("root") or _only_root(run_dir))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / PLACE).is_file() or (folder / "store" / "weed.log").is_file()


def _only_root(run_dir: Path) -> str:
    """Root in the store of a run that has not written it down."""
    bucket = f"s3://{store.BUCKET}"
    found = sorted({uri.split("/")[3] for uri in storage.list_uris(bucket)})
    if len(found) != 1:
        raise UserError(f"{run_dir}: its store holds {', '.join(found) or 'nothing'}; run the pipeline there again")
    return storage.join(bucket, found[0])


def _run_pipeline(
    config: settings.AnyConfig,
    run_dir: Path,
    root: str,
    terminal: TextIO | io.TextIOBase,
    image: str | None,
    teller: telling.Teller,
) -> Finished:
    # KFP is slow to import, and a wrong setting or secret should be told at once.
    from kfp import local

    pipeline = compiled.here(config.pipeline, settings.fanned_out(config))
    events = run_dir / "events.jsonl"
    events.unlink(missing_ok=True)
    started = time.monotonic()
    with (run_dir / "run.log").open("w", encoding="utf-8") as log_file:
        log = console.RunLog(log_file, terminal)
        log.say(f"latte-pipeline: {config.name} into {root}; log {run_dir / 'run.log'}")
        for remark in settings.remarks(config):
            log.say(remark)
        if image is not None:
            log.say(f"steps in containers of {image}")
        watcher = console.EventWatcher(events, log)
        teller.events = watcher.events
        watcher.start()
        environment = {EVENTS_ENV: str(events), "LATTE_PROGRESS_INTERVAL_S": PROGRESS_INTERVAL_S}
        if image is None:
            runner = local.SubprocessRunner(use_venv=False)
        else:
            runner = _docker_runner(config, run_dir, root, events, environment)
        local.init(runner, pipeline_root=str(run_dir / "kfp"), raise_on_error=True)
        failure: Exception | None = None
        try:
            with (
                _environment(environment),
                contextlib.redirect_stdout(log),
                _print_restored(),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                logging.captureWarnings(False)
                pipeline(**settings.parameters(config, root))
        except Exception as error:
            failure = error
        finally:
            watcher.stop()
        # What the steps told comes first: KFP may go on after one that failed, and trip over what is missing.
        _check_that_all_finished(watcher.events, run_dir)
        if isinstance(failure, RuntimeError):
            raise LatteError(f"{failure}; its traceback is in {run_dir / 'run.log'}") from None
        if failure is not None:
            raise failure
        _check_the_result(watcher.events, run_dir)
    report = _copy_report(run_dir, watcher.events)
    return Finished(root, report, time.monotonic() - started, tuple(watcher.events))


def _docker_runner(
    config: settings.AnyConfig, run_dir: Path, root: str, events: Path, environment: dict[str, str]
) -> Any:
    artifacts, cache = run_dir / "kfp", run_dir / "cache"
    for folder in (artifacts, cache):
        folder.mkdir(exist_ok=True)
    events.touch()
    for path in (artifacts, cache, events):
        containers.give(path)
    writes = [events, cache]  # KFP itself mounts the artifacts' folder
    environment |= tracking.variables()
    environment = {**environment, "XDG_CACHE_HOME": str(cache)}  # MindSpore's kernels, from one container to the next
    if (place := storage.path(root)) is not None:
        writes.append(place)
    return containers.runner(run_dir, settings.local_folders(config), writes, environment)


def _check_that_all_finished(events: list[dict[str, Any]], run_dir: Path) -> None:
    """Raise the error of the first task that did not finish."""
    failed = telling.first_failure(events, run_dir / "run.log")
    if failed is None:
        return
    kind = UserError if failed.exit_code == UserError.exit_code else LatteError
    where = f"; its traceback is in {run_dir / 'run.log'}" if failed.traceback else ""
    raise kind(f"{failed.task}: {failed.message}{where}")


def _check_the_result(events: list[dict[str, Any]], run_dir: Path) -> None:
    if not _summaries(events, "report"):
        raise LatteError(f"no report was made; see {run_dir / 'run.log'}")


def _summaries(events: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    summaries = [event["summary"] for event in events if event["event"] == "finished"]
    return [summary for summary in summaries if summary["kind"] == kind]


def _copy_report(run_dir: Path, events: list[dict[str, Any]]) -> Path:
    made = _summaries(events, "report")
    return storage.download(storage.join(made[-1]["uri"], "report.html"), run_dir / "report.html")


@contextlib.contextmanager
def _single_run(run_dir: Path) -> Iterator[None]:
    try:
        with filelock.FileLock(run_dir / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(
            f"{run_dir}: another run is using this folder; wait for it or name another with --run-dir"
        ) from None


@contextlib.contextmanager
def _root(
    run_dir: Path, root: str | None, prefix: str, port: int | None, terminal: TextIO | io.TextIOBase
) -> Iterator[str]:
    if root is not None:
        yield root
        return
    if port is None and not store.available():
        folder = run_dir / "root" / prefix
        print(f"no SeaweedFS for this machine (`weed` not found): the folder {folder} is the store", file=terminal)
        yield folder.as_uri()
        return
    with store.serve(run_dir / "store", port) as served, _environment(served.environment):
        yield f"s3://{store.BUCKET}/{prefix}"


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _print_restored() -> Iterator[None]:
    """kfp.local indents print() while a task runs; after parallel tasks it may restore another task's."""
    before = builtins.print
    try:
        yield
    finally:
        builtins.print = before


@contextlib.contextmanager
def _signals_end_the_run(run_dir: Path, in_containers: bool) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the steps to stop (training saves its state), then end the run; the store goes last."""

    def stop(*_: object) -> None:
        signals.ignore()
        sys.stderr.write("\nstopping …\n")
        if in_containers:
            containers.end(run_dir, grace_s=POLITE_S)
        processes.end(run_dir, grace_s=POLITE_S, keep=frozenset(_store_members(run_dir)))
        raise KeyboardInterrupt

    with signals.handled_by(stop):
        yield


def _store_members(run_dir: Path) -> list[int]:
    """The store must live until the steps have saved what they can: its session is led by the `weed` process."""
    return [pid for pid in processes.members(run_dir) if _program(pid) == "weed"]


def _program(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).name()
    return ""
