"""The report step: one self-contained HTML page that shows a whole run to a person who has read nothing else.

The page loads nothing from anywhere: clips are strips of frames in data URIs that CSS moves, the loss curve is inline
SVG, there is no script, and a content security policy forbids all three. Whatever comes from names of files, classes or
runs is escaped.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from latte import __version__, owners, storage, units, uris
from latte.config import Config, Root
from latte.errors import UserError
from latte.facts import LatentsFacts, ReportFacts, RunFacts, ScoreFacts, VideoSetFacts
from latte.metrics import names
from latte.places import Place
from latte.report import nights, sections, words
from latte.report.words import SetLabel
from latte.sampling.sources import read_checkpoint
from latte.storage import manifest

if TYPE_CHECKING:
    from latte.data.latents import LatentClips
    from latte.report.grid import Strip

TEMPLATE = Path(words.__file__).with_name("report.html")


class ReportConfig(Config):
    """Settings of a report."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the report; it lies under reports/<name>/")
    about: Literal["training", "night", "set"] = Field(
        default="training",
        description="what the page tells first: what training changed, what the gate decided, or a set of clips",
    )
    latents: str = Field(description="manifest of the encoded dataset (file or URI)")
    vae: str = Field(description="manifest of the autoencoder's weights; decodes the reconstructions")
    checkpoint: str = Field(description="manifest of the training run; of a set also of converted Latte weights")
    video_sets: list[str] = Field(
        min_length=1, max_length=4, description="manifests of the generated sets, one column each"
    )
    scores: list[str] = Field(default=[], description="manifests of the scores of these sets")
    promotion: str | None = Field(default=None, description="manifest of the gate's decision, for a night")
    nights: int = Field(default=14, ge=0, le=100, description="nights or sets in the trend, this one included")
    timings: dict[str, float] = Field(default={}, description="seconds by the clock, by step, for the table of times")
    clips_per_class: int = Field(default=2, gt=0, description="rows of the moving grid for each class")
    max_rows: int = Field(default=12, gt=0, description="rows of the moving grid in all")
    output: str | None = Field(default=None, description="also write the page to this file or URI")

    @model_validator(mode="after")
    def _fits(self) -> "ReportConfig":
        if (self.promotion is not None) != (self.about == "night"):
            raise ValueError("about=night and promotion go together: the decision of that night's gate")
        if self.about == "set" and len(self.video_sets) > 1:
            raise ValueError("about=set takes one of video_sets")
        return self


# `timings` is told anew by every run; a page that is there keeps those of the run that did the work. So it does with
# the trend: it has the nights before its own.
_IN_FINGERPRINT = {"about", "nights", "clips_per_class", "max_rows"}


@dataclass(frozen=True)
class _Told:
    """All that a page tells of, read and held against each other.

    Attributes:
        latents: the dataset.
        vae: that encoded it.
        checkpoint: a training run, or converted weights.
        sets: the generated clips, in the order of their columns.
        pairs: each score with the index of its set.
        decided: the gate's decision.
    """

    latents: manifest.Manifest
    vae: manifest.Manifest
    checkpoint: manifest.Manifest
    sets: list[manifest.Manifest]
    pairs: list[tuple[manifest.Manifest, int]]
    decided: nights.Decision | None

    @property
    def sources(self) -> list[manifest.Manifest]:
        """Every manifest that the page is made from."""
        decision = [] if self.decided is None else [self.decided.made]
        return [self.latents, self.vae, self.checkpoint, *self.sets, *(score for score, _ in self.pairs), *decision]


def run(config: ReportConfig) -> manifest.Manifest:
    """Write the page and return the manifest of it.

    Raises:
        UserError: the manifests do not belong together, or a setting does not fit them.
        StorageError: object storage stayed away for too long, or stored data is damaged.
    """
    told = _read(config)
    fingerprint = manifest.fingerprint(
        "report",
        config.model_dump(include=_IN_FINGERPRINT),
        [[source.fingerprint, _numbers(source), source.counts] for source in told.sources],
        storage.sha256_file(TEMPLATE),
        __version__,
    )
    place = Place.under("report", fingerprint, config.root, "reports", config.name)
    done = place.found or _make(config, place, told)
    if config.output is not None:
        page = done.shard("/report.html")
        with storage.as_local_file(page.uri, page.sha256) as path:
            storage.upload(path, config.output)
    return done


