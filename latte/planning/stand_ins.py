"""Stand-ins for CANN's libraries, so that MindSpore's dry run of Ascend starts on a machine that has none.

MindSpore's wheel holds all of its Ascend plugin, and its dry run (`MS_SIMULATION_LEVEL`) never calls the device: graphs
are compiled, kernels selected, memory planned. It only has to load. Here every name that the plugin lacks becomes a
function that returns 0. Nothing of CANN is used. Kernels of kind aclop are described to CANN when they are made, in
objects that only CANN can fill: that one function of MindSpore's is stood in for, too, so that they are counted.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SOC = "Ascend910B2"
SIMULATED = {"MS_SIMULATION_LEVEL": "1"}  # 0 compiles the front alone, 1 selects kernels and plans memory, too
TOOLS = ("gcc", "nm", "readelf", "strings")
# Looked up by name while it runs, by the roots of CANN's interfaces.
_BY_NAME = re.compile(r"(?:acl|Hccl|Hcom|rt[A-Z])\w+")
# Loaded while it runs, and so not among what the plugin says it needs.
_LOADED_LATER = (
    "libacl_op_compiler.so", "libmsprofiler.so", "libacl_tdt_queue.so", "libacl_tdt_channel.so", "libopapi.so",
    "libcust_opapi.so", "libgmem.so",
)  # fmt: skip
_SYSTEM = ("libc", "libm", "libdl", "libpthread", "libgcc_s", "librt", "libstdc++", "libgomp")
# MindSpore's function that describes a kernel of kind aclop to CANN.
_DESCRIBES = re.compile(r"\w*AclKernelMod\d+RefreshAclConverter\w*")
# The few answers that are looked at.
_ANSWERS = f"""
#include <stdint.h>
const char *aclrtGetSocName(void) {{ return "{SOC}"; }}
const char *aclGetRecentErrMsg(void) {{ return ""; }}
int aclrtGetDeviceCount(uint32_t *count) {{ *count = 8; return 0; }}
"""
_ANSWERED = ("aclrtGetSocName", "aclGetRecentErrMsg", "aclrtGetDeviceCount")


@dataclass(frozen=True)
class StandIns:
    """Folder of the stand-ins, and what a process needs in its environment to find them."""

    folder: Path
    environment: dict[str, str]


def other_machine() -> str:
    """Kind of machine that the stand-ins are not made for; "" on one that they are made for."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the stand-ins are made for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    return ""


def reason_against() -> str | None:
    """Why the dry run cannot start on this machine; None where it can."""
    if other := other_machine():
        return other
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found: the stand-ins are built with gcc and binutils"
    if not list((_wheel() / "plugin").glob("*ascend*.so*")):
        return f"the installed MindSpore has no Ascend plugin under {_wheel() / 'plugin'}"
    return None


def built() -> StandIns:
    """The stand-ins for the installed wheel, built at the first call on this machine and kept in a temporary folder.

    Raises:
        RuntimeError: the machine cannot build them.
    """
    if reason := reason_against():
        raise RuntimeError(reason)
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    version = importlib.metadata.version("mindspore")
    folder = Path(tempfile.gettempdir(), f"ascend-stand-ins-{os.getuid()}-{version}-{made_by}")
    if not folder.exists():
        fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
        _build(fresh / "cann")
        try:
            fresh.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to somebody else")
    folder /= "cann"  # where CANN lies MindSpore finds by this word in the paths of its libraries
    libraries = [folder / "lib64", _wheel() / "plugin/ascend", _wheel()]
    environment = {
        **SIMULATED,
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "LD_PRELOAD": str(folder / "lib64/libundescribed.so"),
        "ASCEND_HOME_PATH": str(folder),
        "PYTHONPATH": str(folder / "python"),
    }
    return StandIns(folder, environment)


def _wheel() -> Path:
    spec = importlib.util.find_spec("mindspore")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("MindSpore is not installed")
    return Path(spec.submodule_search_locations[0]) / "lib"


