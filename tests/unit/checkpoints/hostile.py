"""A collection of hostile and broken checkpoints, and a program that reads them all in a process of its own.

`python -m tests.unit.checkpoints.hostile FOLDER` writes each there, reads it under a memory limit and prints as JSON
what
became of it. Whatever gets executed creates FOLDER/canary.
"""

import io
import json
import pickle
import resource
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

MEMORY_LIMIT_BYTES = 1536 << 20
TENSOR_BYTES = struct.pack("<4f", 1, 2, 3, 4)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"\x8a" + bytes([len(pickle.encode_long(value))]) + pickle.encode_long(value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(key: str = "0", count: int = 4, kind: bytes = b"ctorch\nFloatStorage\n") -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    shape: tuple[int, ...] = (2, 2), strides: tuple[int, ...] = (2, 1), offset: int = 0, held: bytes = b""
) -> bytes:
    body = (held or storage()) + number(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"\x89ccollections\nOrderedDict\n)RtR"


def checkpoint(args: bytes = b"N", weight: bytes = b"") -> bytes:
    """The pickle of {"model": {"w": weight}, "args": args}."""
    return b"\x80\x02}(" + text("model") + b"}(" + text("w") + (weight or tensor()) + b"u" + text("args") + args + b"u."


def archive(pickled: bytes, extra: dict[str, bytes] | None = None, weights: bytes = TENSOR_BYTES) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in {"a/data.pkl": pickled, "a/data/0": weights, **(extra or {})}.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


PARTS = [text(f"p{i}") + b"N" for i in range(90_000)]


def inert(entries: bytes) -> bytes:
    """An object of a class with these entries as its state."""
    return b"ca\nB\n)\x81}(" + entries + b"ub"


def named(again: bytes, value: bytes, times: int) -> bytes:
    """Entries of a dictionary: `value`, put into the memo, then `again` under other names."""
    return text("m") + value + b"q\x01" + b"".join(text(f"m{i}") + again for i in range(times))


def hostile_pickles(canary: str) -> dict[str, bytes]:
    """Pickles that try to run something, each as one object."""
    shell = text(f"touch {canary}")
    code = text(f"open({canary!r}, 'w').close()")
    write = [text(canary), text("w")]
    inner = b"cposix\nsystem\n(" + shell + b"tR."
    attack = {
        "os.system": call("os", "system", shell),
        "posix.system": call("posix", "system", shell),
        "builtins.eval": call("builtins", "eval", code),
        "python 2 eval": call("__builtin__", "eval", code),
        "builtins.exec": call("builtins", "exec", code),
        "builtins.open": call("builtins", "open", *write),
        "io.open": call("io", "open", *write),
        "builtins.__import__": call("builtins", "__import__", text("antigravity")),
        "importlib": call("importlib", "import_module", text("antigravity")),
        "getattr chain": call("builtins", "getattr", b"cos\npath\n", text("os")),
        "subprocess.Popen": call("subprocess", "Popen", b"(", shell, b"l"),
        "subprocess.run": call("subprocess", "run", b"(", text("touch"), text(canary), b"l"),
        "runpy": call("runpy", "_run_code", code, b"}"),
        "pickle.loads": call("_pickle", "loads", b"C" + bytes([len(inner)]) + inner),
        "torch nested load": call("torch.storage", "_load_from_bytes", b"C" + bytes([len(inner)]) + inner),
        "torch.load": call("torch", "load", text(canary)),
        "torch submodule": call("torch.utils._config_module", "exec", code),
        "numpy.load": call("numpy", "load", text(canary)),
        "functools.partial": call("functools", "partial", b"cos\nsystem\n", shell) + b")R",
        "called result": call("collections", "defaultdict", b"cos\nsystem\n") + b"(" + shell + b"tR",
        "reduce of reduce": call("builtins", "map", b"cos\nsystem\n", b"(" + shell + b"l"),
        "nested in list": b"](]" + call("os", "system", shell) + b"ae",
        "nested in tensor": call("torch._utils", "_rebuild_parameter", call("os", "system", shell), b"\x88", b"}"),
        "rebuild from type": call(
            "torch._tensor", "_rebuild_from_type_v2", b"cos\nsystem\n", b"cos\nsystem\n", b"(" + shell + b"t", b"}"
        ),
        "INST": b"(" + shell + b"ios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + shell + b"o",
        "NEWOBJ": b"csubprocess\nPopen\n(" + shell + b"t\x81",
        "NEWOBJ_EX": b"csubprocess\nPopen\n(" + shell + b"t}\x92",
        "STACK_GLOBAL": text("os") + text("system") + b"\x93(" + shell + b"tR",
        "STACK_GLOBAL dotted": text("builtins") + text("__import__.__call__") + b"\x93(" + text("os") + b"tR",
        "STACK_GLOBAL of numbers": b"K\x01K\x02\x93",
        "BUILD": b"cargparse\nNamespace\n)\x81}(" + text("__class__") + b"cos\nsystem\nu" + b"b",
        "BUILD with setstate": b"}(" + text("__setstate__") + b"cos\nsystem\nu" + shell + b"b",
        "BUILD of a class": b"cos\nsystem\n(N}" + text("__call__") + b"cos\nsystem\nstb",
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x00",
        "EXT4": b"\x84\x01\x00\x00\x00",
        "PERSID": b"P" + canary.encode() + b"\n",
        "BINPERSID text": text(canary) + b"Q",
        "BINPERSID of a module": b"(" + text("module") + b"cos\nsystem\n" + text(canary) + shell + b"tQ",
        "persistent call": b"(" + text("storage") + call("os", "system", shell) + text("0") + text("cpu") + b"K\x04tQ",
        "storage type": storage(kind=b"cos\nsystem\n"),
        "append to a call": b"cos\nsystem\n)\x81" + shell + b"a",
        "set item of a class": b"cos\nsystem\n" + text("x") + shell + b"s",
        "copyreg": call("copy_reg", "_reconstructor", b"cos\nsystem\n", b"c__builtin__\nobject\n", shell),
        "next buffer": b"\x97",
    }
    return {name: checkpoint(args=code) for name, code in attack.items()}


def bombs() -> dict[str, bytes]:
    """Pickles that try to fill the memory, the stack or the time."""
    laughs = b"(K\x01t" + b"".join(b"q\x010(h\x01h\x01t" for _ in range(90))
    return {
        "deep lists": checkpoint(args=b"]" * 150_000 + b"a" * 149_999),
        "deep tuples": checkpoint(args=b")" + b"\x85" * 300_000),
        "list in itself": checkpoint(args=b"]q\x01h\x01a"),
        "module in itself": b"\x80\x02ca\nB\n)\x81q\x01}(" + text("m") + b"h\x01" + text("w") + tensor() + b"ub.",
        # 90,000 names of one module of 95,000 parts that are no tensors; of as many keys of no text; of one dictionary.
        "repeated module": b"\x80\x02ca\nB\n)\x81}(" + named(b"h\x01", inert(b"".join(PARTS)), 90_000) + b"ub.",
        "repeated numbers": b"\x80\x02ca\nB\n)\x81}(" + named(b"h\x01", inert(b"K\x01N" * 90_000), 90_000) + b"ub.",
        "repeated dictionary": b"\x80\x02}("
        + (text("model") + b"}(" + text("w") + tensor() + b"u")
        + (named(b"h\x01", b"}(" + b"".join(PARTS) + b"u", 80_000) + b"u."),
        "repeated OrderedDict": checkpoint(
            args=b"ccollections\nOrderedDict\nq\x010(]("
            + (text("k") + b"N\x86") * 90_000
            + b"etq\x020N"
            + b"h\x01h\x02R0" * 20_000
        ),
        "repeated shape": checkpoint(
            args=b"(" + b"ctorch\nSize\n(](" + b"K\x01" * 90_000 + b"etRq\x010" + storage() + b"q\x020"
            b"ctorch._utils\n_rebuild_tensor_v2\n(h\x02K\x00h\x01h\x01tq\x030"
            b"ctorch._utils\n_rebuild_tensor_v2\nq\x040" + b"h\x04h\x03R" * 60_000 + b"l"
        ),
        "repeated class name": checkpoint(
            args=b"(" + text("a" * (4 << 20)) + b"q\x010" + b"h\x01h\x01\x93" * 10_000 + b"l"
        ),
        "billion laughs": checkpoint(args=laughs),
        "billion laughs as a key": checkpoint(args=b"}" + laughs + b"Ns"),
        "long number": checkpoint(args=b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)),
        "long number in text": checkpoint(args=b"L" + b"9" * 5000 + b"L\n"),
        "number as long as memory": checkpoint(args=b"\x8b" + struct.pack("<i", 0x7FFFFFFF)),
        "bytes as long as memory": checkpoint(args=b"\x8e" + struct.pack("<Q", 1 << 60)),
        "text as long as memory": checkpoint(args=b"\x8d" + struct.pack("<Q", 1 << 40)),
        "memo": checkpoint(args=b"N" + b"".join(b"r" + struct.pack("<I", 0xFFFFFFFF - i) for i in range(100_000))),
        "too many operations": checkpoint(args=b"N" + b"20" * 250_000),
        "colliding numbers as keys": checkpoint(
            args=b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(150_000)) + b"u"
        ),
        "colliding memo": checkpoint(args=b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(1000))),
        "sets": checkpoint(args=b"(" + b"\x8f" * 350_000 + b"l"),
        "marks": checkpoint(args=b"(" * 350_000),
        "never ends": b"\x80\x02}" + b"N0" * 1000,
        "empty pickle": b"",
        "pops": b"\x80\x02" + b"0" * 100,
        "unknown memo": checkpoint(args=b"h\x63"),
    }


