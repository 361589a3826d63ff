"""A small process beside one that compiles kernels: it ends MindSpore's compiler where that waits in vain.

MindSpore has a server of its own compile, which shares the work among a pool of processes. If one of these dies, as
the disk is full or the system took its memory, the pool starts another and waits for an answer that nobody owes it any
more, for five minutes. MindSpore waits for the server, and every thread of Python with it. When the server is gone,
MindSpore raises.
"""

import select
import sys
import time

import psutil

SERVER = "kernel_build_server"  # MindSpore's name
_POLL_S = 1.0
# There is a pool only while something is compiled, which takes a processor all the time.
_STUCK_S = 8.0
State = tuple[float, frozenset[int]]


def main(parent: int) -> None:
    """Watch the servers of process `parent` until standard input ends, as it does with that process."""
    seen: dict[int, tuple[State, float]] = {}  # by server: what it was last seen to have done, and when
    while not select.select([sys.stdin], [], [], _POLL_S)[0]:
        try:
            for server in psutil.Process(parent).children():
                if SERVER in " ".join(server.cmdline()):
                    _look(server, seen)
        except psutil.Error:  # one has just ended
            continue


def _look(server: psutil.Process, seen: dict[int, tuple[State, float]]) -> None:
    pool = server.children(recursive=True)
    everyone = [server, *pool]
    spent = sum(times.user + times.system for times in (each.cpu_times() for each in everyone))
    state = (spent, frozenset(each.pid for each in everyone))
    # Who waits for a disk, for a processor or for a signal to go on will go on.
    waiting = pool and all(each.status() in (psutil.STATUS_SLEEPING, psutil.STATUS_ZOMBIE) for each in everyone)
    before, since = seen.get(server.pid, (None, 0.0))
    if not waiting or state != before:
        seen[server.pid] = state, time.monotonic()
    elif time.monotonic() - since > _STUCK_S:
        server.kill()
        for each in pool:
            each.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
