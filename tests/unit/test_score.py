"""The score step before any detector runs: what is compared with what, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latte import comparison, latents, manifest, score_sides, storage, video
from latte.checkpoints.architectures import PUBLISHED_I3D
from latte.config import load
from latte.errors import StorageError, UserError
from latte.metrics.protocol import Protocol
from latte.steps import score

SIZE = 32


def finish(root: Path, place: str, kind: str, **fields: Any) -> str:
    uri = (root / place).as_uri()
    manifest.finish(manifest.Manifest(kind=kind, name=kind, uri=uri, fingerprint=place, **fields))
    return storage.join(uri, "manifest.json")


def video_set(root: Path, count: int, num_frames: int = 16, image_size: int = SIZE) -> str:
    place = f"videos/{count}-{num_frames}-{image_size}"
    items = []
    for index in range(count):
        path = root / place / f"clip-{index:05d}.mkv"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = np.random.default_rng(index).integers(0, 256, (num_frames, image_size, image_size, 3), dtype=np.uint8)
        video.write_lossless(path, frames, 8)
        items.append({"index": index, "label": None, "video": path.as_uri(), "sha256": storage.sha256_file(path)})
    uri = (root / place).as_uri()
    # Whatever order the list has, the clips are taken by their index.
    storage.write_json(storage.join(uri, "items.json"), items[::-1])
    return finish(root, place, "video_set", config={"num_frames": num_frames, "image_size": image_size})


def dataset(root: Path, lengths: list[int], image_size: int = SIZE) -> str:
    place = f"datasets/{'-'.join(map(str, lengths))}-{image_size}"
    videos = [
        {
            "id": f"v{i}",
            "label": None,
            "num_frames": frames,
            "uri": f"file:///nowhere/v{i}.mp4",
            "shard": 0,
            "offset": 0,
        }
        for i, frames in enumerate(lengths)
    ]
    index = {"videos": videos, "row_shape": [2, 4, 4, 4], "dtype": "float16", "shards": []}
    uri = storage.join((root / place).as_uri(), latents.INDEX)
    shard = manifest.publish_shard(json.dumps(index).encode(), uri)
    config = {"image_size": image_size, "scaling_factor": 0.18}
    return finish(root, place, "latents", shards=[shard], inputs={"catalog": place}, config=config)


def detector(root: Path, kind: str = "i3d", random: bool = True, source: str = "0" * 64) -> str:
    place = f"weights/{kind}-{random}-{source[:4]}"
    shard = manifest.publish_shard(b"not read here", storage.join((root / place).as_uri(), "model.safetensors"))
    config, inputs = {"kind": kind, "random": random}, {"source": source}
    return finish(root, place, "weights", shards=[shard], config=config, inputs=inputs)


PROTOCOL = {"num_clips": 4, "frame_stride": 2}


def config(root: Path, videos: str, real: str, weights: str, **protocol: Any) -> score.ScoreConfig:
    return score.ScoreConfig(
        root=root.as_uri(), name="s", videos=videos, real=real, detector=weights, protocol={**PROTOCOL, **protocol}
    )


def test_refusals_name_the_side_and_what_it_lacks(tmp_path: Path) -> None:
    enough, weights = dataset(tmp_path, [40] * 4), detector(tmp_path)
    videos = video_set(tmp_path, 4)
    cases = [
        (config(tmp_path, video_set(tmp_path, 3), enough, weights), r"3 videos, the protocol needs num_clips=4"),
        (config(tmp_path, video_set(tmp_path, 1, 12), enough, weights), r"12 frames each, the protocol needs 16"),
        (
            config(tmp_path, videos, dataset(tmp_path, [40, 40, 40, 31]), weights),
            r"3 clips, the protocol needs 4: 3 of 4 videos have 32 frames",
        ),
        (config(tmp_path, videos, dataset(tmp_path, [8]), weights), r"0 of 1 videos have 32 frames"),
        (config(tmp_path, videos, dataset(tmp_path, [40] * 4, 64), weights), r"image_size 32, .* has 64"),
        (config(tmp_path, videos, enough, detector(tmp_path, "vae")), r"weights of vae, expected i3d"),
        (config(tmp_path, enough, enough, weights), r"a manifest of latents, expected video_set"),
    ]
    for case, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            score.run(case)
        assert "\n" not in str(caught.value)
    assert not list((tmp_path).glob("scores/*/*/manifest.json"))


def test_missing_and_damaged_clips_are_refused_before_the_detector_starts(tmp_path: Path) -> None:
    # Its weights cannot even be read: whatever came that far would say so.
    weights = detector(tmp_path)
    videos, real = video_set(tmp_path, 4), dataset(tmp_path, [40] * 4)
    clip = storage.local_path(storage.join(manifest.read(videos).uri, "clip-00002.mkv"))
    whole = clip.read_bytes()
    with pytest.raises(UserError, match=r"file:///nowhere/v\d\.mp4: no such video"):
        score.run(config(tmp_path, videos, real, weights))
    clip.write_bytes(whole[:-1] + b"x")
    with pytest.raises(StorageError, match=r"clip-00002\.mkv: damaged") as damaged:
        score.run(config(tmp_path, videos, real, weights))
    clip.unlink()
    with pytest.raises(UserError, match=r"clip-00002\.mkv: no such object") as missing:
        score.run(config(tmp_path, videos, real, weights))
    assert not [error for error in (damaged, missing) if "\n" in str(error.value)]
    assert not (tmp_path / "features").exists()


OTHER = storage.sha256_bytes(b"not read here")[:8]


@pytest.mark.parametrize(
    ("random", "source", "features", "name"),
    [
        (True, "0" * 64, "logits", "frechet_random_i3d"),
        (False, PUBLISHED_I3D[0], "logits", "fvd"),
        (False, PUBLISHED_I3D[0], "pool", "frechet_i3d_pool"),
        (False, "0" * 64, "logits", f"frechet_i3d_{OTHER}"),
        (False, "0" * 64, "pool", f"frechet_i3d_pool_{OTHER}"),
    ],
)
def test_only_published_weights_and_features_make_an_fvd(
    tmp_path: Path, random: bool, source: str, features: Any, name: str
) -> None:
    weights = manifest.read(detector(tmp_path, random=random, source=source))
    assert score.metric_name(weights, Protocol(features=features)) == name


def test_a_smaller_network_makes_no_fvd(tmp_path: Path) -> None:
    weights = manifest.read(detector(tmp_path))
    small = weights.model_copy(update={"config": {**weights.config, "random": False, "model": {"width": 0.125}}})
    assert score.metric_name(small, Protocol()) == "frechet_small_i3d"


def test_clips_of_a_size_that_the_detector_was_not_trained_on_are_refused(tmp_path: Path) -> None:
    videos, real, weights = video_set(tmp_path, 4), dataset(tmp_path, [40] * 4), detector(tmp_path)
    wanted = config(tmp_path, videos, real, weights).model_copy(update={"protocol": {"num_clips": 4, "resolution": 64}})
    with pytest.raises(
        UserError, match=r"protocol\.resolution=64: .* clips of 224 pixels; protocol\.resolution=224 works"
    ):
        score.run(wanted)


def test_weights_of_unknown_origin_are_not_called_fvd() -> None:
    weights = manifest.Manifest(kind="weights", name="w", uri="file:///w", fingerprint="w", config={"kind": "i3d"})
    assert score.metric_name(weights, Protocol()) == "frechet_random_i3d"


def test_the_generated_side_is_the_first_clips_by_index(tmp_path: Path) -> None:
    videos = video_set(tmp_path, 5)
    side = score_sides.generated(videos, manifest.read(videos), Protocol(num_clips=3))
    assert side.count == 3
    for index in range(3):
        frames = np.random.default_rng(index).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)
        np.testing.assert_array_equal(side.load(index), frames)


def test_a_generated_stride_skips_frames(tmp_path: Path) -> None:
    videos = video_set(tmp_path, 2, num_frames=31)
    side = score_sides.generated(videos, manifest.read(videos), Protocol(num_clips=2, generated_stride=2))
    frames = np.random.default_rng(1).integers(0, 256, (31, SIZE, SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(side.load(1), frames[::2])


def test_a_score_config_is_read_from_the_command_line(tmp_path: Path) -> None:
    given = [f"root={tmp_path.as_uri()}", "name=s", "videos=v", "real=r", "detector=d", "protocol.preset=demo"]
    assert load(score.ScoreConfig, None, given).protocol == {"preset": "demo"}


def encoded_again(real: str, **changes: Any) -> str:
    """The manifest of the same dataset after another encoding, beside the first."""
    made = manifest.read(real)
    again = made.model_copy(update={"fingerprint": repr(changes), **changes})
    uri = storage.join(made.uri, f"again-{len(repr(changes))}.json")
    manifest.write(again, uri)
    return uri


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"config": {"image_size": SIZE, "scaling_factor": 0.18, "mirrored": True}}, True),
        ({"inputs": {"catalog": "datasets/40-40-40-40-32", "vae": "other", "text": "clip"}}, True),
        ({"inputs": {"catalog": "one video more"}}, False),
        ({"config": {"image_size": SIZE, "scaling_factor": 0.18, "frame_stride": 3}}, False),
        ({"config": {"image_size": SIZE, "scaling_factor": 0.18, "max_frames": 36}}, False),
        ({"rejects": [manifest.Reject(item="v9", reason="too short")]}, False),
    ],
)
def test_the_real_side_is_its_videos_and_not_what_else_was_encoded(
    tmp_path: Path, changes: dict[str, Any], same: bool
) -> None:
    real = dataset(tmp_path, [40] * 4)
    again = encoded_again(real, **changes)
    sides = [score_sides.real(uri, manifest.read(uri), Protocol(**PROTOCOL)) for uri in (real, again)]
    assert (sides[0].key == sides[1].key) is same


def test_another_port_of_the_detector_is_said_to_be_one_and_an_old_fvd_of_it_is_named_again(tmp_path: Path) -> None:
    weights, real = detector(tmp_path, random=False), dataset(tmp_path, [40] * 4)
    settings = config(tmp_path, video_set(tmp_path, 4), real, weights, jackknife_groups=2)
    protocol = Protocol(**settings.protocol)
    detect = score._Detector(manifest.read(weights).shards[0], score.network_of(manifest.read(weights)), protocol)
    read = manifest.read
    for side in (
        score_sides.real(real, read(real), protocol),
        score_sides.generated(settings.videos, read(settings.videos), protocol),
    ):
        place = score._Place.of(side, detect, settings, protocol)
        rows = np.random.default_rng(len(side.role)).standard_normal((4, 3))
        shard = score._publish(rows, storage.join(place.uri, "features-00000.safetensors"))
        features = manifest.Manifest(kind="features", name="f", uri=place.uri, fingerprint=place.fingerprint)
        manifest.finish(features.model_copy(update={"shards": [shard]}))
    done = score.run(settings)
    assert comparison.distance(done)[0] == f"frechet_i3d_{OTHER}"
    assert any("not from the published file" in note for note in done.config["notes"])
    assert score.run(settings) == done
    old = {("fvd" if key.startswith("frechet") else key): value for key, value in done.metrics.items()}
    manifest.finish(done.model_copy(update={"metrics": old}))
    assert score.run(settings).metrics == done.metrics


def test_scores_before_and_after_mirrored_copies_were_added_are_compared(tmp_path: Path) -> None:
    weights, real = detector(tmp_path), dataset(tmp_path, [40] * 4)
    first = config(tmp_path, video_set(tmp_path, 4), real, weights, jackknife_groups=2)
    protocol = Protocol(**first.protocol)
    sides = [
        score_sides.real(real, manifest.read(real), protocol),
        *[score_sides.generated(v, manifest.read(v), protocol) for v in (first.videos, video_set(tmp_path, 4, 17))],
    ]
    known = manifest.read(weights)
    detect = score._Detector(known.shards[0], score.network_of(known), protocol)
    for number, side in enumerate(sides):
        # The detector's weights cannot be read, so its features must be there.
        place = score._Place.of(side, detect, first, protocol)
        rows = np.random.default_rng(number).standard_normal((4, 3))
        shard = score._publish(rows, storage.join(place.uri, "features-00000.safetensors"))
        features = manifest.Manifest(kind="features", name="f", uri=place.uri, fingerprint=place.fingerprint)
        manifest.finish(features.model_copy(update={"shards": [shard]}))
    mirrored = encoded_again(real, config={**manifest.read(real).config, "mirrored": True})
    second = config(tmp_path, video_set(tmp_path, 4, 17), mirrored, weights, jackknife_groups=2)
    done = [score.run(each) for each in (first, second)]
    table = comparison.compare(*(storage.join(each.uri, "manifest.json") for each in done))
    assert "frechet_random_i3d" in table
    assert score.run(first.model_copy(update={"real": mirrored})) == done[0]
