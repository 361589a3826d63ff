"""A published object keeps its bytes: others get another name."""

import os
from pathlib import Path
from typing import Any

import pytest

from latte import storage
from latte.errors import NotThereError
from latte.storage import publishing, s3


def made(folder: Path, content: bytes) -> Path:
    path = folder / "part"
    path.write_bytes(content)
    return path


def names(root: str) -> tuple[str, str]:
    return storage.join(root, "a", "part"), storage.join(root, "other", "part")


@pytest.mark.parametrize("size", [10, (8 << 20) + 10], ids=["whole", "in parts"])
def test_other_bytes_get_another_name_and_equal_ones_the_same(root: str, tmp_path: Path, size: int) -> None:
    uri, other = names(root)
    first, second = os.urandom(size), os.urandom(size)
    assert publishing.publish(made(tmp_path, first), (uri, other)).uri == uri
    assert publishing.publish(made(tmp_path, first), (uri, other)).uri == uri
    ref = publishing.publish(made(tmp_path, second), (uri, other))
    assert (ref.uri, ref.bytes, ref.sha256) == (other, size, storage.sha256_bytes(second))
    assert storage.read_bytes(uri) == first
    assert storage.read_bytes(other) == second
    assert publishing.sha256_of(other) == ref.sha256
    storage.write_bytes(other, b"damaged")
    publishing.publish(made(tmp_path, second), (uri, other))
    assert storage.read_bytes(other) == second
    assert sorted(storage.list_uris(root)) == sorted((uri, other)), "nothing else is left"


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
@pytest.mark.parametrize("size", [10, (8 << 20) + 10], ids=["whole", "in parts"])
def test_whoever_comes_while_another_uploads_does_not_overwrite_it(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    uri, other = names(s3_root)
    first, second = os.urandom(size), os.urandom(size)
    exists = storage.exists

    def quicker(asked: str) -> bool:
        monkeypatch.setattr(storage, "exists", exists)
        found = exists(asked)
        storage.write_bytes(uri, first)
        return found

    monkeypatch.setattr(storage, "exists", quicker)
    assert publishing.publish(made(tmp_path, second), (uri, other)).uri == other
    assert storage.read_bytes(uri) == first


def test_small_data_goes_beside_what_is_published(root: str) -> None:
    uri = storage.join(root, "set", "items.json")
    assert publishing.write_bytes(uri, b"[1]").uri == uri
    assert publishing.write_bytes(uri, b"[1]").uri == uri
    other = publishing.write_bytes(uri, b"[1, 2]").uri
    assert other.startswith(storage.join(root, "set") + "/")
    assert other.endswith("/items.json")
    assert other != uri
    assert (storage.read_bytes(uri), storage.read_bytes(other)) == (b"[1]", b"[1, 2]")


@pytest.mark.parametrize("s3_root", ["seaweedfs", "swift"], indirect=True)
def test_uploads_that_nobody_will_finish_are_given_up(s3_root: str) -> None:
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")

    def begin(name: str) -> None:
        s3.call("create_multipart_upload", s3_root, Bucket=bucket, Key=f"{prefix}/{name}")

    def unfinished() -> list[str]:
        answer = s3.call("list_multipart_uploads", s3_root, Bucket=bucket, Prefix=f"{prefix}/")
        return [upload["Key"].rpartition("/")[2] for upload in answer.get("Uploads", [])]

    begin("runs/a/model")
    begin("runs/ab/model2")
    publishing.clear_unfinished(storage.join(s3_root, "runs"))
    assert sorted(unfinished()) == ["model", "model2"], "another may be at work on those of today"
    publishing.clear_unfinished(storage.join(s3_root, "runs/a"), all_of_them=True)
    assert unfinished() == ["model2"]
    publishing.clear_unfinished(storage.join(s3_root, "runs/ab"), all_of_them=True)


def test_an_object_that_is_gone_is_told(root: str) -> None:
    with pytest.raises(NotThereError, match="no such object"):
        publishing.sha256_of(storage.join(root, "nothing"))


def test_what_stands_is_not_replaced_and_what_comes_in_between_is_looked_at(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(root, "a", "number.json")

    def put(number: int) -> bool:
        return publishing.write_unless(uri, b"%d" % number, lambda: int(storage.read_bytes(uri)) > number)

    assert put(3)
    assert not put(2)
    assert put(4)
    assert put(4)
    assert storage.read_bytes(uri) == b"4"
    swap = storage.swap

    def late(*arguments: Any) -> bool:
        monkeypatch.setattr(storage, "swap", swap)
        storage.write_bytes(uri, b"9")
        return swap(*arguments)

    monkeypatch.setattr(storage, "swap", late)
    if "swift" not in str(os.environ.get("PYTEST_CURRENT_TEST")):  # it has no If-Match
        assert not put(7)
        assert storage.read_bytes(uri) == b"9"
