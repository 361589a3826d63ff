"""The report step: one self-contained HTML page that shows a whole run to a person who has read nothing else.

The page loads nothing from anywhere: clips are strips of frames in data URIs that CSS moves, the loss curve is inline
SVG, there is no script, and a content security policy forbids all three. Whatever comes from names of files, classes or
runs is escaped.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from latte import __version__, manifest, storage, uris
from latte.config import Config, Root
from latte.errors import UserError
from latte.steps import report_words as words

if TYPE_CHECKING:
    from latte.latents import LatentClips
    from latte.report_clips import Strip

TEMPLATE = Path(__file__).with_name("report.html")
MAX_REJECT_ROWS = 50


class ReportConfig(Config):
    """Settings of a report."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the report; it lies under reports/<name>/")
    latents: str = Field(description="manifest of the encoded dataset (file or URI)")
    vae: str = Field(description="manifest of the autoencoder's weights; decodes the reconstructions")
    checkpoint: str = Field(description="manifest of the training run")
    video_sets: list[str] = Field(
        min_length=1, max_length=4, description="manifests of the generated sets, one column each"
    )
    scores: list[str] = Field(default=[], description="manifests of the scores of these sets")
    timings: dict[str, float] = Field(default={}, description="seconds by the clock, by step, for the table of times")
    clips_per_class: int = Field(default=2, gt=0, description="rows of the moving grid for each class")
    max_rows: int = Field(default=12, gt=0, description="rows of the moving grid in all")
    output: str | None = Field(default=None, description="also write the page to this file or URI")


# `timings` is told anew by every run; a page that is there keeps those of the run that did the work.
_IN_FINGERPRINT = {"clips_per_class", "max_rows"}


def run(config: ReportConfig) -> manifest.Manifest:
    """Write the page and return the manifest of it.

    Raises:
        UserError: the manifests do not belong together, or a setting does not fit them.
        StorageError: object storage stayed away for too long, or stored data is damaged.
    """
    latents = manifest.read(config.latents, "latents", "latents")
    vae = manifest.read(config.vae, "weights", "vae")
    checkpoint = manifest.read(config.checkpoint, "checkpoint", "checkpoint")
    sets = [manifest.read(uri, "video_set", "video_sets") for uri in config.video_sets]
    for uri, videos in zip(config.video_sets, sets, strict=True):
        if videos.config["step"] is None:
            raise UserError(f"video_sets {uri}: generated with published weights, not by a checkpoint of this run")
    sets.sort(key=lambda videos: -int(videos.config["step"]))
    scores = [manifest.read(uri, "score", "scores") for uri in config.scores]
    if latents.inputs["vae"] != vae.weights_file().sha256:
        raise UserError(f"vae {config.vae}: the latents of {latents.name} were made by another autoencoder")
    pairs = pair_scores(scores, sets)
    sources = [latents, vae, checkpoint, *sets, *scores]
    fingerprint = manifest.fingerprint(
        "report",
        config.model_dump(include=_IN_FINGERPRINT),
        [[source.fingerprint, _numbers(source), source.counts] for source in sources],
        storage.sha256_file(TEMPLATE),
        __version__,
    )
    uri = storage.join(config.root, "reports", config.name, fingerprint[:16])
    done = manifest.find(uri, "report")
    if done is None:
        done = _make(config, uri, fingerprint, latents, vae, checkpoint, sets, pairs)
    if config.output is not None:
        page = done.shard("/report.html")
        with storage.as_local_file(page.uri, page.sha256) as path:
            storage.upload(path, config.output)
    return done


