"""The encode step on real video files, in a folder and in a real S3 store, killed and run again."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from latte import storage
from latte.config import build
from latte.data.latents import LatentClips
from latte.errors import LatteError, UserError
from latte.metrics import score_sides
from latte.steps import encode
from latte.storage import manifest, s3
from latte.video import clip_files
from tests import other_stores, small_vae, video_files
from tests.soak import scaled

LATTE = [sys.executable, "-m", "latte.cli"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_vae.publish(tmp_path_factory.mktemp("vae").as_uri())


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Nine good videos of two classes and a truncated one."""
    folder = tmp_path / "videos"
    for number in range(9):
        frames = video_files.moving(16 + 3 * number, seed=number)
        video_files.write(folder / "ab"[number % 2] / f"{number}.mp4", frames)
    whole = (folder / "a/0.mp4").read_bytes()
    (folder / "a/truncated.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def config(root: str, vae: str, videos: Path | str, **settings: object) -> encode.EncodeConfig:
    values = {"root": root, "name": "small", "vae": vae, "image_size": 32, "num_tasks": 4, **settings}
    dataset = {"videos": str(videos), **settings.pop("dataset", {})}
    return build(encode.EncodeConfig, {**values, "dataset": dataset}, "test")


def objects(root: str) -> dict[str, bytes]:
    """Every object of a dataset by URI, but for what says how long it took."""
    found = {}
    for uri in storage.list_uris(root):
        if "/parts/" not in uri:
            data = storage.read_bytes(uri)
            timed = uri.endswith("/manifest.json")
            found[uri] = json.dumps({**json.loads(data), "seconds": 0}).encode() if timed else data
    return found


def shard_times(root: str) -> dict[str, object]:
    """When each shard's record was written."""
    ending = manifest.RECORD_SUFFIX
    if storage.path(root) is not None:
        return {path.name: path.stat().st_mtime_ns for path in storage.local_path(root).rglob(f"shards/*{ending}")}
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    listed = s3.call("list_objects_v2", root, Bucket=bucket, Prefix=prefix + "/").get("Contents", [])
    return {item["Key"]: item["LastModified"] for item in listed if item["Key"].endswith(ending)}


def test_a_dataset_in_a_folder_and_in_s3(root: str, vae: str, videos: Path, tmp_path: Path) -> None:
    where: Path | str = videos
    if storage.path(root) is None:
        where = storage.join(root, "videos")
        for path in videos.rglob("*.mp4"):
            storage.upload(path, storage.join(where, str(path.relative_to(videos))))
    settings = config(root, vae, where)
    done = encode.run(settings)
    assert done.kind == "latents"
    assert done.counts == {"videos": 9, "frames": sum(16 + 3 * n for n in range(9))}
    assert [(r.item, r.reason.split(":")[0]) for r in done.rejects] == [("a/truncated.mp4", "cannot be decoded")]
    facts = ("classes", "image_size", "latent_channels", "latent_size", "scaling_factor", "dtype")
    assert [done.config[key] for key in facts] == [["a", "b"], 32, 4, 16, 0.18215, "float16"]
    assert done.inputs["vae"] == manifest.read(vae).shards[0].sha256
    assert len(done.shards) == 5
    assert manifest.find(done.uri, "latents") == done

    clips = LatentClips(done, tmp_path / "cache")
    assert [(v.id, v.label, v.num_frames, v.fps) for v in clips.videos[:2]] == [
        ("a/0.mp4", 0, 16, 25.0), ("a/2.mp4", 0, 22, 25.0)
    ]  # fmt: skip
    for index in (0, 6):
        frames = clip_files.load_real_clip(clips.videos[index].uri, 2, 2, 5, 32)
        mean, logvar = clips.clip(index, 2, 2, 5)
        wanted_mean, wanted_logvar = encoded(vae, frames)
        np.testing.assert_allclose(mean, wanted_mean, atol=1e-3)
        np.testing.assert_allclose(logvar, wanted_logvar, atol=2e-3)
    assert encode.run(settings) == done


def encoded(vae: str, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The autoencoder's answer to frames (F, S, S, 3), each alone."""
    import mindspore as ms

    from latte import checkpoints
    from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig

    net = AutoencoderKL(AutoencoderKLConfig(**small_vae.MODEL))
    checkpoints.load(net, manifest.read(vae).shards[0].uri)
    pictures = (frames.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)  # (F, 3, S, S)
    parts = [net.encode(ms.Tensor(picture[None])) for picture in pictures]
    mean, logvar = (np.concatenate([part[i].asnumpy() for part in parts]) for i in (0, 1))
    return mean, logvar


def test_tasks_share_the_work_and_give_what_one_gives(vae: str, videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    settings = config(root.as_uri(), vae, videos, num_tasks=2)
    encode.run(settings)
    alone = objects(root.as_uri())
    shutil.rmtree(root)
    planned = encode.plan(settings)
    uri = storage.join(planned.uri, "manifest.json")
    assert planned.metrics["num_tasks"] == 2
    with pytest.raises(LatteError, match="10 videos are not encoded yet"):
        encode.merge(settings, uri)
    for task in (1, 0):
        part = encode.encode_shards(settings, uri, task, 2)
        assert (part.kind, part.counts["encoded_shards"]) == ("encode_part", 1)
    assert encode.encode_shards(settings, uri, 1, 2).counts["encoded_shards"] == 0
    encode.merge(settings, uri)
    assert objects(root.as_uri()) == alone
    with pytest.raises(UserError, match="made with other settings"):
        encode.merge(config(root.as_uri(), vae, videos, image_size=64), uri)


def test_only_what_is_new_is_encoded_and_what_is_gone_is_dropped(vae: str, videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    settings = config(root.as_uri(), vae, videos)
    first = encode.run(settings)
    times = shard_times(root.as_uri())
    video_files.write(videos / "c" / "new.mp4", video_files.moving(20, seed=99))
    shutil.copy(videos / "a/0.mp4", videos / "c" / "copy.mp4")
    (videos / "a/2.mp4").rename(videos / "b/renamed.mp4")
    (videos / "b/1.mp4").unlink()

    planned = encode.plan(settings)
    assert (planned.counts["new_videos"], planned.metrics["num_tasks"]) == (1, 1)
    second = encode.run(settings)
    assert second.uri == first.uri
    assert second.fingerprint != first.fingerprint
    assert second.counts["videos"] == 10
    assert second.config["classes"] == ["a", "b", "c"]
    clips = LatentClips(second, tmp_path / "cache")
    names = {v.id: v for v in clips.videos}
    assert "b/1.mp4" not in names
    assert (names["b/renamed.mp4"].label, names["b/renamed.mp4"].num_frames) == (1, 22)
    assert names["c/copy.mp4"].offset == names["a/0.mp4"].offset
    now = shard_times(root.as_uri())
    assert len(now) == len(times) + 1
    assert now.items() >= times.items()

    video_files.write(videos / "b/1.mp4", video_files.moving(5))
    (videos / "b/1.mp4").unlink()
    assert encode.run(settings) == second


def test_a_shard_that_is_gone_is_made_again_with_the_same_bytes(vae: str, videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    settings = config(root.as_uri(), vae, videos)
    done = encode.run(settings)
    before = objects(root.as_uri())
    storage.delete(done.shards[1].uri)
    short = storage.local_path(done.shards[2].uri)
    short.write_bytes(short.read_bytes()[:-8])
    assert encode.run(settings).shards == done.shards
    assert objects(root.as_uri()) == before


def test_another_autoencoder_or_transform_is_another_place(vae: str, videos: Path, tmp_path: Path) -> None:
    root = (tmp_path / "root").as_uri()
    few = {"dataset": {"limit": 2}}
    others = ({}, {"dtype": "float32"}, {"image_size": 64}, {"max_frames": 5}, {"vae": small_vae.publish(root, seed=2)})
    places = [
        encode.plan(config(root, **{"vae": vae, "videos": videos, **few, **other})).uri.split("/catalogs/")[0]
        for other in others
    ]
    assert len(set(places)) == len(others)
    longer = encode.run(config(root, vae, videos, dataset={"limit": 4}, min_frames=18))
    assert longer.uri == places[0]
    assert "too short: 16 frames, min_frames is 18" in [reject.reason for reject in longer.rejects]


def test_every_third_frame(vae: str, videos: Path, tmp_path: Path) -> None:
    root = (tmp_path / "root").as_uri()
    settings = {"dtype": "float32", "dataset": {"limit": 4}}
    dense = encode.run(config(root, vae, videos, **settings))
    sparse = encode.run(config(root, vae, videos, frame_stride=3, max_frames=7, min_frames=6, **settings))
    assert sparse.uri != dense.uri
    assert sparse.config["frame_stride"] == 3
    every, third = (LatentClips(done, tmp_path / "cache") for done in (dense, sparse))
    lengths = {video.id: video.num_frames for video in every.videos}
    assert {v.id: (v.num_frames, v.fps) for v in third.videos} == {
        name: (min(7, -(-length // 3)), 25 / 3) for name, length in lengths.items()
    }
    short = encode.run(config(root, vae, videos, frame_stride=3, max_frames=7, min_frames=7, **settings))
    assert short.uri == sparse.uri
    assert "too short: 6 frames, min_frames is 7" in [reject.reason for reject in short.rejects]
    here, there = len(third.videos) - 1, len(every.videos) - 1
    for mine, theirs in zip(third.clip(here, 1, 2, 3), every.clip(there, 3, 6, 3), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    # The same frames, told by the encoded ones' numbers.
    np.testing.assert_array_equal(third.real_clip(here, 1, 2, 3), every.real_clip(there, 3, 6, 3))


def test_mirrored_copies_are_added_to_what_is_there(root: str, vae: str, videos: Path, tmp_path: Path) -> None:
    plain = config(root, vae, videos, dtype="float32", dataset={"limit": 4})
    first = encode.run(plain)
    times = shard_times(root)
    settings = plain.model_copy(update={"mirrored": True})
    assert encode.plan(settings).counts["new_videos"] == 4
    done = encode.run(settings)
    assert done.uri == first.uri
    assert done.counts == first.counts
    assert done.fingerprint != first.fingerprint
    assert score_sides.real_digest(done) == score_sides.real_digest(first)
    now = shard_times(root)
    assert now.items() > times.items()
    clips = LatentClips(done, tmp_path / "cache")
    for index in range(4):
        frames = clips.real_clip(index, 2, 1, 5)
        for shown, mirrored in ((frames, False), (frames[:, :, ::-1], True)):
            wanted = encoded(vae, shown)
            for got, want in zip(clips.clip(index, 2, 1, 5, mirrored), wanted, strict=True):
                np.testing.assert_allclose(got, want, atol=1e-4)
    assert encode.run(settings) == done
    assert shard_times(root) == now

    back = encode.run(plain)
    assert back.shards == first.shards
    with pytest.raises(UserError, match="no mirrored copy; encode again with mirrored=true"):
        LatentClips(back, tmp_path / "cache").clip(0, 0, 1, 5, mirrored=True)
    at_once = encode.run(settings.model_copy(update={"root": (tmp_path / "other").as_uri()}))
    again = LatentClips(at_once, tmp_path / "cache")
    np.testing.assert_allclose(again.clip(3, 0, 1, 5, True), clips.clip(3, 0, 1, 5, True), atol=1e-5)
    with pytest.raises(UserError, match="made with other settings"):
        encode.merge(plain, storage.join(encode.plan(settings).uri, "manifest.json"))


def test_mistakes_are_told_before_any_work(vae: str, videos: Path, tmp_path: Path) -> None:
    root = (tmp_path / "root").as_uri()
    with pytest.raises(UserError, match=r"image_size=33: not a multiple of 2, .*; image_size=32 works"):
        encode.run(config(root, vae, videos, image_size=33))
    with pytest.raises(UserError, match="no such object"):
        encode.run(config(root, (tmp_path / "none.json").as_uri(), videos))
    with pytest.raises(UserError, match="expected weights"):
        encode.run(config(root, storage.join(encode.plan(config(root, vae, videos)).uri, "manifest.json"), videos))
    with pytest.raises(UserError, match="no such folder"):
        encode.run(config(root, vae, videos / "none"))
    other = manifest.read(vae).model_copy(update={"uri": root, "config": {"kind": "i3d"}})
    manifest.finish(other)
    with pytest.raises(UserError, match="weights of i3d, expected vae"):
        encode.run(config(root, storage.join(root, "manifest.json"), videos))
    with pytest.raises(UserError, match=r"unknown key dataset\.folder"):
        config(root, vae, videos, dataset={"folder": "x"})


def test_too_many_rejects_end_the_step_with_a_table(vae: str, videos: Path, tmp_path: Path) -> None:
    settings = config((tmp_path / "root").as_uri(), vae, videos, max_reject_share=0.05)
    with pytest.raises(LatteError) as caught:
        encode.run(settings)
    lines = str(caught.value).splitlines()
    assert "1 of 10 videos are rejected, more than max_reject_share=0.05 allows" in lines[0]
    assert "1  cannot be decoded" in lines[1]
    assert "'a/truncated.mp4'" in lines[1]
    assert encode.run(settings.model_copy(update={"max_reject_share": 0.1})).counts["videos"] == 9


def test_a_video_that_took_too_long_stays_out_until_it_may_take_longer(
    vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough to come in many pieces: one that is late for certain is among them.
    video_files.write(tmp_path / "videos" / "long.mp4", video_files.moving(400))
    settings = config((tmp_path / "root").as_uri(), vae, tmp_path / "videos", decode_limit_s=1e-6)
    with monkeypatch.context() as impatient:
        impatient.setattr("latte.video.decoders._PER_FRAME_S", 0.0)
        with pytest.raises(LatteError, match="decoding took longer than 1e-06 s"):
            encode.run(settings)
    with pytest.raises(LatteError, match="1 of 1 videos are rejected"):
        encode.run(settings)
    longer = settings.model_copy(update={"decode_limit_s": 60})
    done = encode.run(longer)
    assert (done.counts["videos"], done.rejects) == (1, [])
    assert encode.run(settings) == done


@pytest.fixture
def command(vae: str, videos: Path, tmp_path: Path) -> list[str]:
    return command_for((tmp_path / "root").as_uri(), vae, videos)


def command_for(root: str, vae: str, videos: Path) -> list[str]:
    path = videos.with_name("encode.yaml")
    path.write_text(yaml.safe_dump(config(root, vae, videos, shard_mb=0.004).model_dump(mode="json")))
    return [*LATTE, "encode", "-c", str(path)]


@pytest.mark.soak
@pytest.mark.parametrize("root", ["file", "seaweedfs", *other_stores.IN_SOAK], indirect=True)
@pytest.mark.timeout(3600)  # 50 kills take 2 minutes on a quiet machine
def test_killed_anywhere_it_ends_with_the_same_bytes(root: str, vae: str, videos: Path) -> None:
    command = command_for(root, vae, videos)
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole_s = time.monotonic() - started
    wanted = objects(root)
    for uri in storage.list_uris(root):
        storage.delete(uri)
    draw = random.Random(0)
    kept: dict[str, object] = {}
    for number in range(scaled(50)):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if number % 2:
            time.sleep(draw.uniform(0, 1) * whole_s)
        else:  # somewhere among the shards, which a small network is quickly through with
            while len(shard_times(root)) == len(kept) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.2))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        times = shard_times(root)
        assert times.items() >= kept.items(), "a published shard was made again"
        kept = times
    assert kept
    subprocess.run(command, check=True, capture_output=True)
    assert objects(root) == wanted
    assert shard_times(root).items() >= kept.items()


def test_the_command_tells_its_rates_and_needs_no_network_for_work_that_is_done(command: list[str]) -> None:
    first = subprocess.run(command, check=True, capture_output=True, text=True)
    for word in ("videos  9", "rejects  1", "      1  cannot be decoded: ", "(for example 'a/truncated.mp4')"):
        assert word in first.stdout
    assert "frames/s" in first.stderr
    assert "MB/s" in first.stderr
    code = (
        "import sys; from latte.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
        "print('mindspore' in sys.modules)"
    )
    again = subprocess.run([sys.executable, "-c", code, *command[3:]], check=True, capture_output=True, text=True)
    assert again.stdout.splitlines()[-1] == "False"


def test_shards_hold_about_as_many_megabytes_of_latents_as_wanted(vae: str, tmp_path: Path) -> None:
    for number in range(12):
        frames = video_files.moving(25, seed=number)
        video_files.write(tmp_path / "videos" / f"{number:02d}.mp4", frames)
    row_bytes = 2 * 4 * 16 * 16 * 2
    settings = config(
        (tmp_path / "root").as_uri(), vae, tmp_path / "videos", num_tasks=1, shard_mb=3 * 25 * row_bytes / 1e6
    )
    shards = [shard for shard in encode.run(settings).shards if "/shards/" in shard.uri]
    assert [shard.items for shard in shards] == [3, 3, 3, 3]
