"""What a node counts: for its metrics endpoint and for ``wardround site status``.

Numbers, codes and the kinds of messages; nothing of what they hold.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from wardround_client.node.relay import Relayed
from wardround_client.node.troubles import TROUBLES
from wardround_client.status import NODE_FILE

Phase = Literal["execute", "push"]


class Link(Protocol):
    """What is told of the connection to the aggregator."""

    @property
    def trouble(self) -> str:
        """What is wrong; empty if nothing is."""
        ...

    @property
    def last_contact(self) -> float:
        """When the aggregator last answered, seconds since 1970."""
        ...


@dataclass(frozen=True, slots=True)
class Doing:
    """What a node is doing.

    Attributes:
        phase: "execute" while the worker has it, "push" while the answer is sent.
        message_type: of what.
        since: seconds since 1970.
    """

    phase: Phase
    message_type: str
    since: float


class Traffic:
    """Counters of one node."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.started = time.time()
        self.last_message = 0.0
        self.last_failure = ""
        self.num_messages = self.bytes_in = self.bytes_out = 0
        self.now: Doing | None = None
        self._messages = self._counter("messages_total", "Messages answered.", "outcome")
        self._bytes = self._counter("bytes_total", "Bytes of documents and arrays.", "direction")
        self._seconds = self._counter("seconds_total", "Seconds by phase.", "phase")

    def message(self, relayed: Relayed, *, taken: bool) -> None:
        """One message was answered."""
        self.num_messages += 1
        self.last_message, self.last_failure = time.time(), relayed.failure
        self.bytes_in += relayed.bytes_in
        self.bytes_out += relayed.bytes_out
        outcome = "failed" if relayed.failure else "answered" if taken else "not_taken"
        self._messages.labels(outcome).inc()
        self._bytes.labels("in").inc(relayed.bytes_in)
        self._bytes.labels("out").inc(relayed.bytes_out)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Seconds of the body go to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds.labels(phase).inc(time.monotonic() - started)

    @contextmanager
    def doing(self, phase: Phase, message_type: str) -> Iterator[None]:
        """The same, and meanwhile the node says what it is doing."""
        self.now = Doing(phase, message_type, time.time())
        try:
            with self.timed(phase):
                yield
        finally:
            self.now = None

    def serve(self, address: str, link: Link, worker: Callable[[], bool]) -> Callable[[], None]:
        """Start the Prometheus endpoint; returns what ends it.

        Args:
            address: ``host:port``.
            link: to the aggregator.
            worker: whether the worker answers.

        Raises:
            OSError: the address is taken.
        """
        self._gauge("online", "Whether the aggregator answers.", lambda: float(not link.trouble))
        self._gauge("worker_up", "Whether the worker answers.", lambda: float(worker()))
        self._gauge(
            "last_contact_timestamp_seconds",
            "When the aggregator last answered.",
            lambda: link.last_contact,
        )
        host, _, port = address.rpartition(":")
        server, thread = start_http_server(int(port), host.strip("[]"), registry=self.registry)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end

    def write(self, folder: Path, link: Link) -> None:
        """Rewrite the file that ``wardround site status`` reads."""
        doing = self.now
        status = {
            "pid": os.getpid(),
            "online": not link.trouble,
            "trouble": link.trouble,
            "text": TROUBLES.get(link.trouble, ""),
            "started": self.started,
            "last_contact": link.last_contact,
            "last_message": self.last_message,
            "last_failure": self.last_failure,
            "doing": "" if doing is None else doing.phase,
            "message_type": "" if doing is None else doing.message_type,
            "since": 0.0 if doing is None else doing.since,
            "messages": self.num_messages,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
        temporary = folder / f".{NODE_FILE}.tmp"
        temporary.write_text(json.dumps(status))
        temporary.replace(folder / NODE_FILE)

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"wardround_node_{name}", text, [label], registry=self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        gauge = Gauge(f"wardround_node_{name}", text, registry=self.registry)
        gauge.set_function(value)


def keep_written(write: Callable[[], None], stop: threading.Event, every_s: float = 2.0) -> None:
    """Call ``write`` now, and now and then in a thread until stopped."""

    def loop() -> None:
        while True:
            write()
            if stop.wait(every_s):
                return

    threading.Thread(target=loop, name="status", daemon=True).start()
