"""The parts of a report that tell what ran: the data, the loss curve, the settings, the times, the sources."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from latte import storage, units, uris
from latte.data.curation import config as rules_config
from latte.data.curation import rules
from latte.facts import LatentsFacts, RunFacts, RunMetrics, VideoSetFacts
from latte.report import words
from latte.storage import manifest
from latte.video.views import View

if TYPE_CHECKING:
    from latte.data.latents import LatentClips

MAX_REJECT_ROWS = 50


def data(clips: "LatentClips", latents: manifest.Manifest, new: Collection[str] = ()) -> dict[str, Any]:
    """The dataset: counts by class, and what was left out.

    Args:
        clips: its videos.
        latents: its manifest.
        new: ids of those that the last report did not have.
    """
    counted = Counter(entry.label for entry in clips.videos)
    added = Counter(entry.label for entry in clips.videos if entry.id in new)
    frames: Counter[int | None] = Counter()
    for entry in clips.videos:
        frames[entry.label] += entry.num_frames
    shards = [shard for shard in latents.shards if shard.uri.endswith(".safetensors")]
    facts = LatentsFacts.of(latents)
    classes = facts.classes
    most = max(counted.values(), default=1)
    return {
        "name": latents.name,
        "source": facts.videos,
        "videos": len(clips.videos),
        "frames": sum(frames.values()),
        "bytes": units.size(sum(shard.bytes for shard in shards)),
        "shards": len(shards),
        "image_size": facts.image_size,
        "latent": words.latent_shape(latents),
        "classes": [
            {
                "name": words.class_name(classes, label),
                "videos": counted[label],
                "new": added[label],
                "frames": frames[label],
                "share": round(100 * counted[label] / most, 1),
            }
            for label in sorted(counted, key=lambda label: -1 if label is None else label)
        ],
        "rejects": latents.rejects[:MAX_REJECT_ROWS],
        "num_rejects": len(latents.rejects),
        "curation": _curation(clips, latents),
    }


def _curation(clips: "LatentClips", latents: manifest.Manifest) -> list[dict[str, Any]]:
    """Each rule of the dataset's curation with its settings and what it did; empty where there was none."""
    settings = LatentsFacts.of(latents).curate or {}
    left_out = Counter(map(rules.rule_of, latents.rejects))
    views = [view for entry in clips.videos if (view := View.of(entry.view)) is not None]
    cut = sum((view.start, view.stop) != (0, None) for view in views)
    cropped = sum(view.crop is not None for view in views)
    did = {
        "shots": f"{cut:,} of the videos {'is a shot' if cut == 1 else 'are shots'}",
        "letterbox": f"{cropped:,} {'video was' if cropped == 1 else 'videos were'} cropped",
    }
    return [
        {
            "rule": name,
            "settings": ", ".join(f"{key} {words.text_of(value)}" for key, value in settings[name].items()),
            "left_out": left_out[name],
            "did": did.get(name, ""),
        }
        for name in rules_config.RULES
        if name in settings
    ]


def loss(checkpoint: manifest.Manifest) -> dict[str, Any] | None:
    """The loss curve of a run; None where too little of its log is left."""
    from markupsafe import Markup

    from latte.report import plots

    text = storage.read_bytes(RunMetrics.of(checkpoint).metrics_uri).decode()
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


def facts_of_run(
    checkpoint: manifest.Manifest, latents: manifest.Manifest, sets: Sequence[manifest.Manifest]
) -> dict[str, Any]:
    """The model, its training and the sampling, in numbers and as rows of settings."""
    newest, run = sets[0], RunFacts.of(checkpoint)
    is_trained = checkpoint.kind == "checkpoint"
    return {
        "name": checkpoint.name,
        "parameters": words.count(checkpoint.counts["parameters"]),
        "steps": RunMetrics.of(checkpoint).step if is_trained else 0,
        "generated": sum(videos.counts["videos"] for videos in sets),
        "generated_each": " + ".join(f"{videos.counts['videos']:,}" for videos in sets),
        "method": words.method(newest),
        "finetuned": bool(run.train.init_from),
        "model": words.flat(run.model),
        "train": words.flat(checkpoint.config.get("train", {}), leave_out=("model",)),
        "sample": words.flat(newest.config, leave_out=("classes", "notes")),
        "classes": len(LatentsFacts.of(latents).classes),
        "adapted": list(dict.fromkeys(note for videos in sets for note in VideoSetFacts.of(videos).notes)),
    }


def times(
    latents: manifest.Manifest,
    vae: manifest.Manifest,
    checkpoint: manifest.Manifest,
    sets: Sequence[manifest.Manifest],
    pairs: Sequence[tuple[manifest.Manifest, int]],
    labels: Sequence[words.SetLabel],
    trains: bool = True,
) -> dict[str, Any]:
    """Time that each step worked; `trains` says whether the training belongs to what the page is about."""
    rows = [("Convert the autoencoder", vae.seconds), (f"Encode {latents.counts['videos']:,} videos", latents.seconds)]
    if trains:
        rows.append((f"Train {RunMetrics.of(checkpoint).step:,} steps", checkpoint.seconds))
    for videos, label in zip(sets, labels, strict=True):
        rows.append((f"Sample {videos.counts['videos']:,} clips, {label.short}", videos.seconds))
    rows += [(f"Score, {labels[index].short}", score.seconds) for score, index in pairs]
    return words.bars_of_seconds(rows)


def source(source: manifest.Manifest, root: str) -> dict[str, Any]:
    """A manifest that the page was made from, with a name to link to."""
    return {
        "id": anchor(source),
        "kind": source.kind.replace("_", " "),
        "name": source.name,
        "uri": source.uri,
        "fingerprint": source.fingerprint,
        "code_version": source.code_version,
        "bytes": units.size(sum(shard.bytes for shard in source.shards)),
        "inputs": source.inputs,
        "json": json.dumps(
            uris.seen_from(root, source.model_dump(include={"config", "counts", "metrics", "inputs"})),
            indent=2,
            sort_keys=True,
            ensure_ascii=False,
        ),
    }


def anchor(source: manifest.Manifest) -> str:
    """Name of a source's place on the page."""
    return f"{source.kind.replace('_', '-')}-{source.fingerprint[:16]}"