def wrong_tensors() -> dict[str, bytes]:
    """Tensors that do not fit their storage."""
    weights = {
        "negative shape": tensor((-2, 2)),
        "negative stride": tensor((2, 2), (-2, 1)),
        "huge shape": tensor((1 << 62, 1 << 62), (1, 1)),
        "huge number in a shape": tensor((1 << 1000, 1)),
        "expanded": tensor((1 << 40,), (0,)),
        "on top of itself": tensor((2, 2), (1, 1)),
        "outside": tensor((2, 3), (3, 1)),
        "far outside": tensor(offset=1 << 50),
        "many axes": tensor((1,) * 70_000, (1,) * 70_000),
        "strides missing": tensor((2, 2), (1,)),
        "storage too large": tensor(held=storage(count=1 << 40)),
        "storage too small": tensor(held=storage(count=1)),
        "storage elsewhere": tensor(held=storage(key="../../../../etc/passwd")),
        "storage missing": tensor(held=storage(key="7")),
        "storage type unknown": tensor(held=storage(kind=b"ctorch\nQInt8Storage\n")),
        "shape of text": call("torch._utils", "_rebuild_tensor_v2", storage(), b"K\x00", text("22"), text("21")),
        "tensor of nothing": call("torch._utils", "_rebuild_tensor_v2"),
        "tensor of a list": call("torch._utils", "_rebuild_tensor_v2", b"]", b"K\x00", b")", b")"),
    }
    found = {name: checkpoint(weight=weight) for name, weight in weights.items()}
    found["no tensors"] = b"\x80\x02}" + text("a") + b"K\x01s."
    found["names are numbers"] = b"\x80\x02}K\x01" + tensor() + b"s."
    return found


