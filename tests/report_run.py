"""A small run for tests of the report: real videos through the convert and encode steps, then two sets of clips."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from latte import storage
from latte.metrics.protocol import Protocol
from latte.storage import manifest, registry
from latte.training import previews
from latte.video import clip_files

# Names that would break a page that does not escape them. A slash cannot stand in a name.
CLASSES = ["<img src=x onerror=alert(1)>", "\"quotes' & <b>more"]
TRUNCATED = "<script>document.title='broken'<.mp4"
NUM_FRAMES, SIDE, CLIPS_PER_SET = 16, 64, 6
PREVIEW_STEPS = (100, 200)


def make_run(folder: Path, scored: bool = True) -> dict[str, Any]:
    """Publish a run under `folder` and return the keys of its ReportConfig."""
    root = (folder / "root").as_uri()
    write_videos(folder / "videos")
    vae = convert_tiny_vae(folder, root)
    latents = encode(folder / "videos", root, vae)
    checkpoint = publish_checkpoint(root, latents)
    sets = [publish_videos(root, checkpoint, name, step) for name, step in (("untrained", 0), ("trained", 200))]
    values = {"untrained": 187.5, "trained": 41.2}
    scores = [publish_score(root, made, latents, values[made.name]) for made in sets] if scored else []
    return {
        "root": root,
        "name": "demo <i>&amp;",
        "latents": place(latents),
        "vae": place(vae),
        "checkpoint": place(checkpoint),
        "video_sets": [place(made) for made in sets],
        "scores": [place(made) for made in scores],
    }


def place(made: manifest.Manifest) -> str:
    return storage.join(made.uri, "manifest.json")


def film(seed: int, num_frames: int = NUM_FRAMES, side: int = SIDE) -> np.ndarray:
    """A disc that crosses a slowly turning gradient: uint8, (F, H, W, 3); no frame is like the one before."""
    draw = np.random.default_rng(seed)
    colour, ground = draw.integers(60, 255, 3), draw.integers(30, 120, 3)
    y, x = np.mgrid[:side, :side] / side
    frames = []
    for index in range(num_frames):
        phase = index / num_frames
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (x + y + phase))
        disc = ((x - phase) ** 2 + (y - 0.3 - 0.4 * draw.random() * 0.1) ** 2 < 0.03)[..., None]
        frames.append(np.where(disc, colour, wave[..., None] * ground))
    return np.stack(frames).astype(np.uint8)


def write_videos(folder: Path) -> None:
    add_videos(folder, range(2))
    whole = (folder / CLASSES[0] / "film 0 <b>.mp4").read_bytes()
    (folder / CLASSES[0] / TRUNCATED).write_bytes(whole[: len(whole) // 2])


def add_videos(folder: Path, numbers: range) -> None:
    """Write videos of these numbers into every class."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in numbers:
            path = folder / name / f"film {index} <b>.mp4"
            iio.imwrite(path, film(10 * label + index, NUM_FRAMES + 4), fps=8, codec="libx264", plugin="FFMPEG")


def convert_tiny_vae(folder: Path, root: str) -> manifest.Manifest:
    from safetensors.numpy import save_file

    from latte import device
    from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
    from latte.steps import convert

    device.setup(seed=0)
    shape = AutoencoderKLConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    weights = {param.name: param.asnumpy() for param in AutoencoderKL(shape).get_parameters()}
    (folder / "vae").mkdir()
    save_file(weights, folder / "vae" / "model.safetensors")
    (folder / "vae" / "config.json").write_text(json.dumps(shape.to_published()))
    source = str(folder / "vae" / "model.safetensors")
    return convert.run(convert.ConvertConfig(kind="vae", source=source, root=root, name="tiny"))


def encode(videos: Path, root: str, vae: manifest.Manifest) -> manifest.Manifest:
    from latte.data.catalog import DatasetConfig
    from latte.steps import encode as step

    dataset = DatasetConfig(videos=str(videos))
    return step.run(step.EncodeConfig(root=root, name="films", dataset=dataset, vae=place(vae), image_size=SIDE))


