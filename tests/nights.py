"""A root after some nights, as the steps leave it: objects of a few bytes, real manifests, digests and promotions."""

import os
from pathlib import Path

from latte import storage
from latte.steps.promote import PromoteConfig, run
from latte.storage import manifest
from latte.storage.manifest import Kind, Manifest, Shard


def publish(
    root: str, kind: Kind, folder: str, name: str, label: str, objects: tuple[str, ...], **fields: object
) -> Manifest:
    """A finished place whose objects hold their own names."""
    fingerprint = manifest.fingerprint(kind, name, label)
    names = (name,) if folder != "features" else ()
    uri = storage.join(root, folder, *names, fingerprint[:16])
    shards = [manifest.publish_shard(f"{label} {each}".encode(), storage.join(uri, each)) for each in objects]
    made = Manifest(kind=kind, name=name, uri=uri, fingerprint=fingerprint, shards=shards, **fields)  # type: ignore[arg-type]
    return manifest.finish(made, root)


def weights(root: str, kind: str) -> Shard:
    """Converted weights."""
    made = publish(root, "weights", "weights", kind, kind, ("model.safetensors",), config={"kind": kind, "model": {}})
    return made.shards[0]


def night(root: str, number: int, value: float, clips: int = 3) -> dict[str, str]:
    """One night's dataset, run, set, features, score and report, and the gate; places by kind, seen from the root."""
    vae, i3d = weights(root, "vae"), weights(root, "i3d")
    label = f"night {number}"
    dataset = publish(
        root, "latents", "datasets", "sky", f"videos of night {number // 3}", ("shards/a.safetensors",),
        inputs={"vae": vae.sha256, "catalog": label}, config={"videos": "file:///real"},
    )  # fmt: skip
    step = "checkpoints/step-00000006"
    training = publish(
        root, "checkpoint", "runs", "sky", label, (f"{step}/model.safetensors", f"{step}/ema.safetensors"),
        config={"model": {}, "vae": vae.sha256, "train": {"latents": dataset.uri}},
        metrics={"step": 6, "metrics_uri": "none"}, counts={"steps": 6},
    )  # fmt: skip
    ema = training.shard("/ema.safetensors")
    objects = tuple(f"clip-{index:05d}.{ending}" for index in range(clips) for ending in ("mkv", "mp4"))
    videos = publish(
        root, "video_set", "videos", "sky", label, objects, counts={"videos": clips},
        inputs={"weights": ema.sha256, "vae": vae.sha256}, config={"checkpoint": training.file, "step": 6},
    )  # fmt: skip
    side = publish(root, "features", "features", "generated", label, ("features-00000.safetensors",))
    score = publish(
        root, "score", "scores", "sky", label, (),
        inputs={
            "videos": videos.fingerprint, "real": "real", "detector": i3d.sha256, "features_generated": side.fingerprint
        },
        config={"protocol_digest": "p", "videos": videos.uri, "real": dataset.uri},
        metrics={"fvd": value, "interval_low": value, "interval_high": value},
    )  # fmt: skip
    page = publish(root, "report", "reports", "sky", label, ("report.html",), config={"score": score.uri})
    run(PromoteConfig(root=root, name="sky", checkpoint=training.file, score=score.file))
    made = {"dataset": dataset, "run": training, "set": videos, "features": side, "score": score, "report": page}
    return {kind: each.uri.removeprefix(root + "/") for kind, each in made.items()}


def age(root: str, days: float) -> None:
    """Let all files of a folder be so many days older."""
    for path in storage.local_path(root).rglob("*"):
        if path.is_file():
            info = path.stat()
            os.utime(path, (info.st_atime, info.st_mtime - days * 86_400))


def old(folder: Path, values: tuple[float, ...]) -> tuple[str, list[dict[str, str]]]:
    """A root in a folder after nights with these scores, the last one 30 days ago."""
    root = folder.as_uri()
    made = []
    for number, value in enumerate(values):
        made.append(night(root, number, value))
        age(root, 1)
    age(root, 29)
    return root, made