def bad_archives() -> dict[str, bytes]:
    """Zip files that are broken or lie."""
    good = archive(checkpoint())
    directory = good.index(b"PK\x01\x02")
    end = good.index(b"PK\x05\x06")

    def patched(at: int, content: bytes) -> bytes:
        return good[:at] + content + good[at + len(content) :]

    second = good.index(b"PK\x01\x02", directory + 1)
    whole = tensor((4096,), (1,), held=storage(count=4096))
    many = b"".join(text(f"w{i}") + b"h\x01" for i in range(60_000))
    repeated = b"\x80\x02}(" + text("w") + whole + b"q\x01" + many + b"u."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", checkpoint(weight=tensor((1 << 24,), (1,), held=storage(count=1 << 24))))
        file.writestr("a/data/0", bytes(64 << 20))
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    crowd = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 65535 * len(entry), 4, 0)
    return {
        "one storage 60,000 times": archive(repeated, weights=bytes(4 * 4096)),
        "deflate bomb": out.getvalue(),
        "entry outside": archive(checkpoint(), {"a/../../../tmp/x": b"x"}),
        "absolute entry": archive(checkpoint(), {"/etc/passwd": b"x"}),
        "entry twice": archive(checkpoint(), {"a/x1": b"x", "a/x2": b"y"}).replace(b"a/x2", b"a/x1"),
        "encrypted": patched(directory + 8, b"\x01\x00"),
        "unknown packing": patched(directory + 10, b"\x0e\x00"),
        "sizes disagree": patched(directory + 24, b"\xff\xff\xff\x00"),
        "beyond the file": patched(second + 42, b"\xff\xff\xff\x7f"),
        "on top of another": patched(second + 42, good[directory + 42 : directory + 46]),
        "directory elsewhere": patched(end + 16, b"\xff\xff\xff\x7f"),
        "directory as large as memory": patched(end + 12, b"\xff\xff\xff\x7f"),
        "crowd of entries": b"PK\x03\x04" + entry * 65535 + crowd,
        "no pickle": archive(b"").replace(b"data.pkl", b"data.pk_"),
        "two pickles": archive(checkpoint(), {"b/data.pkl": checkpoint()}),
        "big-endian": archive(checkpoint(), {"a/byteorder": b"big"}),
        "only a signature": b"PK\x03\x04",
        "bytes after a pickle's crc": patched(good.index(TENSOR_BYTES), b"\x01"),
    }


