"""A decoder finds no secret, opens nothing, reaches nobody and starts nothing, whatever a file makes of it."""

import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from latte.video import confinement
from latte.video.decoder_process import DecodeTask
from latte.video.decoders import Chunk, Decoder, decode_one
from latte.video.sources import VideoSource
from tests import video_files
from tests.video_files import decode

# Read and write what is open, more memory, threads, the end.
NEEDED = {
    "x86_64": (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 16, 24, 35, 39, 47, 56, 60, 72, 186, 202, 228, 231, 262, 318),
    "aarch64": (62, 63, 64, 57, 80, 93, 94, 98, 101, 113, 115, 134, 135, 172, 178, 212, 214, 215, 220, 222, 226, 278),
}
REFUSED = {
    "x86_64": (2, 41, 42, 49, 57 + 2, 62, 257, 322, 425, 437),
    "aarch64": (56, 198, 203, 200, 221, 129, 281, 437),
}
TGKILL = {"x86_64": 234, "aarch64": 131}


def evaluate(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the kernel does with a call, by the filter's program."""
    data = struct.pack("=IIQQ", number, architecture, 0, argument)
    at = loaded = 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
        else:
            at += if_true if (loaded == value if code == 0x15 else loaded >= value) else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_work_through_and_nothing_that_opens(machine: str) -> None:
    program, architecture = confinement.filter_of(machine, 77), {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    assert {evaluate(program, architecture, number) for number in NEEDED[machine]} == {0x7FFF0000}
    assert {evaluate(program, architecture, number) for number in REFUSED[machine]} == {0x00050001}
    assert evaluate(program, architecture, TGKILL[machine], 77) == 0x7FFF0000
    assert evaluate(program, architecture, TGKILL[machine], 78) == 0x00050001
    assert evaluate(program, 0x40000003, 5) == 0x80000000, "32-bit calls have other numbers"
    assert machine != "x86_64" or evaluate(program, architecture, 0x40000000 + 41) == 0x00050001


def test_the_numbers_are_those_of_the_kernel_s_headers() -> None:
    found = 0
    for column, path in enumerate(("x86_64-linux-gnu/asm/unistd_64.h", "asm-generic/unistd.h")):
        header = Path("/usr/include", path)
        if not header.exists():
            continue
        words = [line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR")]
        known = {line[1].split("_", 3)[-1]: int(line[2]) for line in words if len(line) > 2 and line[2].isdigit()}
        for name, numbers in confinement._REFUSED.items():
            if name in known and numbers[column] is not None:
                assert numbers[column] == known[name], name
                found += 1
    assert found, "the kernel's headers come with g++, which the README asks for"


def test_what_is_shut_away_opens_nothing_and_reaches_nobody(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        code = textwrap.dedent(
            f"""
            import ctypes, os, signal, socket, subprocess, sys, threading
            from latte.video import confinement
            go, tried = threading.Event(), []
            def attempt(what):
                try:
                    what()
                    tried.append("done")
                except OSError as error:
                    tried.append(error.errno)
            def all_of_it():
                go.wait()
                attempt(lambda: open({str(tmp_path / "token")!r}))
                attempt(lambda: open(f"/proc/{{os.getppid()}}/environ"))
                attempt(lambda: os.open({str(tmp_path / "new")!r}, os.O_CREAT | os.O_WRONLY))
                attempt(lambda: os.unlink({str(tmp_path / "token")!r}))
                attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                attempt(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
                attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                attempt(lambda: os.execv("/bin/true", ["true"]))
                attempt(lambda: os.kill(os.getppid(), 0))
            early = threading.Thread(target=all_of_it)  # a thread from before is shut away as well
            early.start()
            before = socket.socket()
            print(repr(confinement.confine()))
            go.set()
            early.join()
            attempt(lambda: before.connect(("127.0.0.1", {server.getsockname()[1]})))
            all_of_it()
            print(tried)
            """
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert done.stdout.splitlines() == ["''", str([1] * 19)], done.stderr
    assert sorted(os.listdir(tmp_path)) == ["token"]


def test_a_decoder_gets_no_secrets_and_only_the_video_s_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "KFP_TOKEN", "HF_TOKEN", "KUBECONFIG", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "a-secret")
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(40))
    with Decoder() as decoder:
        events = decode_one(decoder, 0, VideoSource(path.as_uri()), DecodeTask("", 32, 4))
        assert isinstance(next(events), Chunk)
        process = Path(f"/proc/{decoder._process.pid}")
        names = {pair.split(b"=")[0].decode() for pair in (process / "environ").read_bytes().split(b"\0") if pair}
        assert names <= set(confinement.ENVIRONMENT)
        assert b"a-secret" not in (process / "environ").read_bytes()
        opened = {os.readlink(link) for link in (process / "fd").iterdir()}
        assert {name for name in opened if name.startswith("/") and name != os.devnull} == {str(path)}
        status = (process / "status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        events.close()


@pytest.mark.parametrize("number", [-1, 1, 10**9, None, "../0.png"])
def test_a_decoder_that_asks_for_another_file_gets_none(tmp_path: Path, number: object) -> None:
    folder = video_files.write_frames(tmp_path / "frames", video_files.moving(1))
    with Decoder() as decoder:
        decoder._start()
        asked = {"kind": "open", "number": number}
        decoder._line = lambda _deadline: json.dumps(asked).encode()
        handed: list[object] = []
        decoder._send = lambda line, files=(): handed.extend(files)
        (end,) = decode_one(decoder, 0, VideoSource(folder.as_uri()), DecodeTask("", 32))
    assert end.reject.startswith("its decoder ended")
    assert not handed


def test_how_decoders_are_shut_away_is_said_once(tmp_path: Path) -> None:
    paths = [video_files.write(tmp_path / f"{n}.mp4", video_files.moving(2)) for n in range(3)]
    code = textwrap.dedent(
        """
        import sys
        from latte.video.decoders import decode_all
        from latte.video.sources import VideoSource
        list(decode_all([VideoSource(uri) for uri in sys.argv[1:]], 32, workers=2))
        list(decode_all([VideoSource(uri) for uri in sys.argv[1:]], 32, workers=2))
        """
    )
    uris = [path.as_uri() for path in paths]
    done = subprocess.run([sys.executable, "-c", code, *uris], capture_output=True, text=True)
    words = "decoders open nothing themselves, no file, no network and no program (seccomp)"
    assert done.stderr.splitlines() == [words]


def test_where_the_kernel_has_no_filter_that_is_said(monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    reason = confinement.confine()
    assert reason == "there is no filter for linux on riscv64"
    monkeypatch.setattr(confinement, "_told", False)
    confinement.tell_once(reason)
    assert capsys.readouterr().err == f"decoders can open files and the network here: {reason}\n"


def test_a_picture_is_only_what_its_formats_say_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    folders = [tmp_path / kind for kind in ("eps", "tiff", "gif", "text")]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "0.png").write_text(eps)
    Image.new("RGB", (32, 32)).save(folders[1] / "0.png", "TIFF")
    Image.new("RGB", (32, 32)).save(folders[2] / "0.png", "GIF")
    (folders[3] / "0.png").write_text("a text")
    ends = [end for _, end in decode(*folders)]
    assert {end.reject for end in ends} == {"cannot be decoded: frame 0.png: not a picture in BMP, JPEG, PNG or WebP"}
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "png", "webp"])
def test_pictures_of_all_formats_and_modes_are_read(tmp_path: Path, suffix: str) -> None:
    frames = video_files.moving(3, 32, 32)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        picture = Image.fromarray(frame).convert("L" if number == 1 else "RGB")
        exif = Image.Exif()
        exif[0x010E] = "Grüße 視"  # of a text coding that is a module of its own
        options = {} if suffix == "bmp" else {"exif": exif}
        picture.save(tmp_path / "frames" / f"{number}.{suffix}", **options)
    ((got, end),) = decode(tmp_path / "frames")
    assert end.reject is None
    assert got.shape == (3, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("concat.mp4", "ffconcat version 1.0\nfile '{other}'\n"),
        ("hls.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"),
        ("hls.avi", "#EXTM3U\n#EXTINF:1,\nfile://{other}\n#EXT-X-ENDLIST\n"),
        ("dash.mp4", '<?xml version="1.0"?><MPD><Period><BaseURL>file://{other}</BaseURL></Period></MPD>'),
        ("sdp.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("subtitles.mkv", "1\n00:00:00,000 --> 00:00:01,000\nsecret\n"),
        ("list.mov", "{other}\n"),
        ("picture%d.mp4", "x"),
    ],
)
def test_a_list_of_other_files_is_no_video(tmp_path: Path, name: str, text: str) -> None:
    other = video_files.write(tmp_path / "other" / "other.mp4", video_files.moving(3))
    Image.new("RGB", (32, 32)).save(tmp_path / "picture0.mp4", "PNG")
    (tmp_path / name).write_text(text.format(other=other))
    ((frames, end),) = decode(tmp_path / name)
    assert frames is None
    assert end.reject
