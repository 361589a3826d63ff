"""A container image without a registry: BusyBox alone, under the names that tests want."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
_LINKS = ("sh", "sleep", "cat", "dd", "echo", "id", "ls", "mount", "touch", "true", "wget", "tail", "date", "kill")


def write(path: Path, *names: str, entrypoint: tuple[str, ...] = ("/bin/sleep", "infinity")) -> None:
    """An archive as `docker save` writes it, of an image that has these names."""
    layer = _tar({"bin/busybox": BUSYBOX.read_bytes()}, {f"bin/{link}": "busybox" for link in _LINKS})
    layers = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    machine = {"architecture": "amd64", "os": "linux", "rootfs": layers}
    config = json.dumps({**machine, "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/bin"]}}).encode()
    manifest = [{"Config": "config.json", "RepoTags": list(names), "Layers": ["layer.tar"]}]
    path.write_bytes(
        _tar({"config.json": config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}, {})
    )


def _tar(files: dict[str, bytes], links: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return packed.getvalue()
