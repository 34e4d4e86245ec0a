"""A TCP proxy that does to connections what networks do: delays, loses, repeats, reorders, cuts.

In one thread each direction of a connection; a *fault* decides what becomes of the bytes that pass.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "none", "delay", "drop", "duplicate", "reorder", "late", "truncate", "cut", "reset", "half_open"
]
_PIECE = 16_384
_BUFFER = 65_536
"""Of the kernel, each way of each end: what is on its way is what a proxy says it is."""


@dataclass
class Fault:
    """What happens to a connection.

    Attributes:
        kind: *delay* each piece of bytes. Or, once, after ``after`` bytes in ``direction``: *drop*
            a piece and go on, *duplicate* it, *reorder* it behind the next one, *truncate* (half of
            the piece, then cut), *cut* both ends cleanly, *reset* both, *half_open* (go silent in
            both directions, close nothing), or *late* (cut the site's end; what was on its way
            arrives after the site's next connection has been used).
        after: bytes in the chosen direction before it happens.
        direction: of the bytes that count: ``up`` from the site.
        delay_s: for *delay*.
    """

    kind: Kind = "none"
    after: int = 0
    direction: Literal["up", "down"] = "up"
    delay_s: float = 0.0


@dataclass
class _Line:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    fault: Fault
    counts: bool
    silent: threading.Event
    overtaken: threading.Event
    passed: int = 0
    happened: bool = False
    held: bytes = b""

    def take(self, piece: bytes) -> bytes | None:
        """What is sent on for a piece; None to end the connection."""
        if self.silent.is_set():
            return b""
        if self.fault.kind == "delay":
            time.sleep(self.fault.delay_s)
        held, self.held = self.held, b""
        if not self.counts or self.happened or self.passed + len(piece) <= self.fault.after:
            return piece + held
        self.happened = True
        return self._changed(piece)

    def _changed(self, piece: bytes) -> bytes | None:
        kind = self.fault.kind
        if kind in {"none", "delay"}:
            return piece
        if kind == "duplicate":
            return piece + piece
        if kind in {"drop", "half_open", "reorder"}:
            if kind == "half_open":
                self.silent.set()
            self.held = piece if kind == "reorder" else b""
            return b""
        if kind == "late":
            end(self.source)
            self.overtaken.wait(10)
            self.sink.sendall(piece)
        if kind == "truncate":
            self.sink.sendall(piece[: len(piece) // 2])
        for each in (self.source, self.sink):
            end(each, reset=kind == "reset")
        return None


@dataclass
class FaultProxy:
    """Forwards to a port on loopback.

    Attributes:
        target: the port.
        plan: number of the connection, from 0 -> its fault.
        num_bytes: direction -> what was sent on.
        num_connections: so far.
    """

    target: int
    plan: Callable[[int], Fault] = lambda number: Fault()
    num_bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    num_connections: int = 0
    _open: list[socket.socket] = field(default_factory=list)
    _overtaken: threading.Event = field(default_factory=threading.Event)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._listener = socket.socket()
        _narrow(self._listener)  # before it listens: what is accepted inherits it
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where to connect."""
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End every connection now."""
        for each in list(self._open):
            end(each)

    def close(self) -> None:
        """Stop forwarding."""
        self._closed = True
        end(self._listener)  # wakes who accepts
        self._listener.close()
        self.cut()
        self._overtaken.set()

    def _accept(self) -> None:
        while not self._closed:
            try:
                site, _ = self._listener.accept()
                aggregator = socket.socket()
                _narrow(aggregator)
                aggregator.connect(("127.0.0.1", self.target))
            except OSError:
                return
            fault, silent = self.plan(self.num_connections), threading.Event()
            self.num_connections += 1
            self._open += [site, aggregator]
            for source, sink, direction in ((site, aggregator, "up"), (aggregator, site, "down")):
                counts = direction == fault.direction
                line = _Line(source, sink, fault, counts, silent, self._overtaken)
                words = (line, direction, self.num_connections)
                threading.Thread(target=self._forward, args=words, daemon=True).start()

    def _forward(self, line: _Line, direction: str, number: int) -> None:
        with contextlib.suppress(OSError):
            while piece := line.source.recv(_PIECE):
                on_its_way = line.take(piece)
                if on_its_way is None:
                    return
                line.sink.sendall(on_its_way)
                line.passed += len(on_its_way)
                self.num_bytes[direction] += len(on_its_way)
                if number > 1 and line.passed > _BUFFER:
                    self._overtaken.set()
        if line.fault.kind != "late":
            end(line.sink)
            end(line.source)


def _narrow(each: socket.socket) -> None:
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        each.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER)


def end(each: socket.socket, *, reset: bool = False) -> None:
    """Close a connection's end, or reset it."""
    with contextlib.suppress(OSError):
        if reset:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.shutdown(socket.SHUT_RD)  # wakes who reads from it
            each.close()
        else:
            each.shutdown(socket.SHUT_RDWR)
