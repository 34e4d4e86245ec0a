"""A TCP proxy that does to connections what networks do: delays, cuts, swallows, half-opens.

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

Kind = Literal["none", "delay", "cut", "reset", "truncate", "half_open", "drop"]
_PIECE = 16_384


@dataclass
class Fault:
    """What happens to a connection.

    Attributes:
        kind: *delay* each piece; after ``after`` bytes in ``direction``: *cut* both ends cleanly,
            *reset* both, *truncate* (half of the piece, then cut), *half_open* (go silent in both
            directions, close nothing), *drop* (swallow one piece of bytes and go on).
        after: bytes in the chosen direction before it happens.
        direction: of the bytes that count: ``up`` from the site.
        delay_s: for *delay*.
    """

    kind: Kind = "none"
    after: int = 0
    direction: Literal["up", "down"] = "up"
    delay_s: float = 0.0


@dataclass
class FaultProxy:
    """Forwards to a port on loopback.

    Attributes:
        target: the port.
        plan: number of the connection, from 0 -> its fault.
        bytes_up, bytes_down: what passed.
    """

    target: int
    plan: Callable[[int], Fault] = lambda number: Fault()
    bytes_up: int = 0
    bytes_down: int = 0
    num_connections: int = 0
    _open: list[socket.socket] = field(default_factory=list)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where to connect."""
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End every connection now."""
        for end in list(self._open):
            _end(end)

    def close(self) -> None:
        """Stop forwarding."""
        self._closed = True
        _end(self._listener)  # wakes who accepts
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                site, _ = self._listener.accept()
                aggregator = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            fault = self.plan(self.num_connections)
            self.num_connections += 1
            self._open += [site, aggregator]
            silent = threading.Event()
            for source, sink, direction in ((site, aggregator, "up"), (aggregator, site, "down")):
                threading.Thread(
                    target=self._forward,
                    args=(source, sink, direction, fault, silent),
                    daemon=True,
                ).start()

    def _forward(
        self,
        source: socket.socket,
        sink: socket.socket,
        direction: str,
        fault: Fault,
        silent: threading.Event,
    ) -> None:
        passed, counts, happened = 0, direction == fault.direction, False
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                if silent.is_set():
                    continue
                if fault.kind == "delay":
                    time.sleep(fault.delay_s)
                elif counts and not happened and passed + len(piece) > fault.after:
                    happened = True
                    if fault.kind == "half_open":
                        silent.set()
                        continue
                    if fault.kind == "drop":
                        continue
                    if fault.kind != "none":
                        if fault.kind == "truncate":
                            sink.sendall(piece[: len(piece) // 2])
                        _end(source, reset=fault.kind == "reset")
                        _end(sink, reset=fault.kind == "reset")
                        return
                sink.sendall(piece)
                passed += len(piece)
                if direction == "up":
                    self.bytes_up += len(piece)
                else:
                    self.bytes_down += len(piece)
        _end(sink)
        _end(source)


def _end(end: socket.socket, *, reset: bool = False) -> None:
    with contextlib.suppress(OSError):
        if reset:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.shutdown(socket.SHUT_RD)  # wakes who reads from it
            end.close()
        else:
            end.shutdown(socket.SHUT_RDWR)
