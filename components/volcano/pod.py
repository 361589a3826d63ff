"""Program of each pod of a launched Volcano Job: `python -m components.volcano.pod LEASE_S URI`, the URI of its work.

The work is done by a process of its own, `components.volcano.worker`, and this one watches the Job's lease beside it:
MindSpore may keep every thread of a process from running for minutes, and what hangs has to be ended, too. As the first
process of its container it takes everything along that it has started.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from components.volcano import lease as leases
from latte import signals
from latte.errors import UserError
from latte.terminal import shown

# How long the work may take to save what it has and to leave, from the signal on.
SAVE_WITHIN_S = 60.0
_POLL_S = 0.2


def supervise(command: Sequence[str], watch: leases.Watch, save_within_s: float = SAVE_WITHIN_S) -> int:
    """Run a command to its end, or until the lease is over: then it gets SIGTERM, and later SIGKILL.

    SIGTERM to this process is passed on.

    Returns:
        The command's exit code, 128 and the number where a signal ended it; `lease.EXIT_CODE` where the lease is over.
    """
    asked: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        asked.append(number)
        for process in started:
            process.send_signal(signal.SIGTERM)

    with signals.handled_by(pass_on):
        process = subprocess.Popen(command)
        started.append(process)
        if asked:
            process.send_signal(signal.SIGTERM)
        while _code(process, _POLL_S) is None:
            if watch.is_over():
                return _end(process, watch, save_within_s)
        code = _code(process, 0.0) or 0
        if code in (0, UserError.exit_code) or asked:
            return code
        # Of workers that train together all leave with the first whose lease is over. That is no failure to start
        # the Job anew for, so whether it is the reason has to be known first.
        while watch.is_doubtful():
            if watch.is_over():
                return _over(watch, watch.silent_s())
            time.sleep(_POLL_S)
        return code


def _end(process: "subprocess.Popen[bytes]", watch: leases.Watch, save_within_s: float) -> int:
    """Ask the work to save and leave, make it leave; what is done all the same counts as done."""
    silent_s = watch.silent_s()
    print(f"the Job's lease was not renewed for {silent_s:.0f} s: save and leave", file=sys.stderr, flush=True)
    process.send_signal(signal.SIGTERM)
    code = _code(process, save_within_s)
    if code is None:
        process.kill()
        process.wait()
    return 0 if code == 0 else _over(watch, silent_s)


def _over(watch: leases.Watch, silent_s: float) -> int:
    seen = f"the store does not answer: {watch.trouble}" if watch.trouble else "the step that waits for it is gone"
    print(
        f"error: ended without being done: the Job's lease {shown(watch.uri)} was not renewed for "
        f"{silent_s:.0f} s, {shown(seen)}; run the step again to go on",
        file=sys.stderr,
        flush=True,
    )
    return leases.EXIT_CODE


def _code(process: "subprocess.Popen[bytes]", within_s: float) -> int | None:
    """Exit code of the process; None where it has none after this time."""
    try:
        code = process.wait(within_s)
    except subprocess.TimeoutExpired:
        return None
    return code if code >= 0 else 128 - code


def main() -> None:
    """Do this pod's part of the work while somebody waits for it."""
    lease_s, uri = sys.argv[1:]
    command = [sys.executable, "-m", "components.volcano.worker", uri, str(os.getpid())]
    sys.exit(supervise(command, leases.Watch(leases.uri_of(uri), float(lease_s))))


if __name__ == "__main__":
    main()
