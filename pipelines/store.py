"""A real S3 server for a run on one machine: SeaweedFS on loopback, with fresh credentials and its data in a folder."""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latte.errors import LatteError, StorageError, UserError
from pipelines import store_security

BUCKET = "latte"
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 3.0
FULL_BELOW_BYTES = 8 << 20
_PORTS = ("s3", "master", "volume", "filer")
_PORTS_FILE = "ports.json"
_GRPC_APART = 10_000  # from each server's port to its one for gRPC
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# SeaweedFS leaves these behind when it is killed, and no setting names another folder.
_SOCKETS = "seaweedfs-*.sock"
_SOCKETS_FOLDER = Path("/tmp")  # noqa: S108
# A younger one may belong to a server that is about to listen.
_SOCKET_AGE_S = 60.0


@dataclass(frozen=True)
class Store:
    """A running store and the environment that boto3 needs to reach it."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the processes that use the store."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",  # the user's own belongs to other keys
            "AWS_REGION": "us-east-1",
        }


def available() -> bool:
    """Whether there is a SeaweedFS for this machine: x86-64 and aarch64 have a wheel, others may have a `weed`."""
    return _program() is not None


@contextlib.contextmanager
def serve(folder: Path, port: int | None = None) -> Iterator[Store]:
    """Run SeaweedFS while a `with` block lasts; the bucket `latte` is there, data of earlier times is kept.

    Only who has this start's credentials gets at the data: the folder is closed to other users, and so is every port.

    Args:
        folder: where data, log and the files with credentials are kept.
        port: port of the S3 endpoint; a free one when None.

    Raises:
        UserError: `weed` is not installed (no wheel for this machine), or the port is taken.
        StorageError: the server ended or did not answer in time; its log is named. Or its disk is full, or it would
            answer anybody.
    """
    program = _program()
    if program is None:
        raise UserError(
            "no SeaweedFS for this machine (`weed` not found): name a store with --root s3://bucket/prefix and "
            "AWS_ENDPOINT_URL_S3, or use --root file:///dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    ports = _free_ports(port)
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    store_security.write_private(folder / "s3.json", _identities(access_key, secret_key))
    store_security.write(folder)
    _clear_earlier_starts(folder)
    (folder / _PORTS_FILE).write_text(json.dumps(ports))
    log_path = folder / "weed.log"
    # SeaweedFS makes an administrator of whatever AWS credentials it finds in its environment; WEED_… overrides files.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "WEED_"))}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            _command(program, folder, ports),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            umask=0o077,
        )
    store = Store(f"http://127.0.0.1:{ports['s3']}", access_key, secret_key, process.pid)
    try:
        _wait_until_ready(store, process, log_path)
        store_security.require_tls(ports)
        yield store
    except LatteError as error:
        # SeaweedFS only says that it is unwell.
        if shutil.disk_usage(folder).free < FULL_BELOW_BYTES:
            raise StorageError(f"{error}; no space left on the disk of {folder}") from None
        raise
    finally:
        _stop(process)
        for path in _sockets(ports):
            path.unlink(missing_ok=True)


def _program() -> str | None:
    # The wheel puts `weed` beside this interpreter; a `weed` on the PATH serves where there is no wheel.
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


def _command(program: str, folder: Path, ports: dict[str, int]) -> list[str]:
    return [
        program, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-s3", f"-s3.port={ports['s3']}",
        "-s3.config=s3.json", f"-master.port={ports['master']}", f"-volume.port={ports['volume']}",
        f"-filer.port={ports['filer']}", "-master.telemetry=false", "-master.peers=none", "-volume.max=2000",
        "-master.volumeSizeLimitMB=256", "-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.localSocket=./s3.sock", "-filer.localSocket=./filer.sock",
        "-volume.preStopSeconds=0", "-master.electionTimeout=1s",
    ]  # fmt: skip


def _free_ports(s3_port: int | None) -> dict[str, int]:
    """A port for each of SeaweedFS's servers, where the one for gRPC that lies `_GRPC_APART` above it is free, too.

    They lie below those that the kernel gives to connections, so that none of these takes one before SeaweedFS does.

    Raises:
        UserError: `s3_port` is taken, or too high.
    """
    first_of_connections = int(_PORT_RANGE.read_text().split()[0]) if _PORT_RANGE.exists() else 32768
    below = first_of_connections - _GRPC_APART
    numbers = range(below - 8000, below) if below > 10_000 else range(10_000, 65_536 - _GRPC_APART)
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as held:

        def hold(number: int) -> None:
            for each in (number, number + _GRPC_APART):
                held.enter_context(socket.socket()).bind(("127.0.0.1", each))

        if s3_port is not None:
            try:
                hold(s3_port)
            except OSError as error:
                raise UserError(f"port {s3_port}: {error.strerror}; choose another with --port") from None
            except OverflowError:
                raise UserError(f"port {s3_port}: SeaweedFS takes ports up to 55535; choose with --port") from None
            ports["s3"] = s3_port
        tries = iter(random.sample(numbers, len(numbers)))
        for name in (name for name in _PORTS if name not in ports):
            for number in tries:
                with contextlib.suppress(OSError):
                    hold(number)
                    ports[name] = number
                    break
            else:
                raise UserError(f"no free port between {numbers[0]} and {numbers[-1]} for SeaweedFS")
    return ports


def _identities(access_key: str, secret_key: str) -> bytes:
    identity = {
        "name": "latte",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return json.dumps({"identities": [identity]}).encode()


def _clear_earlier_starts(folder: Path) -> None:
    """Remove what belonged to the ports of earlier starts: sockets that a killed run left, the master's folders."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # the first start, or one that was killed at once
        for path in _sockets(json.loads((folder / _PORTS_FILE).read_text())):
            if not _answers(path):  # another run may have the port by now
                path.unlink(missing_ok=True)
    for path in _SOCKETS_FOLDER.glob(_SOCKETS):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            ours = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid()
            if ours and time.time() - found.st_mtime > _SOCKET_AGE_S and not _answers(path):
                path.unlink()
    for path in folder.glob("m[0-9]*"):
        shutil.rmtree(path)


def _sockets(ports: dict[str, int]) -> list[Path]:
    return [_SOCKETS_FOLDER / f"seaweedfs-{name}-grpc-{number + _GRPC_APART}.sock" for name, number in ports.items()]


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def _wait_until_ready(store: Store, process: subprocess.Popen[bytes], log_path: Path) -> None:
    import boto3
    import botocore.exceptions
    from botocore.config import Config

    try:
        client = boto3.client(
            "s3",
            endpoint_url=store.endpoint,
            aws_access_key_id=store.access_key,
            aws_secret_access_key=store.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5, proxies={}),
        )
    except botocore.exceptions.BotoCoreError as error:  # it looks into the user's own files
        raise UserError(f"S3: {error}; check AWS_PROFILE and the files in ~/.aws") from None
    deadline = time.monotonic() + READY_WITHIN_S
    reason = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StorageError(f"SeaweedFS ended with code {process.returncode}; see {log_path}")
        try:
            if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
            # A volume may still be missing when buckets can be made already: only a write that works says ready.
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            reason = str(error)
            time.sleep(0.1)
    raise StorageError(f"SeaweedFS was not ready within {READY_WITHIN_S:.0f} s ({reason}); see {log_path}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        # It may take 20 s and more to end by itself; what it acknowledged is on disk either way.
        process.kill()
        process.wait()
