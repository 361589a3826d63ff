"""Functions that notebooks call: run a pipeline here or on a cluster, and look at what it made.

where = None  # this machine; or Client(host="https://kubeflow.example.com/pipeline")
done = notebook.run("train_and_evaluate", params, where)
done.table()  # the last line of a cell shows it
"""

import base64
import html
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from latte import storage
from latte.errors import LatteError, UserError
from latte.facts import ScoreFacts, ScoreMetrics, VideoSetFacts
from latte.metrics.names import metric_of
from latte.storage import manifest, registry
from pipelines import installation, local, run_status, settings
from pipelines.client import Client
from pipelines.status import HEADS, SUCCEEDED, Status, TaskStatus

POLL_S = 10.0
REPOSITORY = Path(__file__).resolve().parents[1]
# Where manifests of each kind lie under the root.
_FOLDERS = {"report": "reports", "video_set": "videos", "score": "scores"}


@dataclass(frozen=True)
class Html:
    """Something that a notebook shows when it is the last line of a cell."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


@dataclass
class _Cell(io.TextIOBase):
    """The output of a cell: it overwrites a line after a carriage return, as a terminal does, but does not say so."""

    stream: TextIO

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


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

    def table(self) -> Html:
        """The tasks, their states and how long they took."""
        return table(HEADS, [task.row() for task in self.tasks])

    def report(self, height: int = 720) -> Html:
        """The report, as in a browser; `height` in pixels."""
        page = storage.read_bytes(self.one("report").shard("/report.html").uri).decode()
        # It has no scripts; the sandbox keeps it apart from the notebook all the same.
        frame = f'<iframe sandbox="" width="100%" height="{height}" style="border:0"'
        return Html(f'{frame} srcdoc="{html.escape(page)}"></iframe>')

    def contact_sheet(self) -> Html:
        """One still picture of the generated videos."""
        videos = self.one("video_set")
        picture = base64.b64encode(storage.read_bytes(videos.shard("/contact-sheet.png").uri)).decode()
        label = html.escape(f"{videos.counts['videos']} videos of the set {videos.name}")
        return Html(f'<img alt="{label}" title="{label}" style="max-width:100%" src="data:image/png;base64,{picture}">')


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
    if where is not None:
        return _run_there(pipeline, params, where)
    config = settings.check(settings.PIPELINES[pipeline], params, "params")
    done = local.run(config, run_dir or Path("runs") / config.name, config.root, terminal=_Cell(sys.stdout))
    ended = [event for event in done.events if event["event"] == "finished"]
    tasks = tuple(TaskStatus(event["task"], SUCCEEDED, event["seconds"]) for event in ended)
    places = [summary["uri"] for kind in _FOLDERS for summary in done.summaries(kind)]
    return Run(config.name, tasks, tuple(manifest.read(uri) for uri in places))


def _run_there(pipeline: str, params: Mapping[str, Any], client: Client) -> Run:
    if remark := installation.remark(client):
        print(remark, flush=True)
    sent = client.submit(pipeline, params)
    print(f"{sent.name}: {sent.url}", flush=True)
    status = _followed(client, sent.run_id)
    if status.state != SUCCEEDED:
        raise LatteError(f"run {status.name}: {status.failure}; latte-pipeline logs {sent.run_id} tells more")
    labels = ["trained", "untrained"] if pipeline == "train_and_evaluate" else [params["name"]]
    count = 2 if pipeline == "nightly_retrain" else 1  # "after" and "before" are under one name
    manifests = newest(params["root"], "report", params["name"])
    for label in labels:
        for kind in ("video_set", "score"):
            manifests += newest(params["root"], kind, label, count)
    return Run(status.name, status.tasks, tuple(manifests))


def _followed(client: Client, run_id: str) -> Status:
    """The run's last status; what changes until then is printed."""
    before = None
    for status in run_status.watch(client, run_id, POLL_S, lambda line: print(line, flush=True)):
        for line in run_status.changes(before, status):
            print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
        before = status
    if before is None:
        raise LatteError(f"run {run_id}: no status")
    return before


def newest(root: str, kind: manifest.Kind, name: str, count: int = 1) -> list[manifest.Manifest]:
    """The manifests of this kind and name that were written last, at most `count`, newest first."""
    folder = storage.join(root, _FOLDERS[kind], name)
    listed = storage.list_objects(folder)
    manifests = [uri for uri in listed if uri.removeprefix(folder).count("/") == 2 and uri.endswith("/manifest.json")]
    manifests.sort(key=lambda uri: listed[uri].modified_s, reverse=True)
    return [manifest.read(uri, kind) for uri in manifests[:count]]


def scores(*runs: Run) -> Html:
    """The scores of runs side by side; only values with the same protocol compare."""
    rows = []
    for score in (each for run in runs for each in run.manifests if each.kind == "score"):
        name = metric_of(score)
        beside, facts = ScoreMetrics.of(score), ScoreFacts.of(score)
        numbers = (score.metrics[name], beside.interval_low, beside.interval_high)
        value, low, high = (f"{number:.1f}" for number in numbers)
        clips, protocol = str(beside.clips), facts.protocol_digest[:8]
        step = VideoSetFacts.of(manifest.read(facts.videos)).step
        trained = "converted weights" if step is None else str(step)
        rows.append((score.name, trained, name, value, f"{low} … {high}", clips, protocol))
    heads = ("set", "training step", "score", "value (lower is better)", "interval", "clips", "protocol")
    return table(heads, sorted(rows))


def promotions(root: str, model: str) -> Html:
    """Every promotion of a model, the one in force last."""
    current, _ = registry.read_current(root, model)
    entries = [*registry.history(root, model), *([current] if current is not None else [])]
    rows = []
    for entry in entries:
        state = "in force" if entry == current else ""
        value = f"{entry.value:.1f}"
        rows.append((str(entry.number), entry.promoted_at, str(entry.step), entry.metric, value, state))
    return table(("entry", "promoted (UTC)", "step", "score", "value", ""), rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table of plain text."""
    head = "".join(f"<th style='text-align:left'>{html.escape(text)}</th>" for text in heads)
    lines = ["".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row) for row in rows]
    return Html(f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
