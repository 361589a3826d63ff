"""The demo as a person sees it: its clips show what they were asked for, and its score agrees with the eye."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from latte import rng, storage
from latte.storage import manifest
from pipelines.demo import nearest, train_detector
from pipelines.demo.data import cut_demo_clips
from tests.e2e import runs

# The demo's own settings, shorter: what they show does not need all updates, clips and denoising steps.
SHORTER = {"sample.num_videos": 24, "sample.num_sampling_steps": 8, "train.preview_every": 0}
METRIC = "frechet_small_i3d"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for the runs, whose root they share, with the demo's clips."""
    folder = tmp_path_factory.mktemp("demo")
    cut_demo_clips(folder / "videos")
    return folder


def run(folder: Path, name: str, **other: Any) -> dict[tuple[str, str], manifest.Manifest]:
    """Run the demo's pipeline; the manifests that are new, by kind and name."""
    root = (folder / "root").as_uri()
    before = set(storage.list_uris(root))
    settings = {**SHORTER, "encode.dataset.videos": str(folder / "videos"), **other}
    started = runs.start(folder / name, "--root", root, settings=settings)
    assert started.finish(900) == 0, started.output
    places = [uri for uri in storage.list_uris(root) if uri.endswith("/manifest.json") and uri not in before]
    return {(made.kind, made.name): made for made in map(manifest.read, places)}


@pytest.fixture(scope="module")
def finetuned(folder: Path) -> dict[tuple[str, str], manifest.Manifest]:
    return run(folder, "finetuned", **{"train.steps": 10})


@pytest.fixture(scope="module")
def fresh(
    folder: Path, finetuned: dict[tuple[str, str], manifest.Manifest]
) -> dict[tuple[str, str], manifest.Manifest]:
    """A few updates from fresh weights, on what the other run has encoded: mush."""
    settings = {"pretrained": {}, "train.steps": 30, "train.learning_rate": 1e-3, "train.ema_decay": 0.9}
    made = run(folder, "fresh", **settings)
    assert not any(kind == "latents" for kind, _ in made)
    return made


def test_generated_clips_are_nearest_to_real_clips_of_their_class(
    finetuned: dict[tuple[str, str], manifest.Manifest],
) -> None:
    found = nearest.nearest_classes(
        finetuned["latents", "demo"], finetuned["video_set", "trained"], finetuned["weights", "vae"]
    )
    assert len(found) == 24
    assert {asked for asked, _ in found} == {"bikes", "bunny", "carphone"}
    assert nearest.share_right(found) >= 0.9, found


def test_the_score_agrees_with_the_eye(
    finetuned: dict[tuple[str, str], manifest.Manifest], fresh: dict[tuple[str, str], manifest.Manifest]
) -> None:
    real, _ = train_detector.real_clips(held_out=False)
    net = train_detector.detector(load_file(runs.REPOSITORY / "configs" / "demo" / "detector" / "i3d.safetensors"))
    order = rng.stream(0, "halves").permutation(len(real))
    one, other = (train_detector.features(net, real[part]) for part in (order[:24], order[24:48]))
    halves = train_detector.distance(one, other)
    better, mush, untrained = (
        side["score", name].metrics[METRIC]
        for side, name in ((finetuned, "trained"), (fresh, "trained"), (fresh, "untrained"))
    )
    assert halves < better < mush < untrained


def test_label_rows_are_taken_by_the_names_of_the_classes(
    finetuned: dict[tuple[str, str], manifest.Manifest],
) -> None:
    checkpoint = next(made for (kind, _), made in finetuned.items() if kind == "checkpoint")
    assert checkpoint.config["reinitialised"] == []
    assert checkpoint.inputs["init_from"] == finetuned["weights", "pretrained"].weights_file().sha256
