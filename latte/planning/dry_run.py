"""MindSpore's dry run of graphs for Ascend, in a process of its own, and what it says of them.

Nothing is computed, outputs are zeros. Where CANN is installed it serves; elsewhere stand-ins for its libraries do.
"""

import collections
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latte.errors import LatteError
from latte.planning import stand_ins

# aclnn; aclop, which CANN compiles at first use; a view, free; copies and the like of the runtime; collectives.
KINDS = ("opapi", "acl", "host", "rt", "hccl")
_KERNEL = re.compile(r"kernel opname:(\S+), kernel type:(\w+)_kernel")
_ANSWER = "plan: "
_SOURCES = Path(__file__).parents[2]


class DoesNotCompileError(LatteError):
    """MindSpore's own words on a graph that it does not compile for Ascend."""


@dataclass(frozen=True)
class Plan:
    """Kernels that MindSpore would launch, and memory that it would hold.

    Attributes:
        kernels: how many of each (operator, kind of `KINDS`).
        peak_bytes: largest sum of device memory that was planned at one time, weights included.
        seconds: what compiling took.
    """

    kernels: Mapping[tuple[str, str], int]
    peak_bytes: int
    seconds: float

    def of_kind(self, kind: str) -> dict[str, int]:
        """The kernels of one kind, by operator."""
        return {name: count for (name, other), count in sorted(self.kernels.items()) if other == kind}

    def number(self, kind: str) -> int:
        """Number of the kernels of one kind."""
        return sum(self.of_kind(kind).values())

    @property
    def launched(self) -> int:
        """Kernels that compute: aclnn and aclop; views and the runtime's own copies are left out."""
        return self.number("opapi") + self.number("acl")

    @property
    def casts(self) -> int:
        """Kernels that do nothing but change a type."""
        return sum(count for (name, _), count in self.kernels.items() if name == "Cast")

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {self.number(kind)}" for kind in KINDS)
        return f"{kinds}; casts {self.casts}; peak {self.peak_bytes / 1e9:.2f} GB; {self.seconds:.1f} s"


def reason_against() -> str | None:
    """Why no dry run can start on this machine; None where one can."""
    return None if _has_cann() else stand_ins.reason_against()


def run(command: Sequence[str], rank: tuple[int, int] | None = None) -> Plan:
    """Count for a process that ends with `answer`.

    Args:
        command: of the process.
        rank: number of this process and how many there are, where collectives are to be compiled.

    Raises:
        DoesNotCompileError: with MindSpore's lines.
        RuntimeError: this machine cannot make a dry run.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "GLOG_"))}
    environment |= stand_ins.SIMULATED if _has_cann() else stand_ins.built().environment
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_SOURCES), environment.get("PYTHONPATH")))),
        # Kernels are told by the module DEVICE at level INFO; all modules at that level take twice the time.
        "GLOG_v": "2",
        "MS_SUBMODULE_LOG_v": "{DEVICE:1}",
        "GLOG_logtostderr": "1",
    }
    if rank is not None:
        environment |= {"RANK_ID": str(rank[0]), "RANK_SIZE": str(rank[1])}
    kernels: collections.Counter[tuple[str, str]] = collections.Counter()
    said: list[str] = []
    # Where it works MindSpore leaves what it knows of a graph that it cannot compile.
    with (
        tempfile.TemporaryDirectory(prefix="latte-dry-run-") as folder,
        subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        ) as process,
    ):  # fmt: skip
        try:
            answer = None
            for line in process.stdout or ():
                if found := _KERNEL.search(line):
                    kernels[found[1], found[2]] += 1
                elif line.startswith(_ANSWER):
                    answer = json.loads(line.removeprefix(_ANSWER))
                elif not line.startswith(("[INFO]", "[WARNING]")) and "_check_version.py" not in line:
                    said.append(line.rstrip())
        finally:
            process.kill()
    if answer is None:
        tail = "\n".join(line for line in said if line)[-3000:]
        last = ", ".join(f"{name} ({kind})" for name, kind in list(kernels)[-1:])
        raise DoesNotCompileError(f"exit code {process.returncode}, last kernel {last or 'none'}\n{tail}")
    return Plan(dict(kernels), answer["peak_bytes"], answer["seconds"])


def answer(seconds: float) -> None:
    """Say what was planned, and leave: the destructors of the stand-ins' objects would crash."""
    import mindspore as ms

    ms.runtime.synchronize()
    planned = {"peak_bytes": ms.runtime.max_memory_allocated(), "seconds": seconds}
    print(f"\n{_ANSWER}{json.dumps(planned)}", flush=True)
    os._exit(0)


def _has_cann() -> bool:
    """Whether CANN is installed and its environment set."""
    return Path(os.environ.get("ASCEND_HOME_PATH", ""), "lib64/libascendcl.so").is_file()
