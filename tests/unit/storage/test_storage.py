import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latte import storage
from latte.errors import NotThereError, StorageError, UserError

# Each test that takes `root` runs in a folder and in every real S3 store of conftest.py.


def test_write_read_range_stat_delete(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    assert storage.stat(uri) is None
    ref = storage.write_bytes(uri, b"0123456789")
    assert ref == storage.Ref(uri, 10, storage.sha256_bytes(b"0123456789"))
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_bytes(uri, 3, 4) == b"3456"
    assert storage.read_bytes(uri, 8) == b"89"
    assert storage.read_bytes(uri, 8, 0) == b""
    assert storage.stat(uri).bytes == 10
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    with pytest.raises(NotThereError):
        storage.read_bytes(uri)


def test_a_range_beyond_the_end_is_an_error_not_a_short_read(root: str) -> None:
    uri = storage.join(root, "short")
    storage.write_bytes(uri, b"abc")
    with pytest.raises(StorageError, match="wanted 5 bytes from 1"):
        storage.read_bytes(uri, 1, 5)


def test_upload_download_large_enough_for_parts(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 << 20))
    uri = storage.join(root, "large")
    ref = storage.upload(source, uri)
    assert ref.sha256 == storage.sha256_file(source)
    target = storage.download(uri, tmp_path / "deep" / "target", ref.sha256)
    assert target.read_bytes() == source.read_bytes()
    with storage.as_local_file(uri, ref.sha256) as path:
        assert path.stat().st_size == 20 << 20


def test_a_damaged_object_is_refused_and_leaves_no_file(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, b"damaged")
    with pytest.raises(StorageError, match="damaged"):
        storage.download(uri, tmp_path / "x", storage.sha256_bytes(b"right"))
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_listing_is_sorted_bytewise_and_complete(root: str) -> None:
    names = ["b", "a/2", "a/10", "A", "é", "a b", "z+%20"]
    for name in names:
        storage.write_bytes(storage.join(root, "list", name), b"x")
    storage.write_bytes(storage.join(root, "list-other"), b"x")
    found = storage.list_uris(storage.join(root, "list"))
    assert len(found) == len(names)
    assert found == sorted(found)
    assert all(storage.read_bytes(uri) == b"x" for uri in found)
    assert storage.list_uris(storage.join(root, "nothing-here")) == []


def test_swap_lets_exactly_one_of_many_writers_win(registry_root: str) -> None:
    uri = storage.join(registry_root, "current.json")
    assert storage.swap(uri, b"first", None)
    assert not storage.swap(uri, b"second", None)
    etag = storage.stat(uri).etag
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: won.append(i) if storage.swap(uri, b"w%d" % i, etag) else None)
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(uri) == b"w%d" % won[0]


def test_a_root_that_cannot_be_made_is_told_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, reason in (("file", "File exists"), ("file/below", "Not a directory")):
        with pytest.raises(UserError) as caught:
            storage.check_root(str(tmp_path / folder))
        assert str(caught.value) == f"root {tmp_path / folder}: the folder cannot be made: {reason}"
    with pytest.raises(UserError, match=r"^root ~/x: only a shell fills in ~; write /.*/x$"):
        storage.root_uri("~/x")


def test_a_file_that_is_deleted_leaves_no_lock(tmp_path: Path) -> None:
    uri = (tmp_path / "pointer").as_uri()
    storage.write_bytes(uri, b"first")
    info = storage.stat(uri)
    assert info is not None
    assert storage.swap(uri, b"second", info.etag)
    storage.delete(uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["..", "a/../b", "/etc/passwd", "", "a//b", "x\x00y"])
def test_names_cannot_leave_their_root(part: str) -> None:
    with pytest.raises(UserError, match="not a name under it"):
        storage.join("s3://bucket/prefix", part)


@given(st.text(max_size=12))
def test_joined_uris_stay_under_their_root(part: str) -> None:
    root = "file:///data/kept"
    try:
        uri = storage.join(root, part)
    except UserError:
        return
    assert uri.startswith(root + "/")
    assert os.path.normpath(uri.removeprefix("file://")).startswith("/data/kept/")


