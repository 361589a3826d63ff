"""Detectors from the files that users have, and the names of scores by them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from latte.errors import UserError
from latte.facts import WeightsFacts
from latte.kinds import KINDS, inception, videomae
from latte.metrics.detection import Detector
from latte.metrics.names import kernel_of
from latte.metrics.protocol import Protocol
from latte.models.detector_configs import InceptionConfig, VideoMAEConfig
from latte.steps.convert import ConvertConfig, run
from latte.storage import manifest
from tests import peers

SMALL_INCEPTION = InceptionConfig(width=0.03125, image_size=75)
SMALL_VIDEOMAE = VideoMAEConfig(
    num_classes=3, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28
)


def converted(tmp_path: Path, kind: str, tensors: dict[str, np.ndarray], **settings: Any) -> manifest.Manifest:
    source = tmp_path / "published.safetensors"
    save_file(tensors, str(source))
    return run(ConvertConfig(kind=kind, source=str(source), root=tmp_path.as_uri(), name=kind, model=settings))


def test_an_inception_of_torchvision_converts_without_what_only_training_needs(tmp_path: Path) -> None:
    tensors = inception.random_weights(1, SMALL_INCEPTION)
    counters = {name.replace("running_var", "num_batches_tracked"): np.int64(7) for name in tensors if "_var" in name}
    extra = {"AuxLogits.fc.weight": np.ones((2, 2), np.float32), **{k: np.array(v) for k, v in counters.items()}}
    made = converted(tmp_path, "inception", tensors | extra, image_size=75)
    facts = WeightsFacts.of(made)
    assert facts.model == {**SMALL_INCEPTION.model_dump(), "form": "fid"}
    reasons = {"a counter of training steps", "a second classifier, of use in training alone"}
    assert {why for _, why in facts.left_out} == reasons
    assert "AuxLogits.fc.weight" in [name for name, _ in facts.left_out]


def test_the_classes_of_an_inception_tell_its_form_and_the_settings_may(tmp_path: Path) -> None:
    config = SMALL_INCEPTION.model_copy(update={"num_classes": 1000})
    tensors = inception.random_weights(1, config)
    told = converted(tmp_path, "inception", tensors, image_size=75)
    assert WeightsFacts.of(told).model["form"] == "torchvision"
    given = converted(tmp_path, "inception", tensors, image_size=75, form="fid")
    assert WeightsFacts.of(given).model["form"] == "fid"
    with pytest.raises(UserError, match="form"):
        converted(tmp_path, "inception", tensors, form="tensorflow")


def test_a_videomae_converts_and_its_heads_may_be_said(tmp_path: Path) -> None:
    tensors = peers.weights(videomae.shapes_of(SMALL_VIDEOMAE), seed=1)
    made = converted(tmp_path, "videomae", tensors, image_size=28, num_attention_heads=2)
    assert WeightsFacts.of(made).model == SMALL_VIDEOMAE.model_dump()
    with pytest.raises(UserError, match="not weights of kind videomae: it holds weights of kind inception"):
        converted(tmp_path, "videomae", inception.random_weights(1, SMALL_INCEPTION))


@pytest.mark.parametrize(("kind", "side"), [("i3d", 64), ("inception", 75)])
def test_random_weights_are_of_the_size_that_is_asked_for(tmp_path: Path, kind: str, side: int) -> None:
    model = {"width": 0.125, "image_size": side}
    weights = run(ConvertConfig(kind=kind, source="random", root=tmp_path.as_uri(), name=kind, model=model))
    assert WeightsFacts.of(weights).model == {**KINDS[kind].config().model_dump(exclude_none=True), **model}
    with pytest.raises(UserError, match="model: unknown key widht"):
        run(ConvertConfig(kind=kind, source="random", root=tmp_path.as_uri(), name=kind, model={"widht": 0.125}))


FID = inception.PUBLISHED[0]


@pytest.mark.parametrize(
    ("kind", "model", "source", "features", "name"),
    [
        ("inception", {}, FID, "pool", "fid"),
        ("inception", {}, FID, "logits", "frechet_inception_logits_aaaaaaaa"),
        ("inception", {"form": "torchvision"}, FID, "pool", "frechet_inception_aaaaaaaa"),
        ("inception", {}, "0" * 64, "pool", "frechet_inception_aaaaaaaa"),
        ("inception", {"form": "torchvision", "num_classes": 1000}, "0" * 64, "pool", "frechet_inception_aaaaaaaa"),
        ("inception", {"image_size": 149}, FID, "pool", "frechet_small_inception"),
        ("inception", {}, None, "pool", "frechet_random_inception"),
        ("videomae", {}, "0" * 64, "pool", "frechet_videomae_aaaaaaaa"),
        ("videomae", {"image_size": 112}, "0" * 64, "pool", "frechet_small_videomae"),
        ("videomae", {}, None, "pool", "frechet_random_videomae"),
    ],
)
def test_scores_are_named_for_what_their_detector_is(
    kind: str, model: dict[str, Any], source: str | None, features: Any, name: str
) -> None:
    weights = manifest.Shard(uri="file:///w", bytes=1, sha256="a" * 64)
    detector = Detector(KINDS[kind], model, weights, source)
    assert detector.metric(Protocol(features=features)) == name
    assert detector.is_published is (source == FID and not model)


def test_kernel_distances_are_named_after_the_frechet_distances_beside_them() -> None:
    assert [kernel_of(name) for name in ("fvd", "fid", "frechet_i3d_pool_1234")] == [
        "kvd",
        "kid",
        "kernel_i3d_pool_1234",
    ]


def test_a_detectors_protocol_is_that_of_its_published_scores() -> None:
    weights = manifest.Shard(uri="file:///w", bytes=1, sha256="a" * 64)
    base = Protocol(num_clips=5)
    own = Detector(KINDS["inception"], {}, weights, FID).protocol({}, base, "d")
    assert own == Protocol(num_clips=5, resolution=299, features="pool", covariance_divisor="n-1")
    own = Detector(KINDS["videomae"], {}, weights, FID).protocol({}, base, "d")
    assert own == Protocol(num_clips=5, features="pool")
    wrong = {"detectors": {"inception": {"resolution": 224}}}
    with pytest.raises(UserError, match=r"protocol\.detectors\.inception\.resolution=224: the detector d is .* 299"):
        Detector(KINDS["inception"], {}, weights, FID).protocol(wrong, base, "d")
    with pytest.raises(UserError, match=r"protocol\.clip_frames=32: the detector d is for clips of 16 frames"):
        Detector(KINDS["videomae"], {}, weights, FID).protocol({}, Protocol(clip_frames=32), "d")
