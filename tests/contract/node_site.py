"""A site's connection against a real SuperLink: lives that are killed, questions, answers, a proxy."""

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from flwr.app import Message

from tests.contract.real_superlink import RealSuperLink, node_key
from wardround_client.node.fleet import FleetConnection
from wardround_client.node.identity import Identity, load_identity
from wardround_client.node.in_hand import InHand
from wardround_client.node.messages import Pulled
from wardround_common.wire.flower import failure_content, make_reply, to_content_bytes

WAIT_S = 20.0


class Site:
    """A registered node and its folder; a life is a connection, and may be killed."""

    def __init__(self, superlink: RealSuperLink, folder: Path, *, known: bool = True) -> None:
        self.superlink, self.folder = superlink, folder
        key = node_key(folder / "node.key")
        self.key = key
        self.name = folder.name
        self.node_id = superlink.register(self.name, key) if known else 0
        self.lives: list[FleetConnection] = []
        self.stops: list[threading.Event] = []

    def identity(self) -> Identity:
        nothing = self.folder / "nothing"
        return load_identity(self.folder / "node.key", self.superlink.ca, nothing, nothing)

    def life(self, state: str = "state", **more: Any) -> FleetConnection:
        stop = threading.Event()
        in_hand = InHand(self.folder / state)
        life = FleetConnection(self.superlink.address, self.identity(), in_hand, stop, **more)
        self.lives.append(life)
        self.stops.append(stop)
        return life

    def opened(self, state: str = "state", **more: Any) -> FleetConnection:
        life = self.life(state, **more)
        life.open()
        return life

    def kill(self) -> None:
        """End the last life as SIGKILL would: nobody is told."""
        life = self.lives.pop()
        self.stops.pop().set()
        life._heartbeats.stop()
        life._api.close()

    def end(self) -> None:
        for life, stop in zip(self.lives, self.stops, strict=True):
            stop.set()
            life.close()


def question(site: Site, document: bytes = b"{}", array: bytes = b"", **more: Any) -> Message:
    content = to_content_bytes(document, memoryview(array))
    return Message(content, site.node_id, "train", **{"ttl": 600.0, **more})


def pulled(life: FleetConnection) -> Pulled:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        found = life.pull()
        if found is not None:
            return found
    raise AssertionError("no message came")


def answer(life: FleetConnection, message: Pulled, array: bytes = b"", code: str = "") -> bool:
    content = failure_content(code) if code else to_content_bytes(b"ok", memoryview(array))
    return life.push(message, make_reply(message.message, content), 0.1)


def replies(grid: Any, ids: list[str]) -> list[Message]:
    until, found = time.monotonic() + WAIT_S, []
    while len(found) < len(ids) and time.monotonic() < until:
        found += list(grid.pull_messages(ids))
    return found


class Tunnel:
    """A proxy that connects to wherever it is asked to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.asked: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            line = near.recv(4096).decode().splitlines()[0]
            self.asked.append(line)
            host, _, port = line.split()[1].partition(":")
            far = socket.create_connection((host, int(port)))
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_copied, args=(one, other), daemon=True).start()


def _copied(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other direction has ended
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
