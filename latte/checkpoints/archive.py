"""A zip archive as a map of names to mapped bytes, checked against bombs, overlaps and entries outside of it."""

import itertools
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from latte.checkpoints.stored import Refusal, forget, show

MAX_DIRECTORY_BYTES = 32 << 20
# Weights hardly compress; torch itself stores them uncompressed. What claims more is a bomb.
MAX_RATIO = 20
MAX_INFLATED_BYTES = 1 << 30
_CHECK_BYTES = 8 << 20
_STORED, _DEFLATED = 0, 8
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class ArchiveEntry:
    """A file in the archive: where its bytes lie and how they are packed."""

    name: str
    method: int
    crc: int
    packed_bytes: int
    bytes: int
    start: int


class Archive:
    """The entries of a zip file by name; an entry's bytes are a view of the mapped file unless it is compressed."""

    def __init__(self, data: np.ndarray) -> None:
        self._data = data
        self.entries = _read_directory(data)
        # torch can save without checksums; it then writes zero for every entry.
        self._has_checksums = any(entry.crc for entry in self.entries.values())
        self._inflated_bytes = 0

    def read(self, name: str) -> np.ndarray:
        """The bytes of an entry; call `verify` before they are used.

        Raises:
            Refusal: there is no such entry, or it would grow too large.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise Refusal(f"the archive has no entry {show(name)}")
        packed = self._data[entry.start : entry.start + entry.packed_bytes]
        return packed if entry.method == _STORED else self._inflate(entry, packed)

    def verify(self, name: str, content: np.ndarray) -> np.ndarray:
        """The same bytes, their checksum verified.

        Raises:
            Refusal: the entry is damaged.
        """
        if self._has_checksums and _crc32(content) != self.entries[name].crc:
            raise Refusal(f"entry {show(name)} is damaged: its checksum is wrong")
        return content

    def _inflate(self, entry: ArchiveEntry, packed: np.ndarray) -> np.ndarray:
        self._inflated_bytes += entry.bytes
        if entry.bytes > MAX_RATIO * entry.packed_bytes + 4096 or self._inflated_bytes > MAX_INFLATED_BYTES:
            raise Refusal(f"entry {show(entry.name)} claims to inflate {entry.packed_bytes} bytes to {entry.bytes}")
        machine = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = machine.decompress(packed.data, entry.bytes + 1)
        except zlib.error:
            raise Refusal(f"entry {show(entry.name)} is damaged: it does not inflate") from None
        if len(content) != entry.bytes or not machine.eof:
            raise Refusal(f"entry {show(entry.name)} does not inflate to the {entry.bytes} bytes that it claims")
        return np.frombuffer(content, np.uint8)


def _crc32(content: np.ndarray) -> int:
    value = 0
    for start in range(0, content.size, _CHECK_BYTES):
        value = zlib.crc32(content[start : start + _CHECK_BYTES].data, value)
        forget(content)
    return value


def _read_directory(data: np.ndarray) -> dict[str, ArchiveEntry]:
    count, size, start = _find_directory(data)
    if size > MAX_DIRECTORY_BYTES:
        raise Refusal(f"its zip directory of {size} bytes is absurdly large")
    directory = _slice(data, start, size)
    entries: dict[str, ArchiveEntry] = {}
    spans = []
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > size:
            raise Refusal("its zip directory is damaged")
        fields = _ENTRY.unpack_from(directory, position)
        signature, flags, method, crc = fields[0], fields[3], fields[4], fields[7]
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        names_at = position + _ENTRY.size
        name = directory[names_at : names_at + name_bytes].decode("utf-8", "backslashreplace")
        extra = directory[names_at + name_bytes : names_at + name_bytes + extra_bytes]
        position = names_at + name_bytes + extra_bytes + comment_bytes
        if signature != b"PK\x01\x02" or position > size:
            raise Refusal("its zip directory is damaged")
        if flags & 1 or method not in (_STORED, _DEFLATED):
            raise Refusal(f"entry {show(name)} is encrypted or packed in a way that no checkpoint is")
        plain, packed, local = _sizes(fields[9], fields[8], fields[16], extra)
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or name in entries:
            raise Refusal(f"entry {show(name)} lies outside of the archive or is there twice")
        content = _content_start(data, local, name)
        if content + packed > start or (method == _STORED and plain != packed):
            raise Refusal(f"entry {show(name)} lies outside of the archive")
        entries[name] = ArchiveEntry(name, method, crc, packed, plain, content)
        spans.append((local, content + packed, name))
    spans.sort()
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin < end:
            raise Refusal(f"entries {show(first)} and {show(second)} lie on top of each other")
    return entries


def _find_directory(data: np.ndarray) -> tuple[int, int, int]:
    """Number of entries, bytes and start of the central directory."""
    tail = data[-min(data.size, _END.size + 65535) :].tobytes()
    at = last = tail.rfind(b"PK\x05\x06")
    # The archive's comment may have the same bytes in it: the right place is where a comment fills the file.
    while at >= 0 and int.from_bytes(tail[at + 20 : at + 22], "little") != len(tail) - at - _END.size:
        at = tail.rfind(b"PK\x05\x06", 0, at)
    at = at if at >= 0 else last
    if at < 0 or at + _END.size > len(tail):
        raise Refusal("its zip directory is missing; the file is truncated")
    end_at = data.size - len(tail) + at
    _, disk, first_disk, _, count, size, start, _ = _END.unpack_from(tail, at)
    locator_at = end_at - _END64_LOCATOR.size
    if locator_at >= 0:
        locator = _slice(data, locator_at, _END64_LOCATOR.size)
        if locator.startswith(b"PK\x06\x07"):
            _, disk, end_at, _ = _END64_LOCATOR.unpack(locator)
            end = _END64.unpack(_slice(data, end_at, _END64.size))
            if end[0] != b"PK\x06\x06":
                raise Refusal("its zip directory is damaged")
            first_disk, count, size, start = end[5], end[7], end[8], end[9]
    if disk or first_disk or start + size > end_at:
        raise Refusal("its zip directory is damaged")
    return count, size, start


def _sizes(plain: int, packed: int, local: int, extra: bytes) -> tuple[int, int, int]:
    """Sizes and start of an entry; what does not fit 32 bits stands in the zip64 field."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            values = [
                value for (value,) in struct.iter_unpack("<Q", extra[position + 4 : position + 4 + size // 8 * 8])
            ]
            wide = [value == 0xFFFFFFFF for value in (plain, packed, local)]
            if sum(wide) > len(values):
                raise Refusal("its zip directory is damaged")
            given = iter(values)
            plain, packed, local = (
                next(given) if is_wide else value for is_wide, value in zip(wide, (plain, packed, local), strict=True)
            )
            break
        position += 4 + size
    return plain, packed, local


def _content_start(data: np.ndarray, local: int, name: str) -> int:
    fields = _LOCAL.unpack(_slice(data, local, _LOCAL.size))
    if fields[0] != b"PK\x03\x04":
        raise Refusal(f"entry {show(name)} does not begin where the zip directory says")
    return local + _LOCAL.size + fields[9] + fields[10]


def _slice(data: np.ndarray, start: int, size: int) -> bytes:
    if start < 0 or start + size > data.size:
        raise Refusal("its zip directory points outside of the file")
    return data[start : start + size].tobytes()
