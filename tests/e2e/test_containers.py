"""The image built and run: its user and what is in it, and the whole DAG in containers with the bytes of a run without.

`make test-containers` runs these; they need a Docker daemon.
"""

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

import latte
from latte import storage
from latte.storage import manifest
from pipelines import containers
from pipelines.demo.data import cut_demo_clips
from pipelines.store import BUCKET, Store
from tests.e2e import runs

pytestmark = pytest.mark.containers

# What an image is built from, and what builds it.
SOURCES = ("latte", "components", "pipelines", "images", "requirements", "pyproject.toml", "README.md", "LICENSE")
# The whole DAG takes a minute or two; this is for machines that have much else to do.
FINISH_S = 900
COMPILERS = ("cc", "gcc", "cpp", "c++", "clang", "as")


def build(image: str, folder: Path = runs.REPOSITORY) -> float:
    """`make images`; the seconds it took."""
    started = time.monotonic()
    done = subprocess.run(["make", "images", f"IMAGE={image}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return time.monotonic() - started


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def built(engine: docker.DockerClient) -> Iterator[tuple[str, float]]:
    """An image of this working tree under a name of its own, and the seconds that building it took."""
    image = f"latte-pipelines:test-{uuid.uuid4().hex[:8]}"
    yield image, build(image)
    engine.images.remove(image, force=True)


def in_container(engine: docker.DockerClient, image: str, script: str) -> str:
    output: bytes = engine.containers.run(
        image, ["sh", "-c", script], remove=True, read_only=True, network_mode="host", tmpfs={"/tmp": ""}
    )
    return output.decode().strip()


def test_the_image_is_not_root_tells_its_version_and_has_no_compiler(
    engine: docker.DockerClient, built: tuple[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    image, seconds = built
    found = engine.images.get(image)
    assert found.attrs["Config"]["User"] == "10001:10001"
    assert found.labels["org.opencontainers.image.version"] == latte.__version__
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=runs.REPOSITORY, capture_output=True, text=True).stdout
    assert found.labels["org.opencontainers.image.revision"].removesuffix("-dirty") == (commit.strip() or "unknown")
    assert in_container(engine, image, "id -u") == "10001"
    assert in_container(engine, image, f"which sh {' '.join(COMPILERS)} || true") == "/usr/bin/sh"
    # What MindSpore calls g++ links, and no more.
    program = "echo 'int main() { return 0; }' > /tmp/a.cpp; g++ -shared -fPIC -o /tmp/a.so /tmp/a.cpp 2>/dev/null"
    assert in_container(engine, image, f"{program} && echo compiled || echo refused") == "refused"
    assert in_container(engine, image, "find / -name 'libmindspore*gpu*' 2>/dev/null || true") == ""
    assert in_container(engine, image, "touch /opt/x 2>&1 || true").endswith("Read-only file system")
    assert latte.__version__ in in_container(engine, image, "latte --version")
    with capsys.disabled():
        print(f"\nimage: {found.attrs['Size'] / 1e6:.0f} MB, built in {seconds:.0f} s")


def test_a_change_of_code_changes_no_layer_but_the_code_s(
    engine: docker.DockerClient, built: tuple[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*SOURCES, "Makefile", ".dockerignore"):
        source = runs.REPOSITORY / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    with (tmp_path / "latte" / "rng.py").open("a") as file:
        file.write("# Changed.\n")
    image = f"{built[0]}-changed"
    seconds = build(image, tmp_path)
    before, after = (engine.images.get(name).attrs["RootFS"]["Layers"] for name in (built[0], image))
    assert in_container(engine, image, "tail -1 /opt/latte/lib/python3.11/site-packages/latte/rng.py") == "# Changed."
    engine.images.remove(image)
    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
    with capsys.disabled():
        print(f"\nbuilt again after a change of code in {seconds:.0f} s")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of each class, in a folder that everybody may read."""
    everything = tmp_path_factory.mktemp("all-clips")
    cut_demo_clips(everything)
    folder = tmp_path_factory.mktemp("for-all") / "clips"
    for group in sorted(path for path in everything.iterdir() if path.is_dir()):
        (folder / group.name).mkdir(parents=True)
        for clip in sorted(group.glob("*.mp4"))[:3]:
            shutil.copy(clip, folder / group.name)
    return folder


def start_in_containers(run_dir: Path, root: str, image: str, settings: dict) -> runs.Run:
    return runs.start(run_dir, "--root", root, "--runner", "docker", "--image", image, settings=settings)


def of_run(engine: docker.DockerClient, run_dir: Path) -> list:
    return engine.containers.list(all=True, filters={"label": f"{containers.LABEL}={run_dir}"}, ignore_removed=True)


def no_container_left(engine: docker.DockerClient, run_dir: Path, within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while of_run(engine, run_dir):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def digests(root: str, kind: str) -> set[tuple[str, str]]:
    """Where under the root, and with which bytes but for the root's own name, everything of this kind was written."""
    places = [uri for uri in storage.list_uris(root) if uri.endswith("/manifest.json")]
    found = [made for uri in places if (made := manifest.read(uri)).kind == kind]
    uris = {shard.uri for made in found for shard in made.shards}
    contents = {uri.removeprefix(root): storage.read_bytes(uri).replace(root.encode(), b"") for uri in uris}
    return {(name, storage.sha256_bytes(content)) for name, content in contents.items()}


@pytest.mark.timeout(3 * FINISH_S)
def test_the_whole_dag_in_containers_ends_with_the_bytes_of_a_run_without(
    engine: docker.DockerClient,
    built: tuple[str, float],
    store: Store,
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A preset is found in the image, too.
    image = built[0]
    settings = {**runs.TINY, "encode.dataset.videos": str(videos), "score.protocol.preset": "demo"}
    inside, outside = f"s3://{BUCKET}/inside", f"s3://{BUCKET}/outside"
    run_dir = tmp_path / "inside"

    started = time.monotonic()
    run = start_in_containers(run_dir, inside, image, settings)
    run.wait_for("encode: shards")
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == 130, run.output
    assert "run the same command again to go on" in run.output
    assert of_run(engine, run_dir) == []

    run = start_in_containers(run_dir, inside, image, settings)
    run.wait_for("train")
    (container,) = of_run(engine, run_dir)
    assert container.attrs["HostConfig"]["ReadonlyRootfs"]
    assert container.attrs["HostConfig"]["CapDrop"] == ["ALL"]
    assert container.exec_run("id -u").output.decode().strip() == str(os.getuid() or containers.IMAGE_UID)
    assert b"Read-only file system" in container.exec_run("touch /opt/x").output
    run.process.kill()
    run.process.communicate()
    assert no_container_left(engine, run_dir)
    assert run.gone()

    run = start_in_containers(run_dir, inside, image, settings)
    assert run.finish(FINISH_S) == 0, run.output
    assert image in run.output
    assert of_run(engine, run_dir) == []
    in_containers_s = time.monotonic() - started
    assert list((run_dir / "cache" / "latte" / "kernels").glob("*/kept/*.so"))

    started = time.monotonic()
    # Fused kernels, as in containers: conftest switches them off, and last bits depend on it.
    monkeypatch.setenv("LATTE_FUSED_KERNELS", "1")
    plain = runs.start(tmp_path / "outside", "--root", outside, settings=settings)
    assert plain.finish(FINISH_S) == 0, plain.output
    for kind, least in (("latents", 1), ("checkpoint", 1), ("video_set", 8)):
        expected = digests(outside, kind)
        assert len(expected) >= least
        assert digests(inside, kind) == expected, kind
    assert (run_dir / "report.html").read_text().lower().startswith("<!doctype html>")
    with capsys.disabled():
        print(f"\nstopped, killed and finished in containers in {in_containers_s:.0f} s; ", end="")
        print(f"without containers in {time.monotonic() - started:.0f} s")


def test_a_mistake_that_a_container_finds_is_one_line(
    engine: docker.DockerClient, built: tuple[str, float], store: Store, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    tmp_path.chmod(0o755)
    settings = {"encode.dataset.videos": str(empty)}
    run = start_in_containers(tmp_path / "run", f"s3://{BUCKET}/empty", built[0], settings)
    assert run.finish() == 2, run.output
    (line,) = runs.error_lines(run.output)
    assert "encode: plan" in line
    assert str(empty) in line


def test_an_image_that_cannot_be_had(tmp_path: Path, videos: Path) -> None:
    settings = {"encode.dataset.videos": str(videos)}
    # Nobody listens there.
    run = start_in_containers(tmp_path, "s3://any/where", "127.0.0.1:1/latte:none", settings)
    assert run.finish() == 2, run.output
    (line,) = runs.error_lines(run.output)
    assert "127.0.0.1:1/latte:none" in line
    assert "make images" in line
    assert "Traceback" not in run.output
