"""Decoding videos in processes of their own: a file that hangs or kills its decoder costs that file only."""

import contextlib
import json
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import latte
from latte.errors import LatteError
from latte.storage.manifest import RUN_AGAIN
from latte.video import confinement
from latte.video.decoder_process import DecodeTask, Files, files_of, line_of
from latte.video.sources import PassingError, VideoSource, as_local
from latte.video.views import View

# Added to a video's time for every frame that is read: long videos may take long, and none may drip for ever.
_PER_FRAME_S = 0.1
_START_LIMIT_S = 120.0
_COUNT_LIMIT_S = 20.0
# A thread may be in the middle of a download; it ends with that or with this process.
_STOP_LIMIT_S = 5.0
_LAST_WORDS_S = 1.0
# Chunks that one decoder may be ahead of whoever takes them.
_AHEAD_CHUNKS = 4
_PIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of decoding one video: seconds, and 0.1 more for each frame that is read; memory of its process."""

    decode_limit_s: float = 300.0
    decode_memory_gb: float = 4.0


@dataclass(frozen=True)
class Chunk:
    """The next frames of a video, uint8 RGB, (n, S, S, 3), or (n, H, W, 3) of whole ones.

    Attributes:
        index: of the video.
        frames: of it.
        size: width and height of its first frame, upright.
    """

    index: int
    frames: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class End:
    """The end of a video: how many frames it had, or why it is rejected.

    `passing` says that the trouble was not with its content, so that it may well be decoded another time; `beyond`
    which of `Limits` it was too much for, and the value that was.
    """

    index: int
    num_frames: int
    fps: float | None
    reject: str | None = None
    passing: bool = False
    beyond: dict[str, float] | None = None


def decode_all(
    sources: Sequence[VideoSource],
    image_size: int,
    workers: int = 2,
    limits: Limits = Limits(),
    chunk_frames: int = 16,
    max_frames: int | None = None,
    frame_stride: int = 1,
) -> Generator[Chunk | End, None, None]:
    """Decode videos in their order: each one's chunks, then its end.

    `workers` processes decode ahead, a few chunks each, whatever the videos' lengths; closing the iterator ends them.

    Args:
        sources: the videos.
        image_size: side of the square frames.
        workers: processes; each decodes every `workers`-th video.
        limits: of decoding one video; waiting for the caller does not count.
        chunk_frames: frames in a chunk.
        max_frames: frames of each video that are wanted at most.
        frame_stride: every so many frames one is wanted; those between are read, but not scaled or handed on.

    Raises:
        StorageError: the store does not answer. Trouble with a video itself is the `reject` of its End.
    """
    workers = max(1, min(workers, len(sources)))
    stop = threading.Event()
    ready: list[queue.Queue[Chunk | End | BaseException]] = [queue.Queue(_AHEAD_CHUNKS) for _ in range(workers)]

    def put(number: int, value: Chunk | End | BaseException) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready[number].put(value, timeout=0.1)
                return

    def work(number: int) -> None:
        try:
            with Decoder(limits, stop, tells=True) as decoder:
                for index in range(number, len(sources), workers):
                    source = sources[index]
                    task = DecodeTask("", image_size, chunk_frames, 0, frame_stride, max_frames, source.mirrored)
                    task = task if source.view is None else within(source.view, task)
                    for value in decode_one(decoder, index, source, task):
                        put(number, value)
                        if stop.is_set():
                            return
        except BaseException as error:  # raised again where the frames are taken
            put(number, error)

    threads = [threading.Thread(target=work, args=(n,), name=f"decode-{n}", daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for index in range(len(sources)):
            while True:
                value = ready[index % workers].get()
                if isinstance(value, BaseException):
                    raise value
                yield value
                if isinstance(value, End):
                    break
    finally:
        stop.set()
        for thread in threads:
            thread.join(_STOP_LIMIT_S)


def count_frames(uris: Sequence[str]) -> list[int]:
    """About how many frames videos have, without decoding them; 0 where that cannot be said within 20 s.

    Raises:
        StorageError: the store does not answer.
    """
    task = DecodeTask("", 1, only_count=True)
    with Decoder(Limits(decode_limit_s=_COUNT_LIMIT_S)) as decoder:
        ends = [list(decode_one(decoder, 0, VideoSource(uri), task))[-1] for uri in uris]
    return [end.num_frames if isinstance(end, End) else 0 for end in ends]


def within(view: View, task: DecodeTask) -> DecodeTask:
    """The task of decoding a view of the video that another one decodes all of."""
    counts = [count for count in (task.count, view.count(task.stride)) if count is not None]
    return replace(task, start=view.start, count=min(counts, default=None), crop=view.crop)


def decode_one(decoder: "Decoder", index: int, source: VideoSource, task: DecodeTask) -> Iterator[Chunk | End]:
    """Decode `source` as `task` says (its path is filled in here); see `Decoder.decode`."""
    try:
        with as_local(source) as path:
            yield from decoder.decode(index, replace(task, path=str(path)))
    except PassingError as trouble:
        yield End(index, 0, None, f"{trouble}{RUN_AGAIN}", passing=True)


class Decoder:
    """One decoder process, started when it is needed and again after it died; `tells` how it is shut away, once."""

    def __init__(self, limits: Limits = Limits(), stop: threading.Event | None = None, tells: bool = False) -> None:
        self._limits, self._stop, self._tells = limits, stop, tells
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = bytearray()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._socket is not None:
                self._socket.close()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._process = self._socket = None
        self._buffer.clear()

    def decode(self, index: int, task: DecodeTask) -> Iterator[Chunk | End]:
        """One video's chunks, then its end; a process that dies or goes beyond its limits is a reject."""
        size = task.image_size
        left_s = self._limits.decode_limit_s
        whole = False
        try:
            self._start()
            files = files_of(task.path)
            self._send(line_of(replace(task, path="", num_files=files.count)))
            while not whole:
                began = time.monotonic()
                header = json.loads(self._line(began + left_s))
                if header["kind"] == "frames":
                    count, height, width = header["count"], header["height"], header["width"]
                    fits = 0 < min(height, width) <= max(height, width) <= size
                    if not (fits and task.whole) and not height == width == size:
                        raise _DiedError  # it was taken over: frames of other sizes were asked for
                    data = self._take(count * height * width * 3, began + left_s)
                    left_s += count * task.stride * _PER_FRAME_S - (time.monotonic() - began)
                    shape = count, height, width, 3
                    yield Chunk(index, np.frombuffer(data, np.uint8).reshape(shape), tuple(header["size"]))
                elif header["kind"] == "open":
                    self._hand_over(files, header["number"])
                elif header["kind"] == "end":
                    whole = True
                    yield End(index, header["num_frames"], header["fps"])
                elif header["kind"] == "reject":
                    whole = True
                    yield End(index, 0, None, header["reason"])
                else:
                    yield self._beyond(index, "decode_memory_gb", "decoding took more than {:g} GB of memory")
                    return
        except TimeoutError:
            yield self._beyond(index, "decode_limit_s", "decoding took longer than {:g} s and 0.1 s a frame")
        except _DiedError:
            yield End(index, 0, None, f"its decoder {self._death()}")
        except _StoppedError:
            return
        finally:
            if not whole:
                self.close()

    def _beyond(self, index: int, limit: str, reason: str) -> End:
        value = getattr(self._limits, limit)
        return End(index, 0, None, f"{reason.format(value)}; raise {limit}", beyond={limit: value})

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        search = os.pathsep.join(filter(None, [str(Path(latte.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        memory_bytes = int(self._limits.decode_memory_gb * 1e9)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: a file of the current folder that is called like a library is not one.
                [sys.executable, "-P", "-m", "latte.video.decoder_process", str(os.getpid()), str(memory_bytes)],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**confinement.environment(os.environ), "PYTHONPATH": search},
                start_new_session=True,  # Ctrl-C is for the parent, which ends its decoders
            )
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]
        try:
            ready = json.loads(self._line(time.monotonic() + _START_LIMIT_S))
        except (_DiedError, TimeoutError):
            raise LatteError(
                f"a decoder process does not start: python -m latte.video.decoder_process {self._death()}"
            ) from None
        if self._tells:
            confinement.tell_once(ready["open_because"])

    def _hand_over(self, files: Files, number: int) -> None:
        """Open one of the video's own files for the process; it gets nothing else, whatever it asks for."""
        if number not in range(1 if files.count is None else files.count):
            raise _DiedError
        try:
            with files.open(number) as file:
                self._send(json.dumps({"name": file.name}).encode() + b"\n", [file.fileno()])
        except OSError as error:
            self._send(json.dumps({"errno": error.errno}).encode() + b"\n")

    def _send(self, line: bytes, files: Sequence[int] = ()) -> None:
        if self._socket is None:
            raise _DiedError
        try:
            sent = socket.send_fds(self._socket, [line], files)
            self._socket.sendall(line[sent:])
        except ConnectionError:
            raise _DiedError from None

    def _line(self, deadline: float) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._read_more(deadline)
        return self._cut(end + 1)

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self._buffer) < count:
            self._read_more(deadline)
        return self._cut(count)

    def _cut(self, count: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return data

    def _read_more(self, deadline: float) -> None:
        pipe = self._process.stdout if self._process else None
        if pipe is None:
            raise _DiedError
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not selector.select(min(0.2, max(0.0, deadline - time.monotonic()))):
                if self._stop is not None and self._stop.is_set():
                    raise _StoppedError
                if time.monotonic() >= deadline:
                    raise TimeoutError
        data = os.read(pipe.fileno(), _PIPE_BYTES)
        if not data:
            raise _DiedError
        self._buffer += data

    def _death(self) -> str:
        if self._process is None:
            return "was not running"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)  # its pipe may be closed a moment before it has ended
        self._process.kill()
        code = self._process.wait()
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class _DiedError(Exception):
    """The decoder process is gone."""


class _StoppedError(Exception):
    """Nobody wants the frames any more."""
