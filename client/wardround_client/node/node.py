"""The node's loop: a message is pulled, relayed, answered; then the next, whatever happens.

1. Messages are taken in the order in which they come, one at a time, whatever runs they belong to.
   A message holds up the others at most until its own time is over, or its run.
2. While the worker computes, the node asks every two seconds whether the run is over, and if so has
   the computation stopped: nobody trains for a run that was stopped.
3. A node that ends leaves the worker computing, and its next life brings the answer.
4. A look for a message costs the SuperLink a write into its database. So it is looked for often only
   while there is something to do: a message waits at most two per cent of the time that has passed
   since the last one, and at most two seconds.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from flwr.app import Message

from wardround_client.node.errand import Airlock
from wardround_client.node.fleet_api import GoneError
from wardround_client.node.messages import Pulled
from wardround_client.node.relay import Relayed, failed, relay
from wardround_client.node.traffic import Traffic
from wardround_common.errors import RoundError, WardroundError
from wardround_common.log import log_event
from wardround_common.wire.flower import MESSAGE_TYPES, json_of, make_reply, to_content_bytes
from wardround_common.wire.session import MAX_INVITE_BYTES, SESSION_TYPE, SessionInvite
from wardround_common.wire.step import parse, parse_manifest

_LOOK_S = 2.0
_IDLE_SHARE, _LONGEST_POLL_S = 0.02, 2.0
_KEPT_RUNS = 32
_OURS = frozenset({*MESSAGE_TYPES.values(), SESSION_TYPE})

OnSession = Callable[[bytes], bytes]
"""Takes an invitation to a tensor stream; what it returns is the reply's document."""


class Connection(Protocol):
    """What the loop needs of :class:`~wardround_client.node.fleet.FleetConnection`."""

    def pull(self) -> Pulled | None:
        """The next message; None if there is none."""
        ...

    def push(self, pulled: Pulled, reply: Message, seconds: float) -> bool:
        """Send a reply; whether it was taken."""
        ...

    def forget(self) -> None:
        """The question in hand will not be answered."""
        ...

    def run_is_over(self, run_id: int) -> bool:
        """Whether a run has ended or was stopped."""
        ...

    def time(self) -> float:
        """The aggregator's time."""
        ...


class SiteNode:
    """Serves one site.

    Args:
        connection: to the aggregator, open.
        airlock: to the worker.
        traffic: what is counted.
        stop: ends the loop; what the worker computes then is for the node's next life.
        poll_s: seconds between two looks for a message while there is something to do.
        look_s: seconds between two looks whether a run is over.

    Attributes:
        on_session: opens tensor streams; None for a node that has none.
    """

    def __init__(
        self,
        connection: Connection,
        airlock: Airlock,
        traffic: Traffic,
        stop: threading.Event,
        *,
        poll_s: float,
        look_s: float = _LOOK_S,
    ) -> None:
        self._connection = connection
        self._airlock = airlock
        self._traffic = traffic
        self._stop = stop
        self._poll_s = poll_s
        self.on_session: OnSession | None = None
        self._runs: dict[str, int] = {}
        self._look_s = look_s
        self._last = time.monotonic()

    def serve(self) -> None:
        """Answer messages until stopped."""
        while not self._stop.is_set():
            try:
                pulled = self._connection.pull()
                if pulled is not None:
                    self._serve_one(pulled)
                    continue
            except (GoneError, RoundError) as error:
                if error.code != "stopped":
                    log_event("message_dropped", code=error.code)
            self._stop.wait(self._pause())

    def _pause(self) -> float:
        idle = time.monotonic() - self._last
        return max(self._poll_s, min(_IDLE_SHARE * idle, _LONGEST_POLL_S))

    def _serve_one(self, pulled: Pulled) -> None:
        started = time.monotonic()
        with self._traffic.doing("execute", pulled.message.metadata.message_type):
            relayed = self._answer(pulled)
        seconds = time.monotonic() - started
        if relayed is None:
            if not self._stop.is_set():
                self._connection.forget()
            return
        with self._traffic.doing("push", pulled.message.metadata.message_type):
            taken = self._connection.push(pulled, relayed.reply, seconds)
        self._last = time.monotonic()
        self._traffic.message(relayed, taken=taken)
        log_event(
            "message_answered",
            phase=_phase(pulled.message.metadata.message_type),
            bytes_in=relayed.bytes_in,
            bytes_out=relayed.bytes_out,
            seconds=seconds,
            code=relayed.failure or ("taken" if taken else "not_taken"),
        )

    def _answer(self, pulled: Pulled) -> Relayed | None:
        message = pulled.message
        if message.metadata.message_type == SESSION_TYPE:
            return self._opened_session(message)
        unwanted = threading.Event()
        with self._watched(message, unwanted):
            return relay(
                message, self._airlock, unwanted, lambda: pulled.until - self._connection.time()
            )

    def run_is_over(self, run: str) -> bool:
        """Whether a run that this site was invited to has ended or was stopped, as far as known."""
        run_id = self._runs.get(run)
        return run_id is not None and self._connection.run_is_over(run_id)

    def _opened_session(self, message: Message) -> Relayed:
        if self.on_session is None:
            return failed(message, "session_unsupported")
        try:
            invitation = json_of(message.content)
            document = self.on_session(invitation)
            run = parse(SessionInvite, invitation, max_bytes=MAX_INVITE_BYTES).run
        except WardroundError as error:
            return failed(message, error.code)
        self._runs = {**dict(list(self._runs.items())[-_KEPT_RUNS:]), run: message.metadata.run_id}
        return Relayed(make_reply(message, to_content_bytes(document, None)))

    @contextmanager
    def _watched(self, message: Message, unwanted: threading.Event) -> Iterator[None]:
        """Set ``unwanted`` if the run is over, or the node ends, before the answer is there."""
        done = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(message, unwanted, done), name="watch", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            done.set()

    def _watch(self, message: Message, unwanted: threading.Event, done: threading.Event) -> None:
        until = time.monotonic() + self._look_s
        while not done.wait(min(0.1, self._look_s)):
            if self._stop.is_set():
                unwanted.set()
                return
            if time.monotonic() < until:
                continue
            if self._connection.run_is_over(message.metadata.run_id):
                unwanted.set()
                self._stop_worker(message)
                return
            until = time.monotonic() + self._look_s

    def _stop_worker(self, message: Message) -> None:
        try:
            self._airlock.stop(parse_manifest(json_of(message.content)).run)
        except WardroundError:
            return  # no step, or nobody there


def _phase(message_type: str) -> str:
    """As logs may hold it: what a stranger wrote may not."""
    return message_type if message_type in _OURS else "unknown"