def _build(folder: Path) -> None:
    lib = folder / "lib64"
    (lib / "driver").mkdir(parents=True)
    plugin = [*_wheel().glob("plugin/*ascend*.so*"), *_wheel().glob("plugin/ascend/**/*.so*")]
    beside = [*_wheel().glob("*.so*"), *_wheel().glob("plugin/cpu/*.so")]
    known = _symbols(["--defined-only"], [*plugin, *beside, *_system_libraries()])
    wanted = _symbols(["--undefined-only", "--no-weak"], plugin) | _names_inside(plugin)
    wanted |= {f"{name}GetWorkspaceSize" for name in wanted if name.startswith("aclnn")}
    mine = {name for name in wanted - known if not name.startswith(("Py", "_Py", "_ITM", "__gmon", "_ZTH"))}
    source = folder / "names.s"
    source.write_text(_assembly(mine - set(_ANSWERED)))
    answers = folder / "answers.c"
    answers.write_text(_ANSWERS)
    _link(lib / "libascendcl.so", str(source), str(answers))
    described = folder / "described.s"
    described.write_text(_assembly(name for name in known if _DESCRIBES.fullmatch(name)))
    _link(lib / "libundescribed.so", str(described))
    present = {path.name for path in [*_wheel().parent.rglob("*.so*"), *_system_libraries("lib", "ld-")]}
    needed = {name for path in plugin for name in _needed(path)}
    for name in sorted(needed | set(_LOADED_LATER)):
        if name not in present and name != "libascendcl.so" and not name.startswith("ld-"):
            _link(lib / name, "-Wl,--no-as-needed", f"-L{lib}", "-lascendcl", "-x", "c", os.devnull)
    if (lib / "libascend_hal.so").exists():
        shutil.copy(lib / "libascend_hal.so", lib / "driver")
    # What MindSpore looks at of CANN's own Python packages is one version.
    package = folder / "python/hccl"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sys_version.py").write_text('__sys_version__ = "8.5.0"\n')


def _symbols(options: list[str], libraries: Iterable[Path]) -> set[str]:
    command = ["nm", "-D", "--format=posix", "--without-symbol-versions", *options, *map(str, libraries)]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return {fields[0].split("@")[0] for line in lines if len(fields := line.split()) >= 2 and not line.endswith(":")}


def _names_inside(libraries: Iterable[Path]) -> set[str]:
    text = subprocess.run(["strings", "--data", *map(str, libraries)], capture_output=True, text=True).stdout
    return {line for line in text.split("\n") if _BY_NAME.fullmatch(line)}


def _needed(library: Path) -> list[str]:
    text = subprocess.run(["readelf", "-d", library], capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\)[^\[]*\[([^\]]+)\]", text)


def _system_libraries(*names: str) -> list[Path]:
    """Libraries of the machine whose names begin so, by default those that come with a compiler."""
    begin = names or tuple(f"{name}.so" for name in _SYSTEM)
    lines = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout.splitlines()
    return [Path(line.split(" => ")[-1]) for line in lines if "x86-64" in line and line.split()[0].startswith(begin)]


def _assembly(names: Iterable[str]) -> str:
    """Every name in x86-64 assembly: data for tables of C++ classes, else code that returns 0.

    Constructors empty the object's first 16 bytes: what is destroyed later must not look like a pointer.
    """
    code, data = [".text"], [".data"]
    for name in sorted(names):
        if name.startswith(("_ZTV", "_ZTI", "_ZTS")) or name == "__stack_chk_guard":
            data += [f".globl {name}", f".type {name},@object", f".size {name},512", f"{name}: .zero 512"]
            continue
        body = "xor %eax,%eax"
        if re.search(r"C[12]E", name):
            body = "movq $0,(%rdi); movq $0,8(%rdi); mov %rdi,%rax"
        code.append(f".globl {name}; .type {name},@function; {name}: {body}; ret")
    return "\n".join([*code, *data, '.section .note.GNU-stack,"",@progbits', ""])


def _link(library: Path, *inputs: str) -> None:
    soname = f"-Wl,-soname,{library.name},-rpath,$ORIGIN"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), soname, *inputs], check=True)
