"""Several processes that train together: starts `msrun`, minds it, and is what each of its processes runs.

On one node `workers=N` is all there is to say. On several nodes the same command runs on each of them, told apart by
environment variables (`latte.training.workers.NODES_ENV`):

    LATTE_SCHEDULER_HOST    address of the first node; msrun's scheduler listens there
    LATTE_SCHEDULER_PORT    its port, 8118 where it is not set
    LATTE_NODE_RANK         number of this node, 0 on the first one
    LATTE_WORKERS_PER_NODE  processes on each node; `workers` is the sum over all nodes

msrun leaves its workers alive when it is ended, so this module looks for them itself: every process that it started
carries the variable `LATTE_WORKERS_ID`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latte import owners, processes, signals
from latte.errors import LatteError, StoppedByUserError, UserError

NODES_ENV = ("LATTE_SCHEDULER_HOST", "LATTE_SCHEDULER_PORT", "LATTE_NODE_RANK", "LATTE_WORKERS_PER_NODE")
_ID_ENV, _FOLDER_ENV, _LAUNCHER_ENV = "LATTE_WORKERS_ID", "LATTE_WORKERS_DIR", "LATTE_LAUNCHER_PID"
_DEFAULT_PORT = 8118
# How long the others may take to leave once one has failed or all are done.
_GRACE_S = 10.0
_POLL_S = 0.2
_TAIL_LINES = 15
_NOISE = re.compile(r"^\[(INFO|WARNING|ERROR)\] \w+\(|^$")


def inside() -> bool:
    """Whether this process is one that `launch` started."""
    return _FOLDER_ENV in os.environ


def leads() -> bool:
    """Whether this process writes what the run leaves: the first of several workers, or the only one."""
    return not inside() or os.environ["RANK_ID"] == "0"


def launch(module: str, settings: Mapping[str, Any], workers: int) -> None:
    """Run `python -m module`, which calls `serve`, in `workers` processes and return when every one of them is done.

    SIGTERM and Ctrl-C are passed on to each worker, which saves a checkpoint and leaves.

    Args:
        module: what each worker runs.
        settings: values of `latte.training.config.TrainConfig`.
        workers: processes in all.

    Raises:
        UserError: a worker says that the user has to mend something, or the environment names no sensible nodes.
        LatteError: a worker failed, or the run was asked to stop.
    """
    nodes = _nodes(workers)
    with owners.Folder("workers") as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        # One copy of the latents for all workers of this node.
        cached = {**settings, "cache_dir": settings.get("cache_dir") or str(folder / "cache")}
        (folder / "config.json").write_text(json.dumps(cached))
        environment = {
            **os.environ,
            _ID_ENV: folder.name,
            _FOLDER_ENV: name,
            _LAUNCHER_ENV: str(os.getpid()),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        environment.setdefault("GLOG_v", "3")
        if sys.stderr.isatty():
            environment.setdefault("LATTE_PROGRESS_INTERVAL_S", "1")
        with _passing_on_signals(folder.name) as stop, (folder / "msrun.log").open("wb") as log:
            msrun = subprocess.Popen(
                _command(module, nodes, workers, folder),
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _mind(msrun, folder, nodes["local"])
            finally:
                _end_all(folder.name, msrun)
        _explain(folder, nodes, stop)


def _nodes(workers: int) -> dict[str, Any]:
    """Address of the scheduler, and the workers of this node."""
    host = os.environ.get("LATTE_SCHEDULER_HOST")
    if not host:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return {"host": "127.0.0.1", "port": free.getsockname()[1], "rank": 0, "local": workers}
    values = {}
    for key, default in (("PORT", _DEFAULT_PORT), ("RANK", None), ("NODE", None)):
        name = {"PORT": NODES_ENV[1], "RANK": NODES_ENV[2], "NODE": NODES_ENV[3]}[key]
        text = os.environ.get(name, "" if default is None else str(default))
        if not text.isdigit():
            raise UserError(f"{name}={text!r}: expected a whole number, because LATTE_SCHEDULER_HOST is set")
        values[key] = int(text)
    local = values["NODE"]
    if not local or workers % local or not values["RANK"] < workers // local:
        raise UserError(
            f"workers={workers}: does not fit LATTE_WORKERS_PER_NODE={local} and LATTE_NODE_RANK={values['RANK']}"
        )
    return {"host": host, "port": values["PORT"], "rank": values["RANK"], "local": local}


def _command(module: str, nodes: Mapping[str, Any], workers: int, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "mindspore.parallel.cluster.run"),
        f"--worker_num={workers}",
        f"--local_worker_num={nodes['local']}",
        f"--master_addr={nodes['host']}",
        f"--master_port={nodes['port']}",
        f"--node_rank={nodes['rank']}",
        f"--log_dir={folder / 'logs'}",
        "--tail_worker_log=-1",
        "--cluster_time_out=1800",
        "--join=True",
        *("python", "-m", module),
    ]


def _mind(msrun: "subprocess.Popen[bytes]", folder: Path, local: int) -> None:
    """Show the first worker's log as it grows, until msrun has left or should have."""
    shown, ending_since, had_workers = 0, None, False
    while msrun.poll() is None:
        shown = _show(folder, shown)
        alive = bool(_processes(folder.name, "MS_WORKER"))
        had_workers |= alive
        ended = len(list(folder.glob("done-*"))) >= local or any(folder.glob("error-*")) or (had_workers and not alive)
        if ended and ending_since is None:
            ending_since = time.monotonic()
        if ending_since is not None and time.monotonic() - ending_since > _GRACE_S:
            return
        time.sleep(_POLL_S)
    _show(folder, shown)