def _read(config: ReportConfig) -> _Told:
    latents = manifest.read(config.latents, "latents", "latents")
    vae = manifest.read_weights(config.vae, "vae", "vae")
    if config.about == "set":
        checkpoint = read_checkpoint(config.checkpoint)
    else:
        checkpoint = manifest.read(config.checkpoint, "checkpoint", "checkpoint")
    sets = [manifest.read(uri, "video_set", "video_sets") for uri in config.video_sets]
    for uri, videos in zip(config.video_sets, sets, strict=True):
        if VideoSetFacts.of(videos).step is None and config.about != "set":
            raise UserError(f"video_sets {uri}: generated with published weights, not by a checkpoint of this run")
    decided = None
    if config.promotion is None:
        sets.sort(key=lambda videos: -(VideoSetFacts.of(videos).step or 0))
    else:
        decision = manifest.read(config.promotion, "promotion", "promotion")
        decided = nights.decision(config.root, decision)
        sets.sort(key=lambda videos: videos.inputs.get("weights") != decision.inputs.get("weights"))
    if latents.inputs["vae"] != vae.weights_file().sha256:
        raise UserError(f"vae {config.vae}: the latents of {latents.name} were made by another autoencoder")
    scores = [manifest.read(uri, "score", "scores") for uri in config.scores]
    return _Told(latents, vae, checkpoint, sets, pair_scores(scores, sets), decided)


def _labels(config: ReportConfig, told: _Told, made_at: str) -> list[SetLabel]:
    finetuned = bool(RunFacts.of(told.checkpoint).train.init_from)
    if told.decided is not None:
        return nights.labels(told.sets, told.decided, made_at, finetuned)
    if config.about == "set":
        return [nights.label_of_set(config.root, told.sets[0], told.checkpoint)]
    return words.set_labels(told.sets, finetuned)


def _verdict(config: ReportConfig, told: _Told, labels: Sequence[SetLabel], board: Any) -> dict[str, str]:
    if told.decided is not None:
        return nights.verdict(told.decided)
    if config.about == "set":
        return nights.verdict_of_set(labels[0], told.sets[0].counts["videos"], board)
    return words.verdict(board)


