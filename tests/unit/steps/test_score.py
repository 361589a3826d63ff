"""The score step before any detector runs: what is compared with what, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latte import storage
from latte.config import load
from latte.data import catalog, contents, latents
from latte.errors import DamagedError, StorageError, UserError
from latte.kinds.i3d import PUBLISHED
from latte.metrics import comparison, score_sides
from latte.metrics.detection import Detect, Detector, FeatureWork, publish
from latte.metrics.protocol import Protocol
from latte.steps import score
from latte.storage import manifest
from latte.video import clip_files, digests

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
        clip_files.write_lossless(path, frames, 8)
        items.append({"index": index, "label": None, "video": path.as_uri(), "sha256": storage.sha256_file(path)})
    uri = (root / place).as_uri()
    # Whatever order the list has, the clips are taken by their index.
    storage.write_json(storage.join(uri, "items.json"), items[::-1])
    return finish(root, place, "video_set", config={"num_frames": num_frames, "image_size": image_size})


def dataset(root: Path, lengths: list[int], image_size: int = SIZE, videos: Sequence[dict] = ()) -> str:
    place = f"datasets/{'-'.join(map(str, lengths))}-{image_size}"
    known = list(videos) or [{}] * len(lengths)
    entries = [
        {
            "id": f"v{i}",
            "label": None,
            "num_frames": frames,
            "uri": f"file:///nowhere/v{i}.mp4",
            "shard": 0,
            "offset": 0,
            **known[i],
        }
        for i, frames in enumerate(lengths)
    ]
    index = {"videos": entries, "row_shape": [2, 4, 4, 4], "dtype": "float16", "shards": []}
    uri = storage.join((root / place).as_uri(), latents.INDEX)
    shard = manifest.publish_shard(json.dumps(index).encode(), uri)
    config = {"image_size": image_size, "scaling_factor": 0.18}
    return finish(root, place, "latents", shards=[shard], inputs={"catalog": place}, config=config)


def detector(
    root: Path, kind: str = "i3d", random: bool = True, source: str = "0" * 64, data: bytes = b"not read here"
) -> str:
    place = f"weights/{kind}-{random}-{source[:4]}"
    shard = manifest.publish_shard(data, storage.join((root / place).as_uri(), "model.safetensors"))
    config, inputs = {"kind": kind, "random": random}, {"source": source}
    return finish(root, place, "weights", shards=[shard], config=config, inputs=inputs)


def work(root: Path) -> FeatureWork:
    """As a score's defaults have it."""
    return FeatureWork(root.as_uri(), batch_size=2, clips_per_shard=64, workers=2)


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


def test_a_list_of_clips_that_is_not_the_sets_is_refused(tmp_path: Path) -> None:
    videos, real = video_set(tmp_path, 4), dataset(tmp_path, [40] * 4)
    made = manifest.read(videos)
    uri = storage.join(made.uri, manifest.ITEMS)
    data = storage.read_bytes(uri)
    listed = manifest.Shard(uri=uri, bytes=len(data), sha256=storage.sha256_bytes(data))
    manifest.finish(made.model_copy(update={"shards": [listed]}))
    assert len(manifest.items(manifest.read(videos))) == 4
    storage.write_bytes(uri, data.replace(b'"index": 3', b'"index": 9'))
    with pytest.raises(DamagedError, match=r"items\.json: damaged.*latte verify"):
        score.run(config(tmp_path, videos, real, detector(tmp_path)))


@pytest.mark.parametrize("layout", ["video", "frames"])
def test_a_real_video_that_was_replaced_is_named(root: str, tmp_path: Path, layout: str) -> None:
    uri = storage.join(root, "videos", "a.mp4")
    files = [uri] if layout == "video" else [storage.join(uri, f"{n}.png") for n in range(3)]
    for number, file in enumerate(files):
        storage.write_bytes(file, b"%d" % number)
    listed = catalog.scan(
        catalog.DatasetConfig(videos=storage.join(root, "videos"), layout="videos" if layout == "video" else "frames")
    )
    contents.check(uri, listed.entries[0].digest)
    # Where it is told by its SHA-256, wherever it lies.
    by_content = [storage.sha256_bytes(storage.read_bytes(file)) for file in files]
    contents.check(uri, by_content[0] if layout == "video" else digests.frames_digest(by_content))
    storage.write_bytes(files[-1], b"x")
    with pytest.raises(UserError, match=rf"^{uri}: not the video that was encoded.*encode the dataset again"):
        contents.check(uri, listed.entries[0].digest)
    for file in files:
        storage.delete(file)
    with pytest.raises(UserError, match="no such video"):
        contents.check(uri, listed.entries[0].digest)