def other_formats() -> dict[str, bytes]:
    """Files of the other formats that are broken or lie, and files of no format."""

    def safetensors(header: object, body: bytes = bytes(16)) -> bytes:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(raw)) + raw + body

    def entry(**changes: object) -> dict[str, object]:
        return {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}

    def value(content: bytes) -> bytes:
        return b"\x0a" + bytes([len(content)]) + content

    inner = b"\x08\x02\x08\x02\x12\x07Float32\x1a\x10" + bytes(16)
    good = value(b"\x0a\x01w\x12" + bytes([len(inner)]) + inner)
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return {
        "header as large as memory": struct.pack("<Q", 1 << 62) + b"{}",
        "header too large": struct.pack("<Q", 64 << 20) + b"{" + bytes(65 << 20),
        "header deep": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "header crowded": safetensors(b"{" + b",".join(b'"%d":[]' % i for i in range(800_000)) + b"}"),
        "header not JSON": safetensors(b"{nope}"),
        "header a list": safetensors(b'{"w":[1,2]}'),
        "name twice": safetensors(b'{"w":1,"w":2}'),
        "offsets outside": safetensors(entry(data_offsets=[0, 1 << 40])),
        "offsets backwards": safetensors(entry(data_offsets=[16, 0])),
        "offsets of text": safetensors(entry(data_offsets=["0", "16"])),
        "hole": safetensors(entry(data_offsets=[4, 20]), bytes(20)),
        "rest": safetensors(entry(), bytes(20)),
        "shape of fractions": safetensors(entry(shape=[2.0, 2.0])),
        "shape negative": safetensors(entry(shape=[-2, -2])),
        "shape overflows": safetensors(entry(shape=[1 << 61, 8])),
        "type unknown": safetensors(entry(dtype="F4")),
        "type a list": safetensors(entry(dtype=["F32"])),
        "MindSpore: tensor longer than the file": b"\x0a\xff\xff\xff\x7f" + good,
        "MindSpore: number without an end": b"\x0a" + b"\xff" * 40,
        "MindSpore: shape does not fit": good.replace(b"\x08\x02", b"\x08\x03", 1),
        "MindSpore: shape negative": value(b"\x0a\x01w\x12\x15\x08" + b"\xff" * 9 + b"\x01\x12\x07Float32\x1a\x00"),
        "MindSpore: type unknown": good.replace(b"Float32", b"Float99"),
        "MindSpore: tensor twice": good + good.replace(b"\x01w", b"\x01v") + good,
        "MindSpore: wrong checksum": good + b"crc_num" + bytes(10),
        "legacy: wrong magic": pickle.dumps(1, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2),
        "legacy: system runs": legacy + b"\x80\x02" + call("os", "getcwd") + b".",
        "legacy: ends": legacy + pickle.dumps({"little_endian": True}, 2) + checkpoint(),
        "a pickle of a list": pickle.dumps([1, 2], 2),
        "empty file": b"",
        "text": b"hello\n",
        "web page": b"<!DOCTYPE html><html>not found</html>",
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "gzip": b"\x1f\x8b" + zlib.compress(bytes(1000)),
    }


def collection(canary: str) -> dict[str, bytes]:
    """Every file by what is wrong with it."""
    pickles: dict[str, bytes] = {**hostile_pickles(canary), **bombs(), **wrong_tensors()}
    return {
        **{name: archive(pickled) for name, pickled in pickles.items()},
        **bad_archives(),
        **other_formats(),
    }


def main(folder: Path, show: Callable[[str], object] = print) -> None:
    """Write and read every file of the collection; see the module's docstring."""
    from latte import checkpoints
    from latte.errors import UserError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    before = set(sys.modules)
    outcomes = {}
    for i, (name, content) in enumerate(collection(str(folder / "canary")).items()):
        path = folder / f"hostile-{i}.pt"
        path.write_bytes(content)
        try:
            tensors = checkpoints.read(str(path))
        except UserError as error:
            outcomes[name] = str(error)
        else:
            outcomes[name] = {key: value.tolist() for key, value in tensors.items()}  # type: ignore[assignment]
        path.unlink()
    # Not getrusage: its maximum includes the process that this one was started from.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_bytes = int(status["VmHWM"].split()[0]) * 1024
    modules = sorted({"torch", "mindspore", "antigravity", "subprocess", "runpy"} & (set(sys.modules) - before))
    show(json.dumps({"outcomes": outcomes, "peak_bytes": peak_bytes, "modules": modules}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
