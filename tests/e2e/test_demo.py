"""The demo as a person sees it: its clips show what they were asked for, and its score agrees with the eye."""

from pathlib import Path
from typing import Any

import pytest

from latte import manifest, rng, storage
from pipelines.demo import nearest, train_detector
from pipelines.demo.data import cut_demo_clips
from tests.e2e import runs

# The demo's own settings, shorter: what they show does not need all updates and clips.
SHORTER = {"sample.num_videos": 24, "train.preview_every": 0}
METRIC = "frechet_small_i3d"


def run(root: Path, run_dir: Path, videos: Path, **other: Any) -> dict[tuple[str, str], manifest.Manifest]:
    """Run the demo's pipeline; the manifests that it wrote, by kind and name."""
    settings = {**SHORTER, "encode.dataset.videos": str(videos), **other}
    started = runs.start(run_dir, "--root", root.as_uri(), settings=settings)
    assert started.finish(900) == 0, started.output
    places = [uri for uri in storage.list_uris(root.as_uri()) if uri.endswith("/manifest.json")]
    found = [manifest.read(uri) for uri in places]
    return {(made.kind, made.name): made for made in sorted(found, key=lambda made: made.fingerprint)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    cut_demo_clips(folder)
    return folder


@pytest.fixture(scope="module")
def finetuned(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], manifest.Manifest]:
    return run(tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("run"), videos, **{"train.steps": 40})


@pytest.fixture(scope="module")
def fresh(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], manifest.Manifest]:
    """A few updates from fresh weights: mush."""
    settings = {"pretrained": {}, "train.steps": 60, "train.learning_rate": 1e-3, "train.ema_decay": 0.9}
    return run(tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("run"), videos, **settings)


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
    net = train_detector.detector(train_detector.weights_kept())
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
