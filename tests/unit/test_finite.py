"""NaN and infinity are told where they come in, not seen as black pictures at the end."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save, save_file

from latte import finite, storage
from latte.checkpoints import read as read_checkpoint
from latte.data import encoding
from latte.data.catalog import Catalog
from latte.data.encode_plan import merge, published, shard_uri, write_index
from latte.data.encoding import Planned, PlannedShard, Settings, ShardWriter
from latte.data.latents import LatentClips, digests_of
from latte.errors import UserError
from latte.kinds import clip, i3d
from latte.metrics import detection, score_sides
from latte.metrics.protocol import Protocol
from latte.models.configs import ClipTextConfig
from latte.steps.convert import ConvertConfig, run
from latte.storage import manifest
from latte.video.decoders import End, Limits
from tests import small_clip, small_vae, torch_files
from tests.unit.data import test_latents
from tests.unit.steps import test_score

ROOT = Path(__file__).parents[2]
AUTOENCODER = ROOT / "configs" / "demo" / "autoencoder"


def weights_of(kind: str) -> dict[str, np.ndarray]:
    if kind == "latte":
        return dict(read_checkpoint(str(ROOT / "tests" / "data" / "uncond.pt")))
    if kind == "vae":
        return load_file(AUTOENCODER / "diffusion_pytorch_model.safetensors")
    if kind == "i3d":
        return i3d.random_weights(0)
    shapes = clip.shapes_of(ClipTextConfig(**small_clip.MODEL))
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "name", "value", "model", "ending"),
    [
        ("latte", "final_layer.linear.bias", np.nan, {"num_heads": 4}, "safetensors"),
        ("latte", "blocks.1.mlp.fc1.weight", np.inf, {"num_heads": 4}, "ckpt"),
        ("vae", "encoder.conv_out.bias", np.nan, {}, "safetensors"),
        ("vae", "decoder.conv_in.weight", -np.inf, {}, "ckpt"),
        ("i3d", "Mixed_5c.b0.bn.running_var", np.nan, {}, "safetensors"),
        ("clip", "text_model.final_layer_norm.bias", np.inf, {}, "safetensors"),
    ],
)
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_weights_that_are_not_finite_are_not_converted(
    tmp_path: Path, kind: str, name: str, value: float, model: dict[str, Any], ending: str, stored: str
) -> None:
    state = {key: array.astype(stored) for key, array in weights_of(kind).items()}
    state[name].reshape(-1)[-1] = value
    source = tmp_path / "given" / "weights.safetensors"
    source.parent.mkdir()
    save_file(state, source)
    if kind == "vae":
        shutil.copy(AUTOENCODER / "config.json", source.parent)
    settings = {"kind": kind, "source": str(source), "model": model}
    for place in ({"target": str(tmp_path / f"o.{ending}")}, {"root": tmp_path.as_uri(), "name": "w"}):
        with pytest.raises(UserError) as caught:
            run(ConvertConfig(**settings, **place))
        what = "NaN" if np.isnan(value) else "infinity"
        assert str(caught.value).startswith(f"{source}: tensor {name} holds {what}, ")
        assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and source.parent not in path.parents] == []


def test_of_a_training_checkpoint_only_what_is_taken_must_be_finite(tmp_path: Path) -> None:
    state = weights_of("latte")
    broken = {**state, "pos_embed": np.full_like(state["pos_embed"], np.nan)}
    torch_files.save({"model": broken, "ema": state, "args": {"num_heads": 4}}, tmp_path / "a.pt")
    made = run(ConvertConfig(kind="latte", source=str(tmp_path / "a.pt"), target=str(tmp_path / "o.safetensors")))
    assert made.config["part"] == "ema"


def test_an_autoencoder_that_is_not_finite_is_named_before_a_frame_is_encoded(tmp_path: Path) -> None:
    good = manifest.read(small_vae.publish(tmp_path.as_uri()))
    file = good.weights_file()
    state = load(storage.read_bytes(file.uri))
    state["decoder.conv_norm_out.weight"][2] = np.nan
    shard = manifest.publish_shard(save(state), storage.join(good.uri, "broken.safetensors"))
    broken = good.model_copy(update={"shards": [shard]})
    with pytest.raises(UserError) as caught:
        encoding.load_encoder(broken, 1, 16)
    path = storage.local_path(shard.uri)
    assert str(caught.value).startswith(f"{path.as_uri()}: tensor decoder.conv_norm_out.weight holds NaN, ")


ROW_SHAPE = (2, 1, 2, 2)


def encode_rows(values: dict[int, float], frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents of 1, but for frames whose first pixel is in `values`."""
    mean = np.ones((len(frames), 1, 2, 2), np.float32)
    for row, pixel in enumerate(frames[:, 0, 0, 0]):
        mean[row, 0, 1, 1] = values.get(int(pixel), 1)
    return mean, np.zeros_like(mean)


