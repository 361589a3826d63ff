"""A real S3 store that answers badly or not at all: the same bytes in the end, or one clear line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from latte import checkpoints, storage
from latte.checkpoints import store as checkpoint_store
from latte.config import build
from latte.data.latents import LatentClips
from latte.errors import StorageError
from latte.steps import encode
from latte.storage import manifest
from tests import fault_proxy, other_stores, small_vae, video_files

pytestmark = pytest.mark.parametrize("s3_root", ["seaweedfs", *other_stores.IN_SOAK], indirect=True)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_vae.publish(tmp_path_factory.mktemp("vae").as_uri())


@pytest.fixture
def config(s3_root: str, vae: str, tmp_path: Path) -> encode.EncodeConfig:
    """Five good videos and a truncated one in the store, to be encoded in four shards."""
    videos = storage.join(s3_root, "videos")
    for number in range(5):
        path = video_files.write(tmp_path / f"{number}.mp4", video_files.moving(16 + number, seed=number))
        storage.upload(path, storage.join(videos, "ab"[number % 2], path.name))
    storage.write_bytes(storage.join(videos, "a/truncated.mp4"), path.read_bytes()[:2000])
    values = {"root": s3_root, "name": "small", "vae": vae, "image_size": 32, "num_tasks": 4}
    return build(encode.EncodeConfig, {**values, "dataset": {"videos": videos}}, "test")


def objects(config: encode.EncodeConfig) -> dict[str, bytes]:
    """Every object of the dataset, but for what says how long it took."""
    found = {}
    for uri in storage.list_uris(storage.join(config.root, "datasets")):
        if "/parts/" not in uri:
            data = storage.read_bytes(uri)
            timed = uri.endswith("/manifest.json")
            found[uri] = json.dumps({**json.loads(data), "seconds": 0}).encode() if timed else data
    return found


def command(config: encode.EncodeConfig, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = folder / "encode.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return subprocess.run(
        [sys.executable, "-m", "latte.cli", "encode", "-c", str(path)],
        capture_output=True, text=True, env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip


def test_a_store_with_faults_gets_the_same_bytes(
    config: encode.EncodeConfig, proxy: fault_proxy.Proxy, tmp_path: Path
) -> None:
    done = encode.run(config)
    assert done.counts["videos"] == 5
    wanted = objects(config)
    for uri in storage.list_uris(storage.join(config.root, "datasets")):
        storage.delete(uri)

    proxy.share = 0.25
    encode.run(config)
    assert set(proxy.injected) == set(fault_proxy.FAULTS)
    proxy.share = 0.0
    assert objects(config) == wanted

    proxy.share = 0.25
    clips = [LatentClips(done, tmp_path / "none", cache_bytes=0), LatentClips(done, tmp_path / "cache")]
    for index in range(5):
        by_range, from_copy = (reader.clip(index, 2, 3, 4) for reader in clips)
        np.testing.assert_array_equal(by_range, from_copy)
    large = {"weight": np.arange(3_000_000, dtype=np.float32)}  # 12 MB: sent and fetched in parts
    uri = storage.join(config.root, "checkpoint", "model.safetensors")
    ref = checkpoint_store.save(large, uri)
    shard = manifest.publish_shard(json.dumps({"step": 1}).encode(), storage.join(config.root, "checkpoint/state.json"))
    assert manifest.is_whole(shard)
    fetched = storage.download(uri, tmp_path / "model.safetensors", ref.sha256)
    assert fetched.stat().st_size == ref.bytes
    np.testing.assert_array_equal(checkpoints.read(uri)["weight"], large["weight"])


def test_a_file_of_many_parts_does_not_begin_again_with_each_fault(
    s3_root: str, proxy: fault_proxy.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTE_S3_RETRY_S", "20")
    monkeypatch.setenv("LATTE_S3_READ_TIMEOUT_S", "5")  # a part takes its time on a busy machine
    proxy.share = 0.3
    source = tmp_path / "large"
    source.write_bytes(np.random.default_rng(0).bytes(80 << 20))  # ten parts
    ref = storage.upload(source, storage.join(s3_root, "large"))
    assert sum(proxy.injected.values()) > 1
    assert storage.sha256_file(storage.download(ref.uri, tmp_path / "back", ref.sha256)) == ref.sha256


def test_wrong_credentials_end_at_once_with_one_line(
    config: encode.EncodeConfig, proxy: fault_proxy.Proxy, tmp_path: Path
) -> None:
    started = time.monotonic()
    ended = command(config, tmp_path, AWS_SECRET_ACCESS_KEY="wrong")
    assert time.monotonic() - started < 30  # the retries would go on for 60
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "check AWS_SECRET_ACCESS_KEY" in line
    assert not storage.list_uris(storage.join(config.root, "datasets"))


def test_a_long_outage_ends_with_one_line_and_the_next_run_goes_on(
    config: encode.EncodeConfig, proxy: fault_proxy.Proxy, tmp_path: Path
) -> None:
    proxy.fail(after=("PUT", "/shards/"))  # the first shard's object goes through, its record does not
    ended = command(config, tmp_path, LATTE_S3_RETRY_S="1")
    assert proxy.injected["busy"] > 1
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the store did not answer for 1 s" in errors[0]

    proxy.down_after = None
    listed = storage.list_uris(storage.join(config.root, "datasets"))
    shards = [uri for uri in listed if "/shards/" in uri]
    assert len(shards) == 1, "what has no record does not count"
    first = storage.read_bytes(shards[0])
    assert not [uri for uri in listed if uri.endswith("/manifest.json") and "/catalogs/" not in uri]
    done = encode.run(config)
    assert done.counts["videos"] == 5
    assert storage.read_bytes(shards[0]) == first
    assert encode.run(config) == done


@pytest.mark.parametrize("fault", fault_proxy.FAULTS)
def test_what_never_passes_is_an_outage_within_the_time_for_it(
    s3_root: str, proxy: fault_proxy.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    short = os.environ["LATTE_S3_READ_TIMEOUT_S"]
    monkeypatch.setenv("LATTE_S3_READ_TIMEOUT_S", "20")  # what works takes its time on a busy machine
    large = tmp_path / "large"
    large.write_bytes(bytes(9 << 20))  # two parts
    uri = storage.upload(large, storage.join(s3_root, "large")).uri
    storage.write_json(storage.join(s3_root, "small.json"), {"many": "words" * 100})
    proxy.always = fault
    monkeypatch.setenv("LATTE_S3_RETRY_S", "1.5")
    monkeypatch.setenv("LATTE_S3_READ_TIMEOUT_S", short)
    for call in (
        lambda: storage.read_json(storage.join(s3_root, "small.json")),
        lambda: storage.read_bytes(uri, 100, 10_000),
        lambda: storage.list_objects(s3_root),
        lambda: storage.download(uri, tmp_path / "back"),
        lambda: storage.upload(large, uri),
    ):
        began = time.monotonic()
        with pytest.raises(StorageError, match="the store did not answer for 2 s") as caught:
            call()
        assert caught.value.exit_code == 1
        assert time.monotonic() - began < 15
    proxy.always = None
    monkeypatch.delenv("LATTE_S3_RETRY_S")
    monkeypatch.setenv("LATTE_S3_READ_TIMEOUT_S", "20")
    assert storage.read_json(storage.join(s3_root, "small.json")) == {"many": "words" * 100}
    assert storage.sha256_file(storage.download(uri, tmp_path / "back")) == storage.sha256_file(large)


def test_a_command_ends_with_one_line_and_exit_code_1_where_answers_trickle_without_end(
    config: encode.EncodeConfig, proxy: fault_proxy.Proxy, tmp_path: Path
) -> None:
    proxy.always = "drip"
    ended = command(config, tmp_path, LATTE_S3_RETRY_S="1")
    assert ended.returncode == 1, ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert "the store did not answer for 1 s" in line
    assert "Traceback" not in ended.stderr
