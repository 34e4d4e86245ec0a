"""A federation over real tensor streams on loopback: TLS, the real server and nodes, fake workers."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.pki import Authority
from tests.support import RUN, Arrival, FakeSite, Fault, manifest_of
from wardround_client.airlock.airlock_pb2 import WorkerStatus
from wardround_client.airlock.client import AirlockAnswer, AirlockUnavailable
from wardround_client.node.stream import Pauses, StreamSessions
from wardround_common.crypto.certificates import key_digest
from wardround_common.rpc.frames import pieces
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.layout import as_bytes
from wardround_common.wire.session import SessionInvite
from wardround_server.rounds.carrier import Answer, Question
from wardround_server.stream.carrier import Patience, StreamCarrier
from wardround_server.stream.server import StreamServer

PAUSES = Pauses(first=0.02, longest=0.1, give_up=20.0)


@cache
def authority(name: str = "the consortium's") -> Authority:
    """One authority for all tests: keys take time."""
    return Authority(name)


class FakeAirlock:
    """A worker without data: the same question gets the same bytes, however often it is asked.

    A site whose fault sends nothing answers when the question's time is over.

    Attributes:
        down: while set, the worker is not there.
        computed: digests of questions in the order in which they were computed.
        received: bytes of questions' arrays.
        stopped: runs that were stopped.
        before: called before each chunk of an answer with its number.
    """

    def __init__(self, site: FakeSite, fault: Fault | None = None) -> None:
        self.site, self._fault = site, fault
        self.down = threading.Event()
        self.computed: list[str] = []
        self.received = 0
        self.stopped: list[str] = []
        self.before = lambda number: None
        self.hold: threading.Event | None = None
        self._past: list[Arrival] = []
        self._stored: dict[str, Arrival] = {}
        self._one_at_a_time = threading.Lock()

    def execute(
        self,
        document: bytes,
        chunks: Iterable[bytes | memoryview] = (),
        array_bytes: int = 0,
        *,
        deadline_s: float,
    ) -> AirlockAnswer:
        self._alive()
        digest, until = sha256_hex(document), time.monotonic() + deadline_s
        if digest not in self._stored:
            state = b"".join(bytes(chunk) for chunk in chunks)
            if len(state) != array_bytes:
                return AirlockAnswer(b"", "frames_bytes", 0, iter(()))
            self.received += len(state)
            with self._one_at_a_time:
                if digest not in self._stored:
                    self._compute(document, digest, state, until)
        return self._answer(self._stored[digest])

    def status(self) -> WorkerStatus:
        self._alive()
        return WorkerStatus(site=self.site.name)

    def stop(self, run: str) -> bool:
        self.stopped.append(run)
        return True

    def _alive(self) -> None:
        if self.down.is_set():
            raise AirlockUnavailable("down", code="worker_unavailable")

    def _compute(self, document: bytes, digest: str, state: bytes, until: float) -> None:
        manifest = manifest_of(document)
        assert sha256_hex(state) == manifest.state_sha256
        self.computed.append(digest)
        honest = self.site.reply(manifest)
        arrivals = [honest] if self._fault is None else self._fault(honest, self._past)
        self._past.append(honest)
        if self.hold is not None:
            self.hold.wait(10)
        if not arrivals:
            time.sleep(max(0.0, until - time.monotonic()))
        self._stored[digest] = arrivals[-1] if arrivals else honest

    def _answer(self, arrival: Arrival) -> AirlockAnswer:
        if arrival.failure is not None or arrival.receipt is None:
            return AirlockAnswer(b"", arrival.failure or "no_receipt", 0, iter(()))
        data = arrival.data
        if data is None:
            array = memoryview(b"")
        elif isinstance(data, bytes):
            array = memoryview(data)
        else:
            array = as_bytes(np.ascontiguousarray(data))
        return AirlockAnswer(arrival.receipt, "", array.nbytes, self._chunks(array))

    def _chunks(self, array: memoryview) -> Iterator[bytes]:
        for number, piece in enumerate(pieces(array)):
            self.before(number)
            self._alive()
            yield bytes(piece)


class NoMessages:
    """The other way, with nobody at its end; keeps what was to be sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, tuple[SiteId, ...]]] = []

    def send(
        self, question: Question, sites: Sequence[SiteId], deadline_s: float
    ) -> tuple[Answer, ...]:
        assert deadline_s > 0
        self.sent.append((question.step, tuple(sites)))
        return tuple(Answer(site, question.step, failure="site_unknown") for site in sites)

    def poll(self) -> Iterable[Answer]:
        return ()


class StreamWorld:
    """An aggregator's stream server and the nodes of its sites.

    Args:
        folder: for the spool.
        sites: who is there.
        faults: site -> fault of its worker.
        through: ``host:port`` of what stands between sites and aggregator, given its port.
    """

    def __init__(
        self,
        folder: Path,
        sites: Sequence[FakeSite],
        faults: Mapping[str, Fault] | None = None,
        *,
        pauses: Pauses = PAUSES,
        patience: Patience | None = None,
        messages: Any = None,
        absent: Sequence[str] = (),
    ) -> None:
        names = [SiteId(site.name) for site in sites]
        self.spool = folder
        self.absent = set(absent)
        self.airlocks = {s.name: FakeAirlock(s, (faults or {}).get(s.name)) for s in sites}
        self.nodes = {
            name: StreamSessions(name, authority().site(name), self.airlocks[name], pauses)
            for name in names
        }
        self.messages = messages or NoMessages()
        self.address: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.server = StreamServer(
            "127.0.0.1:0",
            authority().server(),
            run=RUN,
            sites=names,
            spool=folder,
            has_key=lambda _, certificate: key_digest(certificate) not in self.revoked,
        )
        self.carrier = StreamCarrier(
            self.messages, self.server, self.invite, patience or Patience(open_s=5.0, lost_s=5.0)
        )

    @property
    def port(self) -> int:
        """Where the aggregator listens."""
        return int(self.server.invite(next(iter(self.nodes))).address.rpartition(":")[2])

    def invite(self, invites: Mapping[SiteId, SessionInvite]) -> None:
        """As Flower messages would bring them; ``address`` sends a site another way."""
        for site, invite in invites.items():
            if site not in self.absent:
                changed = {"address": self.address.get(site, invite.address)}
                self.nodes[site].on_session(invite.model_copy(update=changed).to_bytes())

    def close(self) -> None:
        """End everything."""
        self.carrier.close()
        for node in self.nodes.values():
            node.close()


def eventually(condition: Any, within_s: float = 5.0) -> None:
    """Wait until something of another thread holds.

    Raises:
        AssertionError: it does not in time.
    """
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)
