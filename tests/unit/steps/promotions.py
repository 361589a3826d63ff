"""Small candidates for promotion: a checkpoint, its video set and its score, as the steps leave them."""

from collections.abc import Mapping
from dataclasses import dataclass

from latte import storage
from latte.storage import manifest


@dataclass(frozen=True)
class Candidate:
    checkpoint: str
    score: str
    sha256: str


def make(
    root: str,
    label: str,
    value: float,
    real: str = "real-1",
    protocol: str = "protocol-1",
    detector: str = "detector-1",
    role: str = "ema",
    width: float = 0.0,
    values: Mapping[str, float] | None = None,
) -> Candidate:
    """Publish a candidate whose score is `value`, its interval `width` wide to each side; `values`: all, by metric."""
    run = storage.join(root, "runs", "model", label)
    shards = [
        manifest.publish_shard(
            f"{label} {each}".encode(), storage.join(run, "checkpoints", "step-00000006", f"{each}.safetensors")
        )
        for each in ("model", "ema")
    ]
    weights = next(shard for shard in shards if shard.uri.endswith(f"/{role}.safetensors"))
    manifest.finish(
        manifest.Manifest(
            kind="checkpoint", name="model", uri=run, fingerprint=manifest.fingerprint(label), shards=shards,
            counts={"steps": 6, "parameters": 10}, config={"model": {}}, metrics={"step": 6, "metrics_uri": "none"},
        )
    )  # fmt: skip
    measured = {
        name: {"value": each, "clips": 4, "detector": f"{detector} {name}", "protocol_digest": f"{protocol} {name}"}
        for name, each in (values or {}).items()
    }
    videos = storage.join(root, "videos", "model", label)
    manifest.finish(
        manifest.Manifest(
            kind="video_set", name="model", uri=videos, fingerprint=manifest.fingerprint("videos", label),
            inputs={"weights": weights.sha256},
        )
    )  # fmt: skip
    score = storage.join(root, "scores", "model", f"{label}-{real}")
    manifest.finish(
        manifest.Manifest(
            kind="score", name="model", uri=score, fingerprint=manifest.fingerprint("score", label, real, value),
            inputs={"real": real, "detector": detector},
            config={"protocol_digest": protocol, "videos": videos, "real": storage.join(root, "datasets", "model")},
            metrics={
                "fvd": value, "interval_low": value - width, "interval_high": value + width, "clips": 4,
                "values": measured,
            },
        )
    )  # fmt: skip
    places = [storage.join(place, "manifest.json") for place in (run, score)]
    return Candidate(places[0], places[1], weights.sha256)