@pytest.mark.parametrize("size", [5, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 20 << 20])
@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_a_video_that_was_copied_from_a_bucket_is_known_by_its_etag(s3_root: str, tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    uri = storage.upload(path, storage.join(s3_root, "a.mp4")).uri
    info = storage.stat(uri)
    assert info is not None
    contents.check(path.as_uri(), digests.s3_digest(info.etag, info.bytes))
    contents.check(uri, storage.sha256_file(path))


def test_a_score_of_replaced_real_videos_is_refused_before_the_detector_starts(tmp_path: Path) -> None:
    videos, weights = video_set(tmp_path, 4), detector(tmp_path)
    paths = [tmp_path / f"v{number}.mp4" for number in range(4)]
    for path in paths:
        path.write_bytes(path.name.encode())
    seen = [{"uri": path.as_uri(), "content": storage.sha256_file(path)} for path in paths]
    real = dataset(tmp_path, [40] * 4, videos=seen)
    paths[2].write_bytes(b"another")
    with pytest.raises(UserError, match=r"^real .*v2\.mp4: not the video that was encoded") as refused:
        score.run(config(tmp_path, videos, real, weights))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "features").exists()


OTHER = storage.sha256_bytes(b"not read here")[:8]


@pytest.mark.parametrize(
    ("random", "source", "features", "name"),
    [
        (True, "0" * 64, "logits", "frechet_random_i3d"),
        (False, PUBLISHED[0], "logits", "fvd"),
        (False, PUBLISHED[0], "pool", "frechet_i3d_pool"),
        (False, "0" * 64, "logits", f"frechet_i3d_{OTHER}"),
        (False, "0" * 64, "pool", f"frechet_i3d_pool_{OTHER}"),
    ],
)
def test_only_published_weights_and_features_make_an_fvd(
    tmp_path: Path, random: bool, source: str, features: Any, name: str
) -> None:
    weights = manifest.read(detector(tmp_path, random=random, source=source))
    assert Detector.of(weights).metric(Protocol(features=features)) == name


@pytest.mark.parametrize(
    ("source", "epsilon", "name"),
    [
        (PUBLISHED[0], 1e-3, f"frechet_i3d_{OTHER}"),
        (PUBLISHED[0], 1e-5, "fvd"),
        (PUBLISHED[1], 1e-3, "fvd"),
        ("0" * 64, 1e-3, f"frechet_i3d_{OTHER}"),
    ],
)
def test_a_published_file_makes_an_fvd_with_its_own_epsilon_only(
    tmp_path: Path, source: str, epsilon: float, name: str
) -> None:
    weights = manifest.read(detector(tmp_path, random=False, source=source))
    told = weights.model_copy(update={"config": {**weights.config, "model": {"batch_norm_epsilon": epsilon}}})
    assert Detector.of(told).metric(Protocol()) == name
    assert Detector.of(told).is_published is (name == "fvd")


def test_a_smaller_network_makes_no_fvd(tmp_path: Path) -> None:
    weights = manifest.read(detector(tmp_path))
    small = weights.model_copy(update={"config": {**weights.config, "random": False, "model": {"width": 0.125}}})
    assert Detector.of(small).metric(Protocol()) == "frechet_small_i3d"


def test_clips_of_a_size_that_the_detector_was_not_trained_on_are_refused(tmp_path: Path) -> None:
    videos, real, weights = video_set(tmp_path, 4), dataset(tmp_path, [40] * 4), detector(tmp_path)
    wanted = config(tmp_path, videos, real, weights).model_copy(update={"protocol": {"num_clips": 4, "resolution": 64}})
    with pytest.raises(
        UserError, match=r"protocol\.resolution=64: .* clips of 224 pixels; protocol\.resolution=224 works"
    ):
        score.run(wanted)


def test_weights_of_unknown_origin_are_not_called_fvd() -> None:
    weights = manifest.Manifest(kind="weights", name="w", uri="file:///w", fingerprint="w", config={"kind": "i3d"})
    weights = weights.model_copy(update={"shards": [manifest.Shard(uri="file:///w", bytes=1, sha256="0" * 64)]})
    assert Detector.of(weights).metric(Protocol()) == "frechet_random_i3d"


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
    detect = Detect(Detector.of(manifest.read(weights)), protocol)
    read = manifest.read
    for side in (
        score_sides.real(real, read(real), protocol),
        score_sides.generated(settings.videos, read(settings.videos), protocol),
    ):
        place = detect.place(side, work(tmp_path))
        rows = np.random.default_rng(len(side.role)).standard_normal((4, 3))
        shard = publish(rows, storage.join(place.uri, "features-00000.safetensors"), len(rows))
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
    detect = Detect(Detector.of(known), protocol)
    for number, side in enumerate(sides):
        # The detector's weights cannot be read, so its features must be there.
        place = detect.place(side, work(tmp_path))
        rows = np.random.default_rng(number).standard_normal((4, 3))
        shard = publish(rows, storage.join(place.uri, "features-00000.safetensors"), len(rows))
        features = manifest.Manifest(kind="features", name="f", uri=place.uri, fingerprint=place.fingerprint)
        manifest.finish(features.model_copy(update={"shards": [shard]}))
    mirrored = encoded_again(real, config={**manifest.read(real).config, "mirrored": True})
    second = config(tmp_path, video_set(tmp_path, 4, 17), mirrored, weights, jackknife_groups=2)
    done = [score.run(each) for each in (first, second)]
    table = comparison.compare(*(storage.join(each.uri, "manifest.json") for each in done))
    assert "frechet_random_i3d" in table
    assert score.run(first.model_copy(update={"real": mirrored})) == done[0]