def _make(config: ReportConfig, place: Place, told: _Told) -> manifest.Manifest:
    from latte.data.latents import LatentClips

    started = time.monotonic()
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    latents, vae, checkpoint, sets = told.latents, told.vae, told.checkpoint, told.sets
    labels = _labels(config, told, made_at)
    before = [] if config.about == "training" else nights.earlier(config.root, config.name, max(config.nights - 1, 1))
    with owners.Folder("latents") as cache:
        # Without room for copies every clip is one ranged read; a dozen clips need no whole shards.
        clips = LatentClips(latents, cache, cache_bytes=0)
        grid = _grid(config, clips, latents, vae, checkpoint, sets, labels)
        news = nights.news(latents, clips.videos, before[-1] if before else None)
        data = sections.data(clips, latents, news["ids"] if news else ())
    boards = score_boards(told.pairs, labels)
    loss = sections.loss(checkpoint) if config.about != "set" else None
    verdict = _verdict(config, told, labels, boards[0] if boards else None)
    times = sections.times(latents, vae, checkpoint, sets, told.pairs, labels, config.about != "set")
    # The sets of what was promoted before were made by other nights.
    own = [each for each, label in zip(sets, labels, strict=True) if not label.is_before]
    work_s = sum(each.seconds for each in (latents, *own, *(score for score, _ in told.pairs)))
    work_s += checkpoint.seconds if config.about != "set" else 0.0
    night = nights.facts(made_at, latents, checkpoint, sets, boards, loss, work_s, told.decided)
    context: dict[str, Any] = {
        "name": config.name,
        "about": config.about,
        "day": units.day(made_at),
        "verdict": verdict,
        "decision": nights.rows(told.decided) if told.decided is not None else [],
        "labels": labels,
        "is_first": told.decided is not None and told.decided.is_first,
        "links": _links(told, labels),
        "worked_s": work_s,
        "news": news,
        "trend": nights.trend([*before, night][-config.nights :]) if config.nights else None,
        "boards": boards,
        "grid": grid,
        "data": data,
        "loss": loss,
        "run": sections.facts_of_run(checkpoint, latents, sets),
        "times": times,
        "timings": words.bars_of_seconds(list(config.timings.items())),
        "sources": [sections.source(source, config.root) for source in told.sources],
        "fingerprint": place.fingerprint,
        "uri": place.uri,
    }
    # A page that names no place of the root stays true when that is moved.
    page = render(uris.seen_from(config.root, context))
    shard = manifest.publish_shard(page, storage.join(place.uri, "report.html"))
    metrics = {f"{board['metric']} {bar['label']}": bar["value"] for board in boards for bar in board["bars"]}
    facts = ReportFacts(night=night) if config.about != "training" else ReportFacts()
    return manifest.finish(
        place.manifest(
            config.name,
            shards=[shard],
            counts={"clips": sum(len(row["cells"]) for group in grid["groups"] for row in group["rows"])},
            inputs={"latents": latents.fingerprint, "vae": vae.fingerprint, "checkpoint": checkpoint.fingerprint},
            config={
                **config.model_dump(include={*_IN_FINGERPRINT, "timings"}),
                "latents": latents.file,
                "vae": vae.file,
                "checkpoint": checkpoint.file,
                "video_sets": [videos.file for videos in sets],
                "scores": [score.file for score, _ in told.pairs],
                **({"promotion": told.decided.made.file} if told.decided is not None else {}),
                **facts.said(),
            },
            metrics={**metrics, "verdict": verdict["headline"]},
            seconds=time.monotonic() - started,
        ),
        config.root,
    )


def _links(told: _Told, labels: Sequence[SetLabel]) -> list[dict[str, str]]:
    """Links to the decision, the sets and their scores: on the page, and under the root."""
    found = [("The decision", told.decided.made)] if told.decided is not None else []
    found += [(f"Clips of {label.short}", videos) for label, videos in zip(labels, told.sets, strict=True)]
    found += [(f"Score of {labels[index].short}", score) for score, index in told.pairs]
    return [{"title": title, "id": sections.anchor(made), "uri": made.uri} for title, made in found]


def _numbers(source: manifest.Manifest) -> dict[str, Any]:
    """Its metrics but for the places that they name, which change with the root."""
    return {key: value for key, value in source.metrics.items() if not key.endswith("_uri")}


