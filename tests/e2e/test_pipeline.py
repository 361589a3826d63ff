"""The whole DAG on real video over a real S3 server: killed in every step, run again unchanged, run with one more."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from latte import storage
from latte.storage import manifest
from pipelines import store as stores
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
# What a run makes, and how many.
KINDS = {"weights": 2, "latents": 1, "checkpoint": 1, "video_set": 2, "score": 2, "report": 1}


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
    # Encoding is fanned out, sampling is not.
    settings = {**runs.TINY, "encode.dataset.videos": str(videos), "encode.num_tasks": 2}
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
    for kind, count in KINDS.items():
        found = find(root, kind)
        assert len(found) == count, kind
        for made in found:
            for shard in made.shards:
                assert storage.sha256_bytes(storage.read_bytes(shard.uri)) == shard.sha256
    assert "frechet_small_i3d" in find(root, "score")[0].metrics
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


@pytest.fixture(scope="module")
def own(finished: tuple[Path, str, dict], tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run with a store of its own, into which the finished run's root was copied under another name."""
    _, root, settings = finished
    run_dir = tmp_path_factory.mktemp("own") / "runs" / "demo"
    contents = {uri.removeprefix(root): storage.read_bytes(uri) for uri in storage.list_uris(root)}
    with stores.serve(run_dir / "store") as store, pytest.MonkeyPatch.context() as patched:
        for key, value in store.environment.items():
            patched.setenv(key, value)
        for name, data in contents.items():
            storage.write_bytes(f"s3://{BUCKET}/demo{name}", data)
    run = runs.start(run_dir, settings=settings, env={"AWS_ENDPOINT_URL_S3": ""})
    assert run.finish() == 0, run.output
    return run


def pipeline_command(run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`latte-pipeline` as a person calls it from the folder that holds runs/."""
    command = [str(part) for part in (runs.BIN / "latte-pipeline", *words)]
    environment = {**os.environ, "AWS_ENDPOINT_URL_S3": ""}
    return subprocess.run(command, cwd=run_dir.parents[1], env=environment, capture_output=True, text=True, check=False)


def test_a_root_that_moved_to_the_runs_own_store_is_found_done(finished: tuple[Path, str, dict], own: runs.Run) -> None:
    old = {made.kind + made.name: made for kind in KINDS for made in find(finished[1], kind)}
    summaries = [event["summary"] for event in own.read_events() if event["event"] == "finished"]
    for summary in summaries:
        if summary["kind"] in KINDS:
            made = old[summary["kind"] + summary["name"]]
            assert summary["fingerprint"] == made.fingerprint[:16]
            assert summary["uri"] == made.uri.replace(finished[1], f"s3://{BUCKET}/demo")
            assert summary.get("loss") == made.metrics.get("loss")
    for key in ("generated", "encoded_shards"):
        assert {summary[key] for summary in summaries if key in summary} == {0}
    for path in (own.run_dir / "kfp").rglob("*"):
        assert not path.is_file() or finished[1] not in path.read_text(errors="replace"), path


def test_what_a_run_has_made_is_listed_and_copied_out_of_its_own_store(
    finished: tuple[Path, str, dict], own: runs.Run
) -> None:
    run_dir, results = own.run_dir, own.run_dir / "results"
    lines = own.output.splitlines()
    assert f"clips, checkpoints, TensorBoard files: latte-pipeline get {run_dir} copies them to {results}" in lines
    following = lines[lines.index("next:") + 1 :]
    assert following[0] == f"  what there is now: latte-pipeline ls {run_dir}"
    assert len(following) == 3
    listed = pipeline_command(run_dir, "ls", "--json")
    assert listed.returncode == 0, listed.stderr
    items = json.loads(listed.stdout)
    assert {item["kind"] for item in items} == {"run", "set", "score", "report", "weights", "dataset"}

    got = pipeline_command(run_dir, "get", "demo")
    assert got.returncode == 0, got.stderr
    assert "B/s" in got.stderr
    videos = next(made for made in find(finished[1], "video_set") if made.name == "trained")
    copied = manifest.find(videos.uri.replace(finished[1], results.as_uri()), "video_set")
    assert copied is not None
    assert [shard.sha256 for shard in copied.shards] == [shard.sha256 for shard in videos.shards]
    for shard in copied.shards:
        assert storage.sha256_file(storage.local_path(shard.uri)) == shard.sha256
    for pattern, least in (
        ("videos/trained/*/clip-*.mp4", 4), ("videos/untrained/*/clip-*.mkv", 4), ("videos/*/*/contact-sheet.png", 2),
        ("runs/demo/*/checkpoints/step-*/ema.safetensors", 1), ("runs/demo/*/tensorboard/*tfevents*", 1),
        ("reports/demo/*/report.html", 1), ("scores/*/*/manifest.json", 2),
    ):  # fmt: skip
        assert len(list(results.glob(pattern))) >= least, pattern
    assert not (results / "datasets").exists()
    assert "0 of them new" in pipeline_command(run_dir, "get", "demo").stdout
    slip = pipeline_command(run_dir, "show", "traned")
    assert (slip.returncode, len(slip.stderr.splitlines())) == (2, 1)
    assert "nothing of this name under s3://latte/demo; there are trained, untrained" in slip.stderr

    # What a run prints is what another command takes.
    uri = next(item["uri"] for item in items if item["place"].startswith("videos/trained/"))
    only = pipeline_command(run_dir, "get", uri, "few", "--only", "*.mp4")
    assert only.returncode == 0, only.stderr
    assert len(list((run_dir.parents[1] / "few").rglob("*.mp4"))) == 4
    places = [str(path.parent) for path in sorted(results.glob("scores/*/*/manifest.json"))]
    compared = subprocess.run(
        [runs.BIN / "latte", "score", "compare", *places], capture_output=True, text=True, check=False
    )
    assert compared.returncode == 0, compared.stderr
    assert "4 clips" in compared.stdout


def test_running_again_does_nothing_and_one_more_video_encodes_that_one_only(
    finished: tuple[Path, str, dict], videos: Path
) -> None:
    run_dir, root, settings = finished

    def seen() -> dict[str, str]:
        # That something was used is noted anew, and how each run has ended.
        kept = [uri for uri in storage.list_uris(root) if not uri.startswith((f"{root}/used/", f"{root}/notices/"))]
        return {uri: last_modified(uri) for uri in kept}

    before = seen()
    again = runs.start(run_dir, "--root", root, settings=settings)
    assert again.finish() == 0, again.output
    assert seen() == before
    assert str(run_dir / "report.html") in again.output

    donor = min(videos.rglob("*.mp4"))
    from latte.video import clip_files

    frames = clip_files.load_real_clip(donor.as_uri(), 0, 1, 16, 64)
    clip_files.write_preview(videos / donor.parent.name / "one more.mp4", frames[::-1], fps=12)
    more = runs.start(run_dir, "--root", root, settings=settings)
    assert more.finish() == 0, more.output
    shards = {uri for uri in published(root) if "/datasets/" in uri}
    new = shards - set(before)
    assert len(new) == 1
    assert manifest.read_record(new.pop())["shard"]["items"] == 1
    assert {uri: last_modified(uri) for uri in before if "/datasets/" in uri and uri in shards} == {
        uri: etag for uri, etag in before.items() if uri in shards
    }
