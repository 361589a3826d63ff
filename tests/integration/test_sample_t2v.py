"""A folder as Latte-1 is published becomes videos of captions: `latte convert` of its parts, `latte sample`."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from latte import storage
from latte.cli import cli
from latte.errors import UserError
from latte.facts import VideoSetFacts
from latte.kinds import t5
from latte.models.t2v_configs import T5Config
from latte.steps import sample
from latte.storage import manifest
from latte.video import clip_files
from tests import peers, published, small_clip

TOKENIZER = Path(__file__).parents[1] / "data" / "t5" / "spiece.model"
SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": False, "steps_offset": 1}
CAPTIONS = ["A small cactus", "a dog, walking", "two videos of a model"]


def latte(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("t2v")
    parts = {
        "transformer": ("convert-t2v", published.published_t2v),
        "text_encoder": ("convert-t5", published.published_t5),
        "vae": ("convert-vae", published.published_vae),
    }
    for part, (name, build) in parts.items():
        made = published.published(name, build, tmp_path_factory.mktemp(part))
        made.weights.pop("encoder.embed_tokens.weight", None)
        published.save_sharded(made.weights, root / "Latte-1" / part, "diffusion_pytorch_model")
        (root / "Latte-1" / part / "config.json").write_text(made.config.read_text())
    (root / "Latte-1" / "scheduler").mkdir()
    (root / "Latte-1" / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    uris = {}
    for kind, more in (("latte_t2v", ["trained_on.image_size=8"]), ("t5", []), ("vae", [])):
        target = root / f"{kind}.safetensors"
        done = latte("convert", "--kind", kind, "--source", str(root / "Latte-1"), "--target", str(target), *more)
        assert done.exit_code == 0, done.output
        uris[kind] = f"{target}{manifest.BESIDE_SUFFIX}"
    return SimpleNamespace(root=root, **uris)


def config(world: SimpleNamespace, root: Path, lines: list[str], **changes: Any) -> sample.SampleConfig:
    (root / "captions.txt").write_text("".join(f"{line}\n" for line in lines))
    values = {
        "root": root.as_uri(),
        "name": "set",
        "checkpoint": world.latte_t2v,
        "vae": world.vae,
        "captions": str(root / "captions.txt"),
        "text_encoder": world.t5,
        "tokenizer": str(TOKENIZER),
        "num_videos": 3,
        "batch_size": 3,
        "num_sampling_steps": 4,
        "cfg_scale": 3.0,
        "cfg_channels": "all",
    }
    return sample.SampleConfig(**{**values, **changes})


def videos(made: manifest.Manifest) -> list[np.ndarray]:
    items = storage.read_json(storage.join(made.uri, "items.json"))
    paths = [storage.path(item["video"]) for item in items]
    return [clip_files.read_lossless(path) for path in paths if path is not None]  # each (F, H, W, 3)


def test_each_video_follows_from_its_own_caption(world: SimpleNamespace, tmp_path: Path) -> None:
    made = sample.run(config(world, tmp_path, CAPTIONS))
    first = videos(made)
    assert [video.shape for video in first] == [(2, 8, 8, 3)] * 3
    assert VideoSetFacts.of(made).notes == []
    items = storage.read_json(storage.join(made.uri, "items.json"))
    assert [item["caption"] for item in items] == CAPTIONS
    others = sample.run(config(world, tmp_path, [CAPTIONS[0], "something else " * 30, CAPTIONS[2]]))
    assert others.uri != made.uri
    equal = [np.array_equal(one, other) for one, other in zip(first, videos(others), strict=True)]
    assert equal == [True, False, True]
    alone = sample.run(config(world, tmp_path, CAPTIONS, name="alone", batch_size=1))
    for one, other in zip(first, videos(alone), strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert sample.run(config(world, tmp_path, CAPTIONS)).uri == made.uri  # done, nothing is loaded
    # Capitals and what pages leave do not count.
    same = sample.run(config(world, tmp_path, ["a small cactus", "<b>a dog, walking</b>", CAPTIONS[2]], name="same"))
    for one, other in zip(first, videos(same), strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_are_made_of_one_frame(world: SimpleNamespace, tmp_path: Path) -> None:
    changes = {"num_frames": 1, "cfg_scale": 1.0, "method": "dpm-solver++", "num_videos": 1, "batch_size": 1}
    made = sample.run(config(world, tmp_path, CAPTIONS, **changes))
    assert [video.shape for video in videos(made)] == [(1, 8, 8, 3)]
    assert VideoSetFacts.of(made).num_frames == 1
    with pytest.raises(UserError, match=r"num_frames=3: .* makes videos of 2 frames, or images with num_frames=1"):
        sample.plan(config(world, tmp_path, CAPTIONS, num_frames=3))


def test_captions_that_are_cut_or_cleaned_away_are_counted(world: SimpleNamespace, tmp_path: Path) -> None:
    planned = sample.plan(config(world, tmp_path, ["a long caption " * 60, "a dog", "http://www.example.com"]))
    cut, empty = planned.config["notes"]
    assert cut.startswith("1 of 3 captions are longer than 120 tokens and cut off there, the longest by ")
    assert empty == "1 of 3 captions are empty once cleaned, as published"


def test_what_does_not_fit_is_refused_before_work(world: SimpleNamespace, tmp_path: Path) -> None:
    clip, clip_tokenizer = small_clip.publish(tmp_path)
    narrow = tmp_path / "narrow.safetensors"
    other = {**published.T5, "d_model": 16}
    weights = peers.weights(t5.shapes_of(T5Config(**other)), seed=0)
    published.save_sharded(weights, tmp_path / "text_encoder")
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({**other, "feed_forward_proj": "gated-gelu"}))
    source = str(tmp_path / "text_encoder")
    assert latte("convert", "--kind", "t5", "--source", source, "--target", str(narrow)).exit_code == 0
    cases: list[tuple[dict[str, Any], str]] = [
        ({"text_encoder": clip}, "weights of clip, expected t5"),
        ({"text_encoder": f"{narrow}{manifest.BESIDE_SUFFIX}"}, r"embeddings \(120, 16\), the model takes \(120, 24\)"),
        ({"tokenizer": clip_tokenizer}, "not a tokenizer"),
        ({"tokenizer": str(tmp_path / "no.model")}, r"no\.model: no such file"),
        (dict.fromkeys(("captions", "text_encoder", "tokenizer")), "conditioned on text; give captions"),
        ({"checkpoint": world.vae}, "weights of vae, expected latte or latte_t2v"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            sample.plan(config(world, tmp_path, CAPTIONS, **changes))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"captions: the caption 'aaa.* has 20000 characters, expected at most 10000"):
        sample.plan(config(world, tmp_path, ["a" * 20_000]))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"empty\.txt: no captions in it"):
        sample.plan(config(world, tmp_path, CAPTIONS, captions=str(tmp_path / "empty.txt")))
    assert not (tmp_path / "videos").exists()