def test_a_file_in_the_place_of_a_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"Not a directory|File exists"):
        storage.write_bytes((tmp_path / "file" / "below").as_uri(), b"x")


def test_bytes_that_are_there_are_not_written_again(root: str) -> None:
    uri = storage.join(root, "kept")
    storage.keep_bytes(uri, b"same")
    if storage.path(uri) is not None:
        os.utime(storage.local_path(uri), ns=(0, 0))
        assert storage.keep_bytes(uri, b"same") == storage.Ref(uri, 4, storage.sha256_bytes(b"same"))
        assert storage.local_path(uri).stat().st_mtime_ns == 0
    storage.keep_bytes(uri, b"else")
    assert storage.read_bytes(uri) == b"else"


def test_each_kind_of_store_says_whether_it_has_to_be_read(root: str) -> None:
    one, two = storage.join(root, "a b"), storage.join(root, "100%25")
    for uri in (one, two):
        storage.write_bytes(uri, b"same")
    etags = {storage.stat(uri).etag for uri in (one, two)}
    assert (len(etags) == 1) == storage.etags_tell_content(root)
    path = storage.path(one)
    assert storage.is_shared(root) == (path is None)
    assert storage.is_prefix(root) and not storage.is_prefix(one)
    assert path.read_bytes() == b"same" if path is not None else root.startswith("s3://")
    assert storage.name_below(root, two) == ("100%25" if path is None else "100%")
    with pytest.raises(UserError, match="not a name under it"):
        storage.name_below(root, f"{root}/../other")


def test_json_is_canonical(root: str) -> None:
    uri = storage.join(root, "v.json")
    first = storage.write_json(uri, {"b": 1, "a": "é"})
    second = storage.write_json(uri, {"a": "é", "b": 1})
    assert first == second
    assert storage.read_json(uri) == {"a": "é", "b": 1}
    storage.write_bytes(uri, b"{")
    with pytest.raises(UserError, match="not JSON"):
        storage.read_json(uri)


@pytest.mark.parametrize("name", ["my data", "röot", "run#2", "why?", "100%", "a%20b", "-x"])
def test_what_is_written_under_any_name_is_found_by_it(tmp_path: Path, name: str) -> None:
    root = f"file://{tmp_path}/{name}"
    storage.check_root(root)
    written = {storage.join(root, part) for part in ("one", "two/three")}
    for uri in written:
        storage.write_bytes(uri, uri.encode())
    assert set(storage.list_uris(root)) == written
    assert all(storage.read_bytes(uri) == uri.encode() for uri in written)
    assert len(list(tmp_path.iterdir())) == 1


def test_paths_may_climb_and_uris_may_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    storage.write_bytes(str(tmp_path / "a" / ".." / "b"), b"x")
    assert (tmp_path / "b").read_bytes() == b"x"
    with pytest.raises(UserError, match=r"'\.\.' is not allowed"):
        storage.read_bytes(f"file://{tmp_path}/a/../b")


@pytest.mark.parametrize("uri", ["https://host/x", "gs://bucket/x", "file://host/x", "a\0b", "x" * 300])
def test_what_is_no_place_is_a_user_error(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        storage.write_bytes(uri, b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("root", ["ftp://x/y", "s3://", "s3:/bucket", "file:dir", "file://host/x", ""])
def test_unknown_roots_are_user_errors(root: str) -> None:
    with pytest.raises(UserError, match=r"^root .*: expected s3://bucket/prefix, file:///dir or a folder's path$"):
        storage.check_root(root)


def test_a_path_is_taken_as_the_root_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    out = (tmp_path / "my out").as_uri()
    for text in (str(tmp_path / "my out"), "../my out", out):
        assert storage.root_uri(text) == out
        storage.check_root(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "my out"]
    assert storage.root_uri("s3://bucket/prefix") == "s3://bucket/prefix"
