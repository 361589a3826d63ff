"""Object stores other than SeaweedFS, run on loopback for the tests: each keeps S3's contract in its own way.

OpenStack Swift comes from PyPI and runs everywhere; it is strict about names and signatures, and refuses If-Match.
Ceph's RADOS gateway comes from Debian (`apt-get install radosgw ceph-mon ceph-osd`) and runs in `make soak`; it takes
If-Match only with a bare ETag.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from pipelines.store import BUCKET, Store
from tests import soak

READY_WITHIN_S = 60.0
CEPH_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
# One monitor, one disk in memory, no keys inside: the gateway checks its users' signatures all the same.
CEPH_SETTINGS = """
[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{mon_port}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_bind_msgr2 = false
public_addr = 127.0.0.1
run_dir = {folder}
admin_socket =
pid_file =
log_file = {folder}/$name.log
mon_data = {folder}/mon
mon_cluster_log_file = {folder}/cluster.log
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
osd_data = {folder}/osd
osd_objectstore = memstore
osd_class_update_on_start = false
osd_crush_update_on_start = false
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
rgw_rados_pool_pg_num_min = 1
rgw_frontends = beast endpoint=127.0.0.1:{port}
"""


@contextlib.contextmanager
def swift(folder: Path) -> Iterator[Store]:
    """Swift with s3api and tempauth; its data lives in the folder, whose file system must know extended attributes."""
    os.setxattr(folder, "user.latte", b"")
    port, user, secret = free_port(), secrets.token_hex(8), secrets.token_hex(20)
    environment = {**os.environ, "SWIFT_USER": user, "SWIFT_SECRET": secret}
    with running([sys.executable, "-m", "tests.swift_server", folder, port], folder / "swift.log", environment) as pid:
        store = Store(f"http://127.0.0.1:{port}", f"latte:{user}", secret, pid)
        make_bucket(store)
        yield store


@contextlib.contextmanager
def radosgw(folder: Path) -> Iterator[Store]:
    """Ceph: a monitor, one OSD in memory and the gateway."""
    missing = [program for program in CEPH_PROGRAMS if shutil.which(program) is None]
    if missing:
        raise RuntimeError(f"{missing[0]} is not installed: run `apt-get install -y radosgw ceph-mon ceph-osd`")
    mon_port, port, fsid = free_port(), free_port(), str(uuid.uuid4())
    settings = folder / "ceph.conf"
    settings.write_text(CEPH_SETTINGS.format(folder=folder, fsid=fsid, mon_port=mon_port, port=port))
    common = ["-c", settings]
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    address = f"[v1:127.0.0.1:{mon_port}]"
    monmap = folder / "monmap"
    call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
    call("ceph-mon", *common, "--mkfs", "-i", "a", "--monmap", monmap)
    access_key, secret = secrets.token_hex(10), secrets.token_hex(20)
    with contextlib.ExitStack() as servers:
        servers.enter_context(running(["ceph-mon", *common, "-f", "-i", "a"], folder / "mon.log"))
        disk = str(uuid.uuid4())
        call("ceph", *common, "osd", "new", disk)
        call("ceph", *common, "osd", "crush", "add", "osd.0", "1.0", "root=default")
        call("ceph-osd", *common, "--mkfs", "-i", "0", "--osd-uuid", disk)
        servers.enter_context(running(["ceph-osd", *common, "-f", "-i", "0"], folder / "osd.log"))
        user = ("user", "create", "--uid=latte", "--display-name=latte")
        call("radosgw-admin", *common, *user, f"--access-key={access_key}", f"--secret={secret}")
        gateway = ["radosgw", *common, "-f", "-n", "client.rgw"]
        pid = servers.enter_context(running(gateway, folder / "gateway.log"))
        store = Store(f"http://127.0.0.1:{port}", access_key, secret, pid)
        make_bucket(store)
        yield store


STORES = {"swift": swift, "radosgw": radosgw}
# For the parameters of tests that take long: SeaweedFS always, these in `make soak`.
IN_SOAK = [pytest.param(name, marks=pytest.mark.soak) for name in STORES] if soak.FULL else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[object], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server while a `with` block lasts; its process id."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def call(*command: object) -> None:
    """Run a command to its end; what it said is in the error if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=READY_WITHIN_S)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")


def make_bucket(store: Store) -> None:
    """Wait until the store makes our bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
