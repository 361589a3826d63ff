"""What listens on loopback, made reachable for pods: a relay on the address that they know this machine by."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def relay(address: str, port: int) -> Iterator[int]:
    """While it lasts, whoever connects to the port that it yields, at the address, speaks to `port` of loopback."""
    with socket.create_server((address, 0)) as listening:
        threading.Thread(target=_accept, args=(listening, port), daemon=True).start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)


def _accept(listening: socket.socket, port: int) -> None:
    while True:
        try:
            caller, _ = listening.accept()
            served = socket.create_connection(("127.0.0.1", port))
        except OSError:
            return
        for ends in ((caller, served), (served, caller)):
            threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
