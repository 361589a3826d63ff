"""Program in a pod of a launched Volcano Job: `python -m components.volcano.worker URI PID`.

URI is that of the work, PID the process of `components.volcano.pod`, which starts this one and which it ends with.

Volcano says who it is: VC_TASK_INDEX is its number, VC_WORKER_HOSTS names all of them, the first one first. It leaves
what it made as result-<number>.json beside the work, one line and the error's exit code where it fails.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from components import work as works
from latte import signals, storage
from latte.errors import LatteError, UserError
from latte.storage import manifest
from latte.terminal import shown

FIRST_HOST_WITHIN_S = 900.0
_POLL_S = 1.0


def result_uri(folder: str, index: int) -> str:
    """URI of the manifest that worker `index` leaves."""
    return storage.join(folder, f"result-{index:05d}.json")


def place(environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """Number of this pod and the hosts of all.

    Raises:
        UserError: the variables of Volcano's plugins env and svc are missing or make no sense.
    """
    hosts = [host for host in environment.get("VC_WORKER_HOSTS", "").split(",") if host]
    index = environment.get("VC_TASK_INDEX", "")
    if not hosts or not index.isdigit() or int(index) >= len(hosts):
        raise UserError(
            f"VC_TASK_INDEX={index!r}, VC_WORKER_HOSTS of {len(hosts)}: expected what Volcano's plugins env and svc set"
        )
    return int(index), hosts


def wait_for(host: str, within_s: float = FIRST_HOST_WITHIN_S) -> None:
    """Return when the name resolves; msrun itself asks for it only once.

    Raises:
        LatteError: it does not in time.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise LatteError(
                    f"the first node {host} did not appear within {within_s:.0f} s ({error}); look at its pod"
                ) from None
        time.sleep(_POLL_S)


def main() -> None:
    """Do this pod's part of the work and leave its manifest."""
    signals.end_with(int(sys.argv[2]))
    signal.signal(signal.SIGTERM, _leave)
    os.environ.setdefault("GLOG_v", "3")
    uri = sys.argv[1]
    task = "work"
    try:
        work = works.read(uri)
        task = work.task
        index, hosts = place(os.environ)
        if len(hosts) > 1 and not work.shared:
            _join(work, index, hosts)
        result = work.run(index, len(hosts))
        if work.shared or index == 0:
            manifest.write(result, result_uri(uri.rsplit("/", 1)[0], index), works.root_of(uri))
    except LatteError as error:
        print(f"error: {task}: {shown(error)}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _join(work: works.Work, index: int, hosts: list[str]) -> None:
    """Tell `latte.training.workers` about the nodes."""
    workers = getattr(work.config(), "workers", 1)
    if workers % len(hosts):
        raise UserError(f"workers={workers}: not divisible by the {len(hosts)} nodes of the Volcano Job")
    wait_for(hosts[0])
    os.environ["LATTE_SCHEDULER_HOST"] = hosts[0]
    os.environ["LATTE_NODE_RANK"] = str(index)
    os.environ["LATTE_WORKERS_PER_NODE"] = str(workers // len(hosts))


def _leave(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