def _make(
    config: ReportConfig,
    uri: str,
    fingerprint: str,
    latents: manifest.Manifest,
    vae: manifest.Manifest,
    checkpoint: manifest.Manifest,
    sets: list[manifest.Manifest],
    pairs: list[tuple[manifest.Manifest, int]],
) -> manifest.Manifest:
    from latte.latents import LatentClips

    started = time.monotonic()
    labels = words.set_labels(sets, finetuned=bool(checkpoint.config["train"].get("init_from")))
    with tempfile.TemporaryDirectory(prefix="latte-latents-") as cache:
        # Without room for copies every clip is one ranged read; a dozen clips need no whole shards.
        clips = LatentClips(latents, cache, cache_bytes=0)
        grid = _grid(config, clips, latents, vae, checkpoint, sets, labels)
        data = _data(clips, latents)
    boards = score_boards(pairs, labels)
    sources = [latents, vae, checkpoint, *sets, *(score for score, _ in pairs)]
    verdict = words.verdict(boards[0] if boards else None)
    context: dict[str, Any] = {
        "name": config.name,
        "verdict": verdict,
        "boards": boards,
        "grid": grid,
        "data": data,
        "loss": _loss(checkpoint),
        "run": _facts_of_run(checkpoint, latents, sets),
        "times": _times(latents, vae, checkpoint, sets, pairs, labels),
        "timings": words.bars_of_seconds(list(config.timings.items())),
        "sources": [_source(source, config.root) for source in sources],
        "fingerprint": fingerprint,
        "uri": uri,
    }
    # A page that names no place of the root stays true when that is moved.
    page = render(uris.seen_from(config.root, context))
    shard = manifest.publish_shard(page, storage.join(uri, "report.html"))
    board = boards[0] if boards else None
    metrics = {f"{board['metric']} {bar['label']}": bar["value"] for bar in board["bars"]} if board else {}
    return manifest.finish(
        manifest.Manifest(
            kind="report",
            name=config.name,
            uri=uri,
            fingerprint=fingerprint,
            shards=[shard],
            counts={"clips": sum(len(row["cells"]) for group in grid["groups"] for row in group["rows"])},
            inputs={"latents": latents.fingerprint, "vae": vae.fingerprint, "checkpoint": checkpoint.fingerprint},
            config={
                **config.model_dump(include={*_IN_FINGERPRINT, "timings"}),
                "latents": latents.file,
                "vae": vae.file,
                "checkpoint": checkpoint.file,
                "video_sets": [videos.file for videos in sets],
                "scores": [score.file for score, _ in pairs],
            },
            metrics={**metrics, "verdict": verdict["headline"]},
            seconds=time.monotonic() - started,
        ),
        config.root,
    )


def _numbers(source: manifest.Manifest) -> dict[str, Any]:
    """Its metrics but for the places that they name, which change with the root."""
    return {key: value for key, value in source.metrics.items() if not key.endswith("_uri")}


def render(context: Mapping[str, Any]) -> bytes:
    """The page, UTF-8; everything in `context` is escaped but what is marked as markup."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters["duration"] = words.duration
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
        known = {*score.inputs.values(), *(value for value in score.config.values() if isinstance(value, str))}
        found = [i for i, videos in enumerate(sets) if known & _names_of(videos)]
        if len(found) != 1:
            raise UserError(f"scores: {score.uri} is of a video set that is not among video_sets")
        pairs.append((score, found[0]))
    return sorted(pairs, key=lambda pair: pair[1])


def _names_of(source: manifest.Manifest) -> set[str]:
    return {source.fingerprint, source.uri, source.file}


def score_boards(pairs: Sequence[tuple[manifest.Manifest, int]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Scores that may be compared, each group as bars on one common scale.

    They may be where metric, protocol, detector and real side are the same.
    """
    groups: dict[tuple[str, str], list[tuple[manifest.Manifest, int]]] = {}
    for score, index in pairs:
        same = [score.config.get("protocol"), score.inputs.get("detector"), score.inputs.get("real")]
        groups.setdefault((words.metric_of(score), manifest.fingerprint(same)), []).append((score, index))
    return [
        words.board(metric, [(score, labels[index]) for score, index in members])
        for (metric, _), members in groups.items()
    ]


def _grid(
    config: ReportConfig,
    clips: "LatentClips",
    latents: manifest.Manifest,
    vae: manifest.Manifest,
    checkpoint: manifest.Manifest,
    sets: Sequence[manifest.Manifest],
    labels: Sequence[str],
) -> dict[str, Any]:
    from latte import report_clips

    num_frames = int(sets[0].config["num_frames"])
    stride = int(checkpoint.config["train"]["frame_stride"])
    rows = report_clips.pick_real(clips.videos, num_frames, stride, config.clips_per_class, config.max_rows)
    listed = [storage.read_json(storage.join(videos.uri, "items.json")) for videos in sets]
    generated = [report_clips.pick_generated(items, rows) for items in listed]
    decode = report_clips.make_decoder(vae, num_frames)
    drawn = report_clips.load_previews(checkpoint, decode)
    columns = report_clips.pack(
        [
            [clips.real_clip(row.index, row.start, stride, num_frames) for row in rows],
            report_clips.reconstruct(clips, rows, decode, num_frames, stride),
            *[report_clips.load_generated(column) for column in generated],
            *[films for _, _, films in drawn],
        ]
    )
    columns, preview_columns = columns[: len(sets) + 2], columns[len(sets) + 2 :]
    classes = latents.config["classes"]
    titles = ["Real", "Reconstructed", *labels]
    groups: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        title = words.class_name(classes, row.label)
        if not groups or groups[-1]["label"] != row.label:
            groups.append({"label": row.label, "title": title, "rows": []})
        source = clips.videos[row.index].id
        whats = [f"Real clip of {source}", f"The same clip of {source}, encoded and decoded"]
        for label, column in zip(labels, generated, strict=True):
            clip = column[place]
            whats.append(f"{label}: clip {clip.index} of class {title}" if clip else f"{label}: no clip")
        cells = [
            {"strip": column[place], "alt": what, "column": number, "title": titles[number]}
            for number, (column, what) in enumerate(zip(columns, whats, strict=True))
        ]
        groups[-1]["rows"].append({"source": source, "cells": cells})
    fps = float(sets[0].config["fps"])
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


