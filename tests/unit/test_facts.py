"""Facts between steps: what is said is what is stored, what an older version did not say has a default."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from latte import storage
from latte.errors import UserError
from latte.facts import (
    DiffusionFacts,
    LatentsFacts,
    LatteFacts,
    RunFacts,
    RunMetrics,
    ScoreFacts,
    ScoreMetrics,
    TrainSettings,
    VideoSetFacts,
    WeightsFacts,
)
from latte.places import Place
from latte.storage import manifest

LATTE: dict[str, Any] = {
    "model": {"depth": 2}, "diffusion": {"noise_schedule": "linear"}, "classes": ["cat"], "image_size": 64,
    "latent_size": 8, "scaling_factor": 0.5, "vae": "v" * 64,
}  # fmt: skip
STORED: list[tuple[type, dict[str, Any]]] = [
    (
        WeightsFacts,
        {"kind": "vae", "model": {"widths": [8, 16]}, "random": False, "seed": None, "part": ""},
    ),
    (LatteFacts, {**LATTE, "vae": None, "vae_name": "sd-vae-ft-ema"}),
    (RunFacts, {**LATTE, "text": None, "reinitialised": [], "train": {"steps": 7, "latents": "l", "init_from": None}}),
    (
        LatentsFacts,
        {"classes": [], "image_size": 64, "scaling_factor": 0.18, "frame_stride": 1, "max_frames": None},
    ),
    (VideoSetFacts, {"step": 0, "num_frames": 16, "num_sampling_steps": "ddim50", "labels": ["cat", 1], "fps": 8.0}),
    (ScoreFacts, {"protocol": {"num_clips": 4}, "protocol_digest": "d", "split": None, "notes": ["a note"]}),
]


def made(kind: Any = "latents", **fields: Any) -> manifest.Manifest:
    return manifest.Manifest(kind=kind, name="n", uri="file:///data/n/1", fingerprint="f" * 64, **fields)


@pytest.mark.parametrize(("facts", "values"), STORED, ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_said_is_stored_to_the_byte(facts: Any, values: dict[str, Any]) -> None:
    read = facts.of(made(config=values))
    assert json.dumps(read.said(), sort_keys=True) == json.dumps(values, sort_keys=True)
    assert json.dumps(facts(**values).said(), sort_keys=True) == json.dumps(values, sort_keys=True)


def test_facts_that_an_older_version_did_not_say_have_a_default() -> None:
    latents = LatentsFacts.of(made(config={"image_size": 64, "scaling_factor": 0.5}))
    assert (latents.frame_stride, latents.max_frames, latents.videos, latents.mirrored) == (None, None, None, False)
    assert WeightsFacts.of(made("weights")).random is None
    assert VideoSetFacts.of(made("video_set")).notes == []
    run = RunFacts.of(made("checkpoint", config=LATTE))
    assert (run.train.init_from, run.train.frame_stride, run.log_sha256, run.text) == (None, 1, None, None)
    assert ScoreMetrics.of(made("score", metrics={"fvd": 3.0})).interval_low is None


def test_facts_of_a_later_version_are_passed_over() -> None:
    later = {**LATTE, "rotary": {"base": 10_000}, "diffusion": {"noise_schedule": "cosine", "zero_snr": True}}
    assert LatteFacts.of(made("weights", config=later)).diffusion == DiffusionFacts(noise_schedule="cosine")
    assert RunMetrics.of(made("checkpoint", metrics={"step": 3, "loss": 0.5, "entropy": 1.0})).step == 3


def test_a_fact_that_is_missing_or_of_another_type_is_named() -> None:
    with pytest.raises(UserError, match=r"latents \S+/n/1: config\.image_size of its manifest: Field required"):
        LatentsFacts.of(made(config={"scaling_factor": 0.5}))
    with pytest.raises(UserError, match=r"config\.diffusion\.noise_schedule of its manifest: Field required"):
        LatteFacts.of(made("weights", config={**LATTE, "diffusion": {}}))
    with pytest.raises(UserError, match=r"checkpoint .*: metrics\.step of its manifest: .* valid integer"):
        RunMetrics.of(made("checkpoint", metrics={"step": "last"}))


def test_the_settings_of_a_run_are_kept_whole() -> None:
    assert TrainSettings(steps=7, latents="l", optimizer={"beta": 0.9}).said() == {
        "steps": 7, "latents": "l", "optimizer": {"beta": 0.9},
    }  # fmt: skip


def test_a_manifest_of_a_kind_that_is_not_known_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**made().model_dump(), "kind": "embedding"}))
    known = r"this version knows weights, .*hello.*$"
    with pytest.raises(UserError, match=r"^latents \S+: a manifest of embedding, " + known):
        manifest.read(path, "latents", "latents")
    for kind in get_args(manifest.Kind):
        path.write_text(json.dumps({**made().model_dump(), "kind": kind}))
        assert manifest.read(path).kind == kind


def test_a_place_knows_what_it_holds_and_looks_once(tmp_path: Path) -> None:
    place = Place.under("latents", "0123456789abcdef" * 4, tmp_path.as_uri(), "datasets", "d")
    assert place.uri == f"{tmp_path.as_uri()}/datasets/d/0123456789abcdef"
    assert place.found is None
    done = manifest.finish(place.manifest("d", counts={"videos": 2}))
    assert (done.kind, done.fingerprint, done.uri) == ("latents", place.fingerprint, place.uri)
    assert place.found is None, "it was looked up before"
    again = Place.under("latents", place.fingerprint, tmp_path.as_uri(), "datasets", "d")
    assert again == place
    assert again.found == done
    storage.delete(done.file)
    assert again.found == done
    with pytest.raises(UserError, match=r"'\.\.' is not a name under it"):
        Place.under("latents", place.fingerprint, tmp_path.as_uri(), "datasets", "..")