def render(context: Mapping[str, Any]) -> bytes:
    """The page, UTF-8; everything in `context` is escaped but what is marked as markup."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters["duration"] = units.duration
    environment.filters["number"] = words.number
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**context)
    # Names of files need not be UTF-8; what cannot be coded is shown as \udcXX.
    return page.encode("utf-8", "backslashreplace")


def pair_scores(
    scores: Sequence[manifest.Manifest], sets: Sequence[manifest.Manifest]
) -> list[tuple[manifest.Manifest, int]]:
    """Each score with the index of the set that it is of, in the order of the sets.

    Raises:
        UserError: a score is of none of the sets.
    """
    pairs = []
    for score in scores:
        known = {*score.inputs.values(), ScoreFacts.of(score).videos}
        found = [i for i, videos in enumerate(sets) if known & _names_of(videos)]
        if len(found) != 1:
            raise UserError(f"scores: {score.uri} is of a video set that is not among video_sets")
        pairs.append((score, found[0]))
    return sorted(pairs, key=lambda pair: pair[1])


def _names_of(source: manifest.Manifest) -> set[str]:
    return {source.fingerprint, source.uri, source.file}


def score_boards(pairs: Sequence[tuple[manifest.Manifest, int]], labels: Sequence[SetLabel]) -> list[dict[str, Any]]:
    """Scores that may be compared, each group as bars on one common scale.

    They may be where metric, protocol, detector and real side are the same. All values of a score are drawn, the one
    that counts first first.
    """
    groups: dict[tuple[str, str], list[words.Member]] = {}
    for score, index in pairs:
        for metric, value in names.values_of(score).items():
            same = [value.protocol, value.detector, score.inputs.get("real")]
            member = words.Member(score, value, labels[index])
            groups.setdefault((metric, manifest.fingerprint(same)), []).append(member)
    boards = [words.board(metric, members) for (metric, _), members in groups.items()]
    for number, board in enumerate(boards):
        # Values by one detector share a protocol: the page tells it once.
        if any(board["protocol"] == other["protocol"] for other in boards[:number]):
            board["protocol"] = None
    return boards


def _grid(
    config: ReportConfig,
    clips: "LatentClips",
    latents: manifest.Manifest,
    vae: manifest.Manifest,
    checkpoint: manifest.Manifest,
    sets: Sequence[manifest.Manifest],
    labels: Sequence[SetLabel],
) -> dict[str, Any]:
    from latte.report import grid

    newest = VideoSetFacts.of(sets[0])
    num_frames, fps = newest.num_frames, newest.fps
    stride = RunFacts.of(checkpoint).train.frame_stride
    rows = grid.pick_real(clips.videos, num_frames, stride, config.clips_per_class, config.max_rows)
    listed = [manifest.items(videos) for videos in sets]
    generated = [grid.pick_generated(items, rows) for items in listed]
    decode = grid.make_decoder(vae, num_frames)
    drawn = grid.load_previews(checkpoint, decode) if config.about != "set" else []
    columns = grid.pack(
        [
            [clips.real_clip(row.index, row.start, stride, num_frames) for row in rows],
            grid.reconstruct(clips, rows, decode, num_frames, stride),
            *[grid.load_generated(column) for column in generated],
            *[films for _, _, films in drawn],
        ]
    )
    columns, preview_columns = columns[: len(sets) + 2], columns[len(sets) + 2 :]
    classes = LatentsFacts.of(latents).classes
    titles = ["Real", "Reconstructed", *(label.title for label in labels)]
    groups: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        title = words.class_name(classes, row.label)
        if not groups or groups[-1]["label"] != row.label:
            groups.append({"label": row.label, "title": title, "rows": []})
        source = clips.videos[row.index].id
        whats = [f"Real clip of {source}", f"The same clip of {source}, encoded and decoded"]
        for label, column in zip(labels, generated, strict=True):
            clip = column[place]
            whats.append(f"{label.title}: clip {clip.index} of class {title}" if clip else f"{label.title}: no clip")
        cells = [
            {"strip": column[place], "alt": what, "column": number, "title": titles[number]}
            for number, (column, what) in enumerate(zip(columns, whats, strict=True))
        ]
        groups[-1]["rows"].append({"source": source, "cells": cells})
    return {
        "titles": titles,
        "groups": groups,
        "num_frames": num_frames,
        "stride": stride,
        "fps": fps,
        "film_s": round(num_frames / fps, 3),
        "previews": _previews([(step, titles) for step, titles, _ in drawn], preview_columns),
    }


def _previews(drawn: Sequence[tuple[int, list[str]]], columns: Sequence[Sequence["Strip | None"]]) -> dict[str, Any]:
    """The samples of the model in training: a row for each clip, a column for each step."""
    titles = [f"Step {step:,}" for step, _ in drawn]
    rows = []
    for clip in range(min((len(column) for column in columns), default=0)):
        what = drawn[-1][1][clip]
        cells = [
            {"strip": column[clip], "alt": f"{title}: clip {clip} {what}".strip(), "title": title}
            for title, column in zip(titles, columns, strict=True)
        ]
        rows.append({"title": what, "cells": cells})
    return {"titles": titles, "rows": rows}