def _data(clips: "LatentClips", latents: manifest.Manifest) -> dict[str, Any]:
    counted = Counter(entry.label for entry in clips.videos)
    frames: Counter[int | None] = Counter()
    for entry in clips.videos:
        frames[entry.label] += entry.num_frames
    shards = [shard for shard in latents.shards if shard.uri.endswith(".safetensors")]
    classes = latents.config["classes"]
    most = max(counted.values(), default=1)
    return {
        "name": latents.name,
        "source": latents.config.get("videos"),
        "videos": len(clips.videos),
        "frames": sum(frames.values()),
        "bytes": words.size(sum(shard.bytes for shard in shards)),
        "shards": len(shards),
        "image_size": latents.config["image_size"],
        "latent": words.latent_shape(latents),
        "classes": [
            {
                "name": words.class_name(classes, label),
                "videos": counted[label],
                "frames": frames[label],
                "share": round(100 * counted[label] / most, 1),
            }
            for label in sorted(counted, key=lambda label: -1 if label is None else label)
        ],
        "rejects": latents.rejects[:MAX_REJECT_ROWS],
        "num_rejects": len(latents.rejects),
    }


def _loss(checkpoint: manifest.Manifest) -> dict[str, Any] | None:
    from markupsafe import Markup

    from latte import plots

    text = storage.read_bytes(checkpoint.metrics["metrics_uri"]).decode()
    lines = [json.loads(line) for line in text.splitlines()]
    if len(lines) < 2:
        return None
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    smooth = plots.moving_average(losses)
    title = f"Training loss over {steps[-1]:,} steps: from {smooth[0]:.3g} to {smooth[-1]:.3g}"
    names = (title, "training step", "loss")
    return {
        "title": title,
        "first": smooth[0],
        "last": smooth[-1],
        "points": len(lines),
        # Our own drawing: numbers and fixed words.
        "wide": Markup(plots.line_chart(steps, losses, *names, width=844, height=340)),  # noqa: S704
        "narrow": Markup(plots.line_chart(steps, losses, *names, width=350, height=260)),  # noqa: S704
    }


def _facts_of_run(
    checkpoint: manifest.Manifest, latents: manifest.Manifest, sets: Sequence[manifest.Manifest]
) -> dict[str, Any]:
    newest = sets[0]
    return {
        "name": checkpoint.name,
        "parameters": words.count(checkpoint.counts["parameters"]),
        "steps": int(checkpoint.metrics["step"]),
        "generated": sum(videos.counts["videos"] for videos in sets),
        "generated_each": " + ".join(str(videos.counts["videos"]) for videos in sets),
        "method": words.method(newest),
        "finetuned": bool(checkpoint.config["train"].get("init_from")),
        "model": words.flat(checkpoint.config["model"]),
        "train": words.flat(checkpoint.config["train"], leave_out=("model",)),
        "sample": words.flat(newest.config, leave_out=("classes", "notes")),
        "classes": len(latents.config["classes"]),
        "adapted": list(dict.fromkeys(note for videos in sets for note in videos.config.get("notes", []))),
    }


def _times(
    latents: manifest.Manifest,
    vae: manifest.Manifest,
    checkpoint: manifest.Manifest,
    sets: Sequence[manifest.Manifest],
    pairs: Sequence[tuple[manifest.Manifest, int]],
    labels: Sequence[str],
) -> dict[str, Any]:
    names = [label.removeprefix("Generated, ") for label in labels]
    rows = [("Convert the autoencoder", vae.seconds), (f"Encode {latents.counts['videos']:,} videos", latents.seconds)]
    rows.append((f"Train {int(checkpoint.metrics['step']):,} steps", checkpoint.seconds))
    for videos, name in zip(sets, names, strict=True):
        rows.append((f"Sample {videos.counts['videos']:,} clips, {name}", videos.seconds))
    rows += [(f"Score, {names[index]}", score.seconds) for score, index in pairs]
    return words.bars_of_seconds(rows)


def _source(source: manifest.Manifest, root: str) -> dict[str, Any]:
    return {
        "kind": source.kind.replace("_", " "),
        "name": source.name,
        "uri": source.uri,
        "fingerprint": source.fingerprint,
        "code_version": source.code_version,
        "bytes": words.size(sum(shard.bytes for shard in source.shards)),
        "inputs": source.inputs,
        "json": json.dumps(
            uris.seen_from(root, source.model_dump(include={"config", "counts", "metrics", "inputs"})),
            indent=2,
            sort_keys=True,
            ensure_ascii=False,
        ),
    }
