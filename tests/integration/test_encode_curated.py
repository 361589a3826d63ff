"""The encode step behind a curation gate: shots and crops in the latents, nights, tasks, the numbers of the report."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latte.config import build
from latte.data import encoding
from latte.data.latents import LatentClips
from latte.facts import LatentsFacts, PlanMetrics
from latte.report import sections
from latte.steps import encode
from latte.storage import manifest
from latte.video.views import View
from tests import small_vae, video_files

SIZE = 32
RULES = {
    "shots": {"min_frames": 8}, "letterbox": {}, "black": {}, "frozen": {}, "doubles": {}, "max_reject_share": 0.8,
}  # fmt: skip


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_vae.publish(tmp_path_factory.mktemp("vae").as_uri())


def config(vae: str, folder: Path, root: str = "root", **settings: object) -> encode.EncodeConfig:
    values = {"root": (folder / root).as_uri(), "name": "small", "vae": vae, "image_size": SIZE, "curate": RULES}
    values |= {"dataset": {"videos": str(folder / "videos")}, "max_reject_share": 0} | settings
    return build(encode.EncodeConfig, values, "test")


def write(folder: Path, name: str, frames: np.ndarray, **options: object) -> None:
    video_files.write(folder / "videos" / name, frames, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated")
    frames = [video_files.panned(12, seed=seed) for seed in range(4)]
    boxed = np.zeros_like(frames[0])
    boxed[:, :, 12:52] = frames[0][:, :, 12:52]
    write(folder, "boxed.mp4", boxed)
    write(folder, "cut.mp4", np.concatenate([frames[1], frames[2][:4], frames[3]]))
    write(folder, "black.mp4", np.zeros_like(frames[0]))
    return folder


@pytest.fixture(scope="module")
def latents(vae: str, folder: Path) -> manifest.Manifest:
    return encode.run(config(vae, folder, num_tasks=1))


def clips_of(latents: manifest.Manifest, folder: Path) -> LatentClips:
    return LatentClips(latents, folder / "cache")


def rejects_of(latents: manifest.Manifest) -> dict[str, str]:
    return {reject.item: reject.reason for reject in latents.rejects}


def test_shots_are_videos_and_what_is_left_out_says_why(latents: manifest.Manifest, folder: Path) -> None:
    videos = {video.id: video for video in clips_of(latents, folder).videos}
    assert {name: video.num_frames for name, video in videos.items()} == {
        "boxed.mp4": 12, "cut.mp4#0-12": 12, "cut.mp4#16-28": 12
    }  # fmt: skip
    assert View.of(videos["cut.mp4#16-28"].view) == View(16, 28)
    assert rejects_of(latents) == {
        "black.mp4": "curate.black: 1 of its frames are black, max_share is 0.5",
        "cut.mp4#12-16": "curate.shots: 1 shot of fewer frames than min_frames, 8",
    }
    facts = LatentsFacts.of(latents)
    assert facts.curate is not None
    assert facts.curate["shots"]["threshold"] == 27


def test_latents_and_real_clips_are_of_the_same_frames_and_crop(
    latents: manifest.Manifest, folder: Path, vae: str
) -> None:
    clips = clips_of(latents, folder)
    encoder = encoding.load_encoder(manifest.read(vae), 8, SIZE)
    for index, video in enumerate(clips.videos):
        view = View.of(video.view)
        assert view is not None
        path = folder / "videos" / video.id.partition("#")[0]
        ((frames, _),) = video_files.decode(path, size=SIZE, view=view)
        real = clips.real_clip(index, 3, 2, 4)
        np.testing.assert_array_equal(real, frames[3:10:2])
        mean, _ = encoder(real)
        np.testing.assert_allclose(clips.clip(index, 3, 2, 4)[0], mean, atol=2e-2, rtol=2e-2)
        if video.id == "boxed.mp4":
            assert real.min(axis=(0, 1, 3)).max() > 20  # no column is a bar
            left, _, width, _ = view.crop or (0, 0, 0, 0)
            assert 12 <= left <= 14
            assert 50 <= left + width <= 52


def test_three_tasks_decide_as_one_does(latents: manifest.Manifest, folder: Path, vae: str) -> None:
    given = config(vae, folder, root="other", num_tasks=3, decode_workers=3)
    planned = encode.plan(given)
    count = PlanMetrics.of(planned).num_tasks
    assert count == 3
    for task in reversed(range(count)):
        encode.encode_shards(given, planned.file, task, count)
    merged = encode.merge(given, planned.file)
    assert (merged.rejects, merged.fingerprint) == (latents.rejects, latents.fingerprint)
    told = [
        [(video.id, video.num_frames, video.view, video.content) for video in clips_of(each, folder).videos]
        for each in (merged, latents)
    ]
    assert told[0] == told[1]


def test_the_report_counts_what_each_rule_did(latents: manifest.Manifest, folder: Path) -> None:
    rows = sections.data(clips_of(latents, folder), latents)["curation"]
    assert {row["rule"]: (row["left_out"], row["did"]) for row in rows} == {
        "shots": (1, "2 of the videos are shots"), "letterbox": (0, "1 video was cropped"), "black": (1, ""),
        "frozen": (0, ""), "doubles": (0, ""),
    }  # fmt: skip


def test_a_night_takes_in_what_is_new_and_no_double_of_what_is_there(
    latents: manifest.Manifest, folder: Path, vae: str
) -> None:
    halved = [np.asarray(Image.fromarray(frame).resize((48, 36))) for frame in video_files.panned(12, seed=1)]
    write(folder, "a.mp4", np.stack(halved), options={"crf": "33"})
    write(folder, "z.mp4", video_files.panned(12, seed=9))
    before = {shard.uri: shard.sha256 for shard in latents.shards}
    given = config(vae, folder, num_tasks=1)
    planned = encode.plan(given)
    assert planned.counts["new_videos"] == 1
    encode.encode_shards(given, planned.file, 0, 1)
    night = encode.merge(given, planned.file)
    assert rejects_of(night)["a.mp4"].startswith("curate.doubles: shows what 'cut.mp4#0-12' shows, ")
    assert [video.id for video in clips_of(night, folder).videos][-1] == "z.mp4"
    kept = {shard.uri: shard.sha256 for shard in night.shards if shard.uri in before}
    assert all(before[uri] == sha256 for uri, sha256 in kept.items() if not uri.endswith("/index.json"))
    assert encode.run(given).fingerprint == night.fingerprint