@pytest.mark.parametrize(
    ("dtype", "values", "reasons"),
    [
        ("float16", {}, {}),
        (
            "float16",
            {11: np.nan, 12: np.inf, 13: np.nan},
            {"b": "its latents are not finite in frames 1 to 3"},
        ),
        (
            "float16",
            {0: 7e4, 14: -1e5, 20: np.inf, 29: 1e6, 22: np.nan},
            {
                "a": "its latents are beyond the range of float16 in frame 0; dtype=float32 holds them",
                "b": "its latents are beyond the range of float16 in frame 4; dtype=float32 holds them",
                "c": "its latents are not finite in 2 frames from 0 to 2",
            },
        ),
        ("float32", {0: 7e4, 29: np.nan}, {"c": "its latents are not finite in frame 9"}),
    ],
)
def test_a_video_whose_latents_are_no_numbers_is_a_reject(
    tmp_path: Path, dtype: str, values: dict[int, float], reasons: dict[str, str]
) -> None:
    videos = tuple(Planned(name, f"file:///{name}", f"digest-{name}", None, 1) for name in "abc")
    settings = Settings(16, 4, dtype, ROW_SHAPE, None, 1, Limits())  # batches of 4 reach across videos of 10 frames
    uri = shard_uri(tmp_path.as_uri(), "0" * 16)
    writer = ShardWriter(PlannedShard(uri, videos), settings, lambda frames: encode_rows(values, frames))
    for number, video in enumerate(videos):
        pixels = np.arange(10 * number, 10 * number + 10, dtype=np.uint8)
        writer.add(np.broadcast_to(pixels[:, None, None, None], (10, 16, 16, 3)))
        writer.end_video(video, End(number, 10, 25.0))
    writer.flush()
    shard = writer.publish()
    record = manifest.read_record(uri)
    assert record is not None
    assert {reject["id"]: reject["reason"] for reject in record["rejects"]} == reasons
    tensors = load(storage.read_bytes(shard.uri))
    assert set(tensors) == {f"digest-{name}" for name in "abc" if name not in reasons}
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def test_stored_latents_that_are_not_finite_are_named_by_their_video(tmp_path: Path) -> None:
    place = storage.join(tmp_path.as_uri(), "datasets", "x")
    made = test_latents.write_shard(place, 1, "ab")
    record = manifest.read_record(made.uri)
    assert record is not None
    tensors = load(storage.read_bytes(made.uri))
    tensors["digest-a"][3, 0, 0, 0, 0] = np.nan
    data = bytearray(storage.read_bytes(made.uri))
    video = next(video for video in record["videos"] if video["id"] == "a.mp4")
    at, rows = video["offset"], tensors["digest-a"]
    data[at : at + rows.nbytes] = rows.tobytes()
    video["digests"] = digests_of(rows.tobytes(), rows.nbytes // len(rows))
    facts = {key: record[key] for key in ("videos", "rejects", "row_shape", "dtype")}
    manifest.publish_shard(bytes(data), made.uri, 2, **facts)
    catalog = Catalog([test_latents.entry(n) for n in "ab"], ["one"], [])
    merged = merge(catalog, published(place, Limits()), min_frames=1)
    index = write_index(merged, place, storage.join(place, "catalogs", "0"), test_latents.ROW_SHAPE, "float16", place)
    latents = manifest.Manifest(
        kind="latents", name="x", uri=place, fingerprint="f", shards=[*merged.shards, index],
        config={"scaling_factor": 0.5, "image_size": 16},
    )  # fmt: skip
    clips = LatentClips(latents, tmp_path / "cache")
    assert np.isfinite(clips.clip(0, 0, 1, 3)).all()
    with pytest.raises(UserError, match=r"video a\.mp4: its latents are not finite in frame 3; encode under another"):
        clips.clip(0, 1, 2, 2)


def test_pixels_that_are_not_finite_do_not_turn_black() -> None:
    images = np.zeros((6, 3, 2, 2), np.float32)
    assert finite.pixels(images).tolist() == np.full((6, 2, 2, 3), 128).tolist()
    images[3:5, 1, 0, 0] = np.inf
    with pytest.raises(ArithmeticError, match="not finite in frames 3 to 4"):
        finite.pixels(images)


def test_numbers_that_are_not_finite_are_found_wherever_they_lie() -> None:
    large = np.zeros((3, (1 << 20) + 7), np.float32)
    assert finite.blemish(large) == ""
    large[2, -1] = -np.inf
    assert finite.blemish(large) == "infinity"
    large[1, 5] = np.nan
    assert finite.blemish(large) == "NaN"
    assert finite.bad_rows(large) == [1, 2]
    assert (
        finite.blemish(np.array(["NaN"])) == finite.blemish(np.zeros((0, 3))) == finite.blemish(np.ones(3, int)) == ""
    )


def test_features_that_cannot_be_summed_are_named_by_their_clip_and_not_published(tmp_path: Path) -> None:
    weights = i3d.random_weights(0)
    weights["logits.conv3d.weight"] = weights["logits.conv3d.weight"] * np.float32(1e38)
    place = storage.join(tmp_path.as_uri(), "weights/i3d")
    shard = manifest.publish_shard(save(weights), storage.join(place, "model.safetensors"))
    videos = test_score.video_set(tmp_path, 2)
    protocol = Protocol(num_clips=2)
    side = score_sides.generated(videos, manifest.read(videos), protocol)
    detect = detection.Detect(detection.Detector(i3d.KIND, {}, shard, None), protocol)
    work = detection.FeatureWork(tmp_path.as_uri(), batch_size=1, clips_per_shard=2, workers=1)
    with pytest.raises(UserError, match=r"generated clip .*/clip-00000\.mkv: a feature .* is not finite, or not below"):
        detection.features(side, detect.place(side, work), detect, work)
    assert not (tmp_path / "features").exists()


def test_published_features_that_are_not_finite_are_named_by_their_clip(tmp_path: Path) -> None:
    videos = test_score.video_set(tmp_path, 4)
    side = score_sides.generated(videos, manifest.read(videos), Protocol(num_clips=4))
    place = storage.join(tmp_path.as_uri(), "features", "0")
    shards = []
    for number, bad in enumerate((None, 1)):
        rows = np.ones((2, 400), np.float32)
        if bad is not None:
            rows[bad, 7] = np.nan
        uri = storage.join(place, f"features-{number:05d}.safetensors")
        shards.append(manifest.publish_shard(save({"features": rows}), uri, 2))
    collected = manifest.Manifest(kind="features", name="f", uri=place, fingerprint="f", shards=shards)
    with pytest.raises(UserError, match=r"features-00001\.safetensors: generated clip .*/clip-00003\.mkv: a feature"):
        detection._read(side, collected)