def _show(folder: Path, shown: int) -> int:
    """Copy whole lines (or progress updates) of the first local worker's log to standard error."""
    logs = sorted((folder / "logs").glob("worker_*.log"), key=lambda path: (len(path.name), path.name))
    if not logs:
        return shown
    with logs[0].open("rb") as file:
        file.seek(shown)
        data = file.read()
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    for line in re.split(r"(?<=[\r\n])", data[:end].decode(errors="replace")):
        if not _NOISE.match(line):
            sys.stderr.write(line)
    sys.stderr.flush()
    return shown + end


def _explain(folder: Path, nodes: Mapping[str, Any], stop: list[int]) -> None:
    """Return if every local worker is done; otherwise raise what the first one said."""
    if len(list(folder.glob("done-*"))) >= nodes["local"]:
        return
    stopped = StoppedByUserError if signal.SIGINT in stop else LatteError
    for path in sorted(folder.glob("error-*")):
        error = json.loads(path.read_text())
        raise (UserError if error["exit_code"] == UserError.exit_code else stopped)(error["message"])
    if stop:
        raise stopped("asked to stop before the first step; run the same command again to go on")
    tails = []
    for path in [*sorted((folder / "logs").glob("worker_*.log")), folder / "msrun.log"]:
        lines = [line for line in path.read_text(errors="replace").splitlines() if not _NOISE.match(line)]
        tails += [f"{path.name}: {line}" for line in lines[-_TAIL_LINES:] or ["nothing was written"]]
    raise LatteError("a worker ended without a word; the ends of the logs:\n" + "\n".join(tails))


@contextmanager
def _passing_on_signals(marker: str) -> Iterator[list[int]]:
    """While it lasts, SIGTERM and SIGINT go to every worker; yields the list of those that came."""
    came: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        came.append(number)
        processes.send(_processes(marker, "MS_WORKER"), signal.SIGTERM)

    with signals.handled_by(pass_on):
        yield came


def _processes(marker: str, role: str = "") -> list[int]:
    """Processes that `launch` started, whoever is their parent by now; `role` is msrun's MS_ROLE."""
    return processes.carrying({_ID_ENV: marker, **({"MS_ROLE": role} if role else {})})


def _end_all(marker: str, msrun: "subprocess.Popen[bytes]") -> None:
    while pids := _processes(marker):
        processes.send(pids, signal.SIGKILL)
        msrun.poll()
        time.sleep(0.05)
    msrun.wait()


def serve(run: Callable[[dict[str, Any]], object]) -> None:
    """Body of a process of msrun: its scheduler, or one worker, which trains and leaves word how it ended.

    Args:
        run: the training, from the settings that `launch` was given.
    """
    signals.end_with(int(os.environ[_LAUNCHER_ENV]))
    folder = Path(os.environ[_FOLDER_ENV])
    from latte import device

    if os.environ.get("MS_ROLE") == "MS_SCHED":
        device.join_workers()  # serves the workers and returns when they have left
        return
    settings = json.loads((folder / "config.json").read_text())
    name = f"{int(os.environ['RANK_ID']):05d}"
    device.share_cores(int(os.environ["DEVICE_ID"]), _nodes(settings["workers"])["local"])
    try:
        run(settings)
    except LatteError as error:
        (folder / f"error-{name}").write_text(json.dumps({"message": str(error), "exit_code": error.exit_code}))
        sys.exit(error.exit_code)
    (folder / f"done-{name}").touch()
