"""The whole DAG on real video over a real S3 server: killed in every step, run again unchanged, run with one more."""

import shutil
import time
from pathlib import Path

import pytest

from latte import manifest, storage
from pipelines.demo.data import cut_demo_clips
from pipelines.store import BUCKET, Store
from tests.e2e import runs

# A run is killed in each of these tasks, this long after the task started; kfp.local decides on their order.
KILLS = {
    "convert vae": 0.8,
    "convert i3d": 1.0,
    "encode: plan": 0.3,
    "encode: shards": 4.0,
    "encode: merge": 0.3,
    "train": 8.0,
    "sample trained: shards": 5.0,
    "score trained": 5.0,
    "report": 1.5,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of each class, and a truncated one among them."""
    everything = tmp_path_factory.mktemp("all-clips")
    cut_demo_clips(everything)
    folder = tmp_path_factory.mktemp("clips")
    for group in sorted(path for path in everything.iterdir() if path.is_dir()):
        (folder / group.name).mkdir()
        for clip in sorted(group.glob("*.mp4"))[:3]:
            shutil.copy(clip, folder / group.name)
    first = min(folder.rglob("*.mp4"))
    whole = first.read_bytes()
    (first.parent / "truncated.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


@pytest.fixture(scope="module")
def finished(store: Store, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict]:
    """A run that was killed in every step and started again each time; its folder, root and settings."""
    run_dir = tmp_path_factory.mktemp("run")
    root = f"s3://{BUCKET}/e2e"
    settings = {**runs.TINY, "encode.dataset.videos": str(videos)}
    known: dict[str, str] = {}
    left = dict(KILLS)
    while left:
        run = runs.start(run_dir, "--root", root, settings=settings)
        task = run.wait_for(*left)
        time.sleep(left.pop(task))
        run.process.kill()
        run.process.communicate()
        assert run.gone(), f"killed in {task}: processes are left"
        now = published(root)
        assert {uri: etag for uri, etag in now.items() if uri in known} == known, f"published again in {task}"
        known = now
    run = runs.start(run_dir, "--root", root, settings=settings)
    assert run.finish() == 0, run.output
    now = published(root)
    assert {uri: now.get(uri) for uri in known} == known
    return run_dir, root, settings


def published(root: str) -> dict[str, str]:
    """Every object that has a record, with what tells whether it was written again."""
    uris = storage.list_uris(root)
    shards = [uri.removesuffix(manifest.RECORD_SUFFIX) for uri in uris if uri.endswith(manifest.RECORD_SUFFIX)]
    return {uri: last_modified(uri) for uri in shards}


def last_modified(uri: str) -> str:
    import boto3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    answer = boto3.session.Session().client("s3", region_name="us-east-1").head_object(Bucket=bucket, Key=key)
    return f"{answer['LastModified']} {answer['ETag']}"


def find(root: str, kind: str) -> list[manifest.Manifest]:
    places = [uri for uri in storage.list_uris(root) if uri.endswith("/manifest.json")]
    return [found for uri in places if (found := manifest.read(uri)).kind == kind]


def test_a_run_killed_in_every_step_completes(finished: tuple[Path, str, dict]) -> None:
    run_dir, root, _ = finished
    for kind, count in (
        ("weights", 2),
        ("latents", 1),
        ("checkpoint", 1),
        ("video_set", 2),
        ("score", 2),
        ("report", 1),
    ):
        found = find(root, kind)
        assert len(found) == count, kind
        for made in found:
            for shard in made.shards:
                assert storage.sha256_bytes(storage.read_bytes(shard.uri)) == shard.sha256
    assert "frechet_random_i3d" in find(root, "score")[0].metrics
    assert "fvd" not in find(root, "score")[0].metrics
    assert (run_dir / "report.html").read_text().lower().startswith("<!doctype html>")


def test_no_step_imports_torch_even_where_it_is_installed_and_broken(finished: tuple[Path, str, dict]) -> None:
    assert not runs.torch_imports(finished[0]).exists(), runs.torch_imports(finished[0]).read_text()


def test_the_truncated_video_is_a_reject_with_its_reason(finished: tuple[Path, str, dict]) -> None:
    latents = find(finished[1], "latents")[0]
    assert [reject.item.endswith("truncated.mp4") for reject in latents.rejects] == [True]
    assert latents.rejects[0].reason
    assert latents.counts["videos"] == 9


def test_only_manifests_metrics_and_the_page_went_through_kfp(finished: tuple[Path, str, dict]) -> None:
    for path in (finished[0] / "kfp").rglob("*"):
        if path.is_file() and path.name != "page":
            assert path.stat().st_size < 200_000, path
            assert path.name in ("executor_output.json",) or path.read_text().lstrip().startswith("{"), path


def test_running_again_does_nothing_and_one_more_video_encodes_that_one_only(
    finished: tuple[Path, str, dict], videos: Path
) -> None:
    run_dir, root, settings = finished
    before = {uri: last_modified(uri) for uri in storage.list_uris(root)}
    again = runs.start(run_dir, "--root", root, settings=settings)
    assert again.finish() == 0, again.output
    assert {uri: last_modified(uri) for uri in storage.list_uris(root)} == before
    assert str(run_dir / "report.html") in again.output

    donor = min(videos.rglob("*.mp4"))
    from latte import video

    frames = video.load_real_clip(donor.as_uri(), 0, 1, 16, 64)
    video.write_preview(videos / donor.parent.name / "one more.mp4", frames[::-1], fps=12)
    more = runs.start(run_dir, "--root", root, settings=settings)
    assert more.finish() == 0, more.output
    shards = {uri for uri in published(root) if "/datasets/" in uri}
    new = shards - set(before)
    assert len(new) == 1
    assert manifest.read_record(new.pop())["shard"]["items"] == 1
    assert {uri: last_modified(uri) for uri in before if "/datasets/" in uri and uri in shards} == {
        uri: etag for uri, etag in before.items() if uri in shards
    }
