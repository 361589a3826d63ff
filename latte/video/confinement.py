"""Shuts the process that it is called in away: no file, no network, no other program or process from then on.

What decoders read comes from strangers, and a decoder that is taken over must find nothing. The kernel's seccomp filter
refuses the calls that open or change anything by a path or make a socket; files arrive as descriptors that are open
already. It needs no rights, no namespaces and no further package, and works inside containers.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Mapping

# What a decoder may know of its environment: where its libraries and its temporary files lie, how texts are written,
# and of which run it is (the run ends what carries its name). Everything else may be a secret.
ENVIRONMENT = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "TZ",
    "LATTE_RUN_DIR",
    "LATTE_WORKERS_ID",
)

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FOR_ALL_THREADS = 1, 1
_EPERM = 1
# Of linux/seccomp.h, linux/bpf_common.h and linux/audit.h.
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | _EPERM, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_AT_NUMBER, _AT_ARCHITECTURE, _AT_FIRST_ARGUMENT = 0, 4, 16
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_TGKILL = {"x86_64": 234, "aarch64": 131}
# Numbers of x86-64 above this are those of its 32-bit variant, which names the same calls differently.
_X32 = 0x40000000

# name: number on x86-64 (None: there is no such call), on aarch64. From the kernel's tables.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # files by path
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None),
    "open_by_handle_at": (304, 265), "truncate": (76, 45), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None),
    "linkat": (265, 37), "unlink": (87, None), "unlinkat": (263, 35), "symlink": (88, None), "symlinkat": (266, 36),
    "readlink": (89, None), "readlinkat": (267, 78), "chmod": (90, None), "fchmodat": (268, 53), "chown": (92, None),
    "lchown": (94, None), "fchownat": (260, 54), "mknod": (133, None), "mknodat": (259, 33), "mount": (165, 40),
    "umount2": (166, 39), "chroot": (161, 51), "pivot_root": (155, 41), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fchmodat2": (452, 452), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "inotify_add_watch": (254, 27), "fanotify_init": (300, 262),
    # network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # what would do the same by another way
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    # other programs and processes
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "unshare": (272, 97), "setns": (308, 268),
    # the kernel's own keeping of secrets
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
}  # fmt: skip


_told = False


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def tell_once(reason: str) -> None:
    """Say on standard error how decoders are shut away, the first time that this process has started one.

    Args:
        reason: what `confine` gave there.
    """
    global _told
    if not _told:
        _told = True
        shut = "decoders open nothing themselves, no file, no network and no program (seccomp)"
        print(f"decoders can open files and the network here: {reason}" if reason else shut, file=sys.stderr)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Those variables of an environment that a decoder gets."""
    return {name: given[name] for name in ENVIRONMENT if name in given}


def confine() -> str:
    """Shut this process and all its threads away, for good; what it still imports must have been imported before.

    Returns:
        "" where it is done, otherwise why the kernel does not do it: the process then runs on as it was.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        return f"there is no filter for {sys.platform} on {machine}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return f"prctl: {os.strerror(ctypes.get_errno())}"
    code = filter_of(machine, os.getpid())
    program = _Program(len(code) // 8, code)
    failed = libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _FOR_ALL_THREADS, ctypes.byref(program))
    return f"seccomp: {os.strerror(ctypes.get_errno()) if failed < 0 else 'a thread stays out'}" if failed else ""


def filter_of(machine: str, pid: int) -> bytes:
    """The filter's program: 8 bytes an instruction, as the kernel reads them.

    Args:
        machine: x86_64 or aarch64.
        pid: of this process, whose threads may go on signalling each other; abort() is one.
    """
    column = list(_ARCHITECTURES).index(machine)
    refused = sorted(number for pair in _REFUSED.values() if (number := pair[column]) is not None)
    program = [
        _step(_LOAD, _AT_ARCHITECTURE),
        _step(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _AT_NUMBER),
    ]
    if machine == "x86_64":
        program += [_step(_JUMP_GREATER_EQUAL, _X32, 0, 1), _step(_RETURN, _REFUSE)]
    for number in refused:
        program += [_step(_JUMP_EQUAL, number, 0, 1), _step(_RETURN, _REFUSE)]
    program += [
        _step(_JUMP_EQUAL, _TGKILL[machine], 0, 3),
        _step(_LOAD, _AT_FIRST_ARGUMENT),
        _step(_JUMP_EQUAL, pid, 1, 0),
        _step(_RETURN, _REFUSE),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
