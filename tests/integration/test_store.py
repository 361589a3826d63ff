"""SeaweedFS as a run's own store: fresh credentials, kept data, clear errors, nothing left behind."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from latte import storage
from latte.errors import UserError
from pipelines import processes
from pipelines import store as stores
from pipelines.store import BUCKET, serve


def test_data_outlives_the_server_and_credentials_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{BUCKET}/kept/object"
    with serve(tmp_path) as first:
        assert stat.S_IMODE((tmp_path / "s3.json").stat().st_mode) == 0o600
        for key, value in first.environment.items():
            monkeypatch.setenv(key, value)
        storage.write_bytes(uri, b"kept")
    with serve(tmp_path) as second:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", second.endpoint)
        with pytest.raises(UserError, match=r"AWS_ACCESS_KEY_ID"):
            storage.read_bytes(uri)
        for key, value in second.environment.items():
            monkeypatch.setenv(key, value)
        assert storage.read_bytes(uri) == b"kept"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY"):
            storage.check_root(f"s3://{BUCKET}/kept")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", second.secret_key)
        with pytest.raises(UserError, match="no such bucket"):
            storage.check_root("s3://no-such-bucket/kept")
    for served in (first, second):
        assert not Path(f"/proc/{served.pid}").exists()
        assert served.secret_key not in (tmp_path / "weed.log").read_text(errors="replace")


def test_sockets_of_the_start_before_are_cleared_at_once_and_those_of_others_stay(tmp_path: Path) -> None:
    with serve(tmp_path):
        ports = json.loads((tmp_path / "ports.json").read_text())
    left, used = (Path(f"/tmp/seaweedfs-{name}-grpc-{ports[name] + 10000}.sock") for name in ("s3", "filer"))
    with socket.socket(socket.AF_UNIX) as killed, socket.socket(socket.AF_UNIX) as other:
        killed.bind(str(left))
        killed.close()
        other.bind(str(used))
        other.listen()
        try:
            with serve(tmp_path):
                assert not left.exists()
                assert used.exists()
        finally:
            used.unlink()


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}: Address already in use"), serve(tmp_path, port):
            pass
    assert not processes.members(tmp_path)


def test_without_seaweedfs_the_user_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    with pytest.raises(UserError, match="--root s3://bucket/prefix"), serve(tmp_path / "store"):
        pass


def test_ports_are_none_that_a_connection_may_be_given_and_have_room_for_grpc() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = stores._free_ports(None)
    assert len(set(ports.values())) == 4
    assert all(port + 10_000 < first for port in ports.values())
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports["s3"] + 10_000))  # of gRPC
        with pytest.raises(UserError, match="choose another with --port"):
            stores._free_ports(ports["s3"])
    with pytest.raises(UserError, match="SeaweedFS takes ports up to 55535"):
        stores._free_ports(60_000)