def publish_checkpoint(
    root: str, latents: manifest.Manifest, label: str = "", init_from: str | None = None
) -> manifest.Manifest:
    """A training run with its log, its previews and, where it has a label, weights."""
    fingerprint = manifest.fingerprint("checkpoint", *([label] if label else []))
    uri = storage.join(root, "runs", "demo", fingerprint[:16])
    shards = []
    if label:
        ema = storage.join(uri, "checkpoints", "step-00000200", "ema.safetensors")
        shards.append(manifest.publish_shard(label.encode(), ema))
    draw = np.random.default_rng(0)
    lines = [
        {"step": step, "loss": float(0.3 + np.exp(-step / 40) + 0.05 * draw.standard_normal())}
        for step in [1, *range(10, 201, 10)]
    ]
    log = storage.join(uri, "metrics.jsonl")
    storage.write_bytes(log, "".join(json.dumps(line) + "\n" for line in lines).encode())
    for step in PREVIEW_STEPS:
        noise = 3 * draw.standard_normal((len(CLASSES), NUM_FRAMES, 4, SIDE // 8, SIDE // 8), np.float32)
        previews.write(storage.join(uri, "previews"), step, noise, CLASSES)
    return manifest.finish(
        manifest.Manifest(
            kind="checkpoint",
            name="demo",
            uri=uri,
            fingerprint=fingerprint,
            shards=shards,
            counts={"steps": 200, "parameters": 4_612_352},
            inputs={"latents": latents.fingerprint, "init_from": ""},
            config={
                "model": {"depth": 6, "hidden_size": 256, "condition": "class"},
                "diffusion": {"noise_schedule": "linear"},
                "classes": latents.config["classes"],
                "image_size": latents.config["image_size"],
                "scaling_factor": latents.config["scaling_factor"],
                "train": {"frame_stride": 1, "batch_size": 8, "learning_rate": 1e-3, "init_from": init_from},
            },
            metrics={
                "step": 200,
                "loss": lines[-1]["loss"],
                "metrics_uri": log,
                "previews_uri": storage.join(uri, "previews"),
            },
            seconds=221.4,
        )
    )


def publish_videos(
    root: str, checkpoint: manifest.Manifest, name: str, step: int, weights: str = ""
) -> manifest.Manifest:
    fingerprint = manifest.fingerprint("videos", name, *([weights] if weights else []))
    uri = storage.join(root, "videos", name, fingerprint[:16])
    draw = np.random.default_rng([step, *weights.encode()])
    first = 50 + int(draw.integers(1000)) if weights else 50
    items, shards = [], []
    for index in range(CLIPS_PER_SET):
        noise = draw.integers(0, 256, (NUM_FRAMES, SIDE, SIDE, 3), np.uint8)
        frames = (0.7 * film(index + first) + 0.3 * noise).astype(np.uint8) if step else noise
        clip = storage.join(uri, f"clip-{index:05d}.mkv")
        path = storage.local_path(clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        clip_files.write_lossless(path, frames, fps=8)
        shards.append(manifest.Shard(uri=clip, bytes=path.stat().st_size, sha256=storage.sha256_file(path)))
        items.append({"index": index, "label": index % 2, "video": clip, "sha256": shards[-1].sha256})
    storage.write_json(storage.join(uri, "items.json"), items)
    return manifest.finish(
        manifest.Manifest(
            kind="video_set",
            name=name,
            uri=uri,
            fingerprint=fingerprint,
            shards=shards,
            counts={"videos": CLIPS_PER_SET},
            inputs={"weights": weights} if weights else {},
            config={
                "checkpoint": place(checkpoint),
                "step": step,
                "method": "ddim",
                "num_sampling_steps": 50,
                "cfg_scale": 1.5,
                "classes": CLASSES,
                "num_frames": NUM_FRAMES,
                "image_size": SIDE,
                "fps": 8,
                "seed": 0,
            },
            seconds=48.3,
        )
    )


def publish_score(
    root: str, videos: manifest.Manifest, latents: manifest.Manifest, value: float, real: str = ""
) -> manifest.Manifest:
    protocol = Protocol(num_clips=CLIPS_PER_SET, frame_stride=1)
    fingerprint = manifest.fingerprint("score", videos.fingerprint, value)
    beside = {
        "interval_low": 0.92 * value,
        "interval_high": 1.1 * value,
        "unbiased_estimate": 0.8 * value,
        "clips": CLIPS_PER_SET,
    }
    frames = protocol.model_copy(update={"resolution": 299, "features": "pool"})
    of_frames = {"value": -0.25, "interval_low": -0.5, "interval_high": 0.0, "unbiased_estimate": -0.25}
    values = {
        "frechet_random_i3d": {
            "value": value, **beside, "detector": "d" * 64, "protocol": protocol.model_dump(),
            "protocol_digest": protocol.digest,
        },
        "kid": {
            **of_frames, "clips": CLIPS_PER_SET, "detector": "e" * 64, "protocol": frames.model_dump(),
            "protocol_digest": frames.digest,
        },
    }  # fmt: skip
    return manifest.finish(
        manifest.Manifest(
            kind="score",
            name=videos.name,
            uri=storage.join(root, "scores", videos.name, fingerprint[:16]),
            fingerprint=fingerprint,
            counts={"clips_generated": CLIPS_PER_SET, "clips_real": CLIPS_PER_SET},
            inputs={"videos": videos.fingerprint, "real": real or latents.fingerprint, "detector": "d" * 64},
            config={
                "protocol": protocol.model_dump(),
                "protocol_digest": protocol.digest,
                "detector": {"sha256": "d" * 64, "random": True},
                "videos": videos.uri,
                "real": latents.uri,
                "image_size": SIDE,
                "notes": [f"{CLIPS_PER_SET} clips for 400 features: the covariances are singular"],
            },
            metrics={
                "frechet_random_i3d": value,
                **beside,
                "values": values,
            },
            seconds=22.5,
        )
    )


@dataclass
class Nights:
    """Nights of a model on one root: the real encode, promote and report steps around published sets and scores."""

    folder: Path
    root: str
    vae: manifest.Manifest
    promoted: tuple[manifest.Manifest, str] | None = None
    count: int = 0

    @classmethod
    def begun(cls, folder: Path) -> "Nights":
        """Before the first night."""
        root = (folder / "root").as_uri()
        write_videos(folder / "videos")
        return cls(folder, root, convert_tiny_vae(folder, root))

    def night(self, value: float, before: float, new_videos: int = 0) -> dict[str, Any]:
        """Keys of the ReportConfig of the next night, when its gate has decided.

        Args:
            value: score of tonight's model.
            before: score of the model before.
            new_videos: in each class.
        """
        from latte.steps import promote

        self.count += 1
        first = 2 + 10 * self.count
        add_videos(self.folder / "videos", range(first, first + new_videos))
        latents = encode(self.folder / "videos", self.root, self.vae)
        start = None if self.promoted is None else self.promoted[1]
        checkpoint = publish_checkpoint(self.root, latents, f"night {self.count}", start)
        weights = checkpoint.shards[0].sha256
        after = publish_videos(self.root, checkpoint, "demo", 200, weights)
        old = publish_videos(self.root, checkpoint, "demo", 0, "start") if self.promoted is None else self.promoted[0]
        scores = [
            publish_score(self.root, made, latents, number, "real") for made, number in ((after, value), (old, before))
        ]
        decision = promote.run(
            promote.PromoteConfig(root=self.root, name="demo", checkpoint=place(checkpoint), score=place(scores[0]))
        )
        if decision.metrics["promoted"]:
            self.promoted = after, weights
        return {
            "root": self.root,
            "name": "demo",
            "about": "night",
            "latents": place(latents),
            "vae": place(self.vae),
            "checkpoint": place(checkpoint),
            # As the pipeline hands them over, whatever their steps are.
            "video_sets": [place(after), place(old)],
            "scores": [place(made) for made in scores],
            "promotion": place(decision),
        }

    def set_in_bulk(self, value: float) -> dict[str, Any]:
        """Keys of the ReportConfig of a set that the promoted model made."""
        current, _ = registry.read_current(self.root, "demo")
        if current is None:
            raise RuntimeError("nothing is promoted")
        checkpoint = manifest.read(current.checkpoint, "checkpoint")
        latents = encode(self.folder / "videos", self.root, self.vae)
        videos = publish_videos(self.root, checkpoint, "bulk", 200, current.weights_sha256)
        score = publish_score(self.root, videos, latents, value, "real")
        return {
            "root": self.root,
            "name": "bulk",
            "about": "set",
            "latents": place(latents),
            "vae": place(self.vae),
            "checkpoint": place(checkpoint),
            "video_sets": [place(videos)],
            "scores": [place(score)],
        }
