"""The node's end of the tensor stream: sessions that reconnect by themselves until their run is over.

The rules:

1. The node opens the connection; nothing listens at the site. It trusts the consortium's authority
   and shows the site's certificate.
2. Arrays are passed on in chunks and never held: what the worker has not taken is not drawn from
   the connection, what the connection has not taken is not drawn from the worker.
3. A connection that is lost costs no more than what was on its way: the worker goes on computing,
   question and answer go on from the byte where they stopped.
4. Of questions that wait for the worker only the newest is worth answering.
5. When the run is over, what the worker computes for it is stopped. A session that is refused or
   never comes back only ends: its run may go on by Flower messages, or invite the site again.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from wardround_client.airlock.client import AirlockUnavailable
from wardround_client.airlock.limits import MAX_ARRAY_BYTES
from wardround_client.node.errand import Airlock, Errand
from wardround_common.errors import WireError
from wardround_common.log import log_event
from wardround_common.stream.limits import (
    CALL_S,
    CHANNEL_OPTIONS,
    RUN_KEY,
    SESSION,
    TOKEN_KEY,
    Identity,
)
from wardround_common.stream.outbox import Outbox
from wardround_common.stream.parts import Piece, from_wire, to_wire
from wardround_common.stream.stream_pb2 import Offer, Part
from wardround_common.types import sha256_hex
from wardround_common.wire.session import MAX_INVITE_BYTES, SessionInvite
from wardround_common.wire.step import MAX_MANIFEST_BYTES, parse

MAX_SESSIONS: Final = 8
_FINAL = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@dataclass(frozen=True, slots=True)
class Pauses:
    """How a session reconnects, in seconds.

    Attributes:
        first: before the first attempt after a loss; doubled each time.
        longest: between two attempts.
        give_up: without a connection, before a session is given up; the aggregator may invite again.
    """

    first: float = 0.1
    longest: float = 5.0
    give_up: float = 600.0


class StreamSessions:
    """The sessions of one site, a run each.

    Args:
        site: its name.
        identity: its client certificate and key, and the consortium's authority.
        airlock: to the worker.
        pauses: how sessions reconnect.
        run_is_over: asked for a run while there is no connection: whether it has ended or was
            stopped, as far as Flower knows; None where nobody can say.
    """

    def __init__(
        self,
        site: str,
        identity: Identity,
        airlock: Airlock,
        pauses: Pauses | None = None,
        run_is_over: Callable[[str], bool] | None = None,
    ) -> None:
        self._site = site
        self._identity = identity
        self._airlock = airlock
        self._pauses = pauses or Pauses()
        self._run_is_over = run_is_over or _never
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def on_session(self, document: bytes) -> bytes:
        """Accept an invitation; the session is opened by a thread.

        Args:
            document: a :class:`~wardround_common.wire.session.SessionInvite`.

        Returns:
            The reply's document, which is empty.

        Raises:
            WireError: the invitation is malformed, for another site, or one too many.
        """
        invite = parse(SessionInvite, document, max_bytes=MAX_INVITE_BYTES)
        if invite.site != self._site:
            raise WireError("the invitation is for another site", code="session_site")
        with self._lock:
            self._sessions = {run: each for run, each in self._sessions.items() if each.is_alive}
            known = self._sessions.get(invite.run)
            if known is None or known.invite != invite:
                if known is not None:
                    known.close()
                elif len(self._sessions) >= MAX_SESSIONS:
                    raise WireError("too many runs at a time", code="session_many")
                self._sessions[invite.run] = self._started(invite)
        return b""

    @property
    def open_runs(self) -> tuple[str, ...]:
        """Runs whose session has a connection."""
        return tuple(run for run, each in list(self._sessions.items()) if each.is_open)

    def close(self) -> None:
        """End all sessions; the worker goes on, and keeps its answers."""
        with self._lock:
            for session in self._sessions.values():
                session.close()

    def _started(self, invite: SessionInvite) -> "Session":
        return Session(invite, self._identity, self._airlock, self._pauses, self._run_is_over)


class Session:
    """One run's session; begins at once, in threads of its own.

    Args:
        invite: where to.
        identity: as whom.
        airlock: to the worker.
        pauses: how to reconnect.
        run_is_over: see :class:`StreamSessions`.
    """

    def __init__(
        self,
        invite: SessionInvite,
        identity: Identity,
        airlock: Airlock,
        pauses: Pauses,
        run_is_over: Callable[[str], bool],
    ) -> None:
        self.invite = invite
        self._identity = identity
        self._airlock = airlock
        self._pauses = pauses
        self._run_is_over = run_is_over
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._outbox: Outbox | None = None
        self._call: Any = None
        self._errand: Errand | None = None
        self._next: Errand | None = None
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._connect, "stream"), (self._work, "stream-errands"))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still connects, or tries to."""
        return not self._ended.is_set()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection now."""
        return self._outbox is not None

    def close(self) -> None:
        """End it."""
        self._ended.set()
        with self._changed:
            call, errand = self._call, self._errand
            self._changed.notify_all()
        if errand is not None:
            errand.drop()
        if call is not None:
            call.cancel()

    def _connect(self) -> None:
        """Hold a connection until the run is over."""
        pause, contact = self._pauses.first, time.monotonic()
        while not self._ended.is_set():
            if self._connection():
                pause, contact = self._pauses.first, time.monotonic()
            elif self._run_is_over(self.invite.run):
                self._over()
            elif time.monotonic() - contact > self._pauses.give_up:
                self.close()
            self._ended.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  spreads, hides nothing
            pause = min(2 * pause, self._pauses.longest)

    def _connection(self) -> bool:
        """One connection from its beginning to its end; whether the aggregator took it."""
        identity, opened = self._identity, False
        credentials = grpc.ssl_channel_credentials(
            identity.authority, identity.key, identity.certificate
        )
        outbox, lost = Outbox(), threading.Event()
        metadata = ((RUN_KEY, self.invite.run), (TOKEN_KEY, self.invite.token))
        channel = grpc.secure_channel(self.invite.address, credentials, CHANNEL_OPTIONS)
        try:
            open_session: Any = channel.stream_stream(SESSION, to_wire, from_wire)
            call = open_session(outbox, metadata=metadata, timeout=CALL_S)
            self._call = call
            if self._ended.is_set():
                call.cancel()
            call.add_done_callback(lambda _: self._on_lost(outbox, lost))
            call.initial_metadata()
            if call.is_active() and not self._ended.is_set():
                opened = True
                self._outbox = outbox
                log_event("session_opened", run=self.invite.run)
            for part in call:
                self._take(part, lost)
        except grpc.RpcError as error:
            self._say_lost(error, opened=opened)
        except WireError as error:
            log_event("session_lost", run=self.invite.run, code=error.code)
        finally:
            self._outbox = self._call = None
            outbox.close()
            channel.close()
        return opened

    def _say_lost(self, error: grpc.RpcError, *, opened: bool) -> None:
        status = error.code() if isinstance(error, grpc.Call) else None
        if status in _FINAL:
            log_event("session_refused", run=self.invite.run, code=status.name.lower())
            if not self._run_is_over(self.invite.run):
                self.close()
        elif opened and not self._ended.is_set():
            log_event("session_lost", run=self.invite.run)

    def _on_lost(self, outbox: Outbox, lost: threading.Event) -> None:
        """The connection is gone, noticed by gRPC: let go of who waits for it."""
        lost.set()
        outbox.close()
        if self._errand is not None:
            self._errand.wake()

    def _take(self, part: Part | Piece, lost: threading.Event) -> None:
        errand = self._errand
        if isinstance(part, Piece):
            if errand is not None:
                errand.feed(part, lost)
            return
        kind = part.WhichOneof("part")
        if kind == "offer":
            self._take_offer(part.offer)
        elif kind == "over":
            self._over()
        elif kind == "want" and errand is not None:
            outbox = self._outbox
            if part.want.manifest_sha256 == errand.digest and outbox is not None:
                outbox.send_array(errand.answer_parts(part.want.offset))

    def _take_offer(self, offer: Offer) -> None:
        """A question.

        Raises:
            WireError: it is larger than any may be, or not the one that its digest names.
        """
        head, digest = offer.head, str(offer.manifest_sha256)
        if len(head.document) > MAX_MANIFEST_BYTES or head.array_bytes > MAX_ARRAY_BYTES:
            raise WireError("the question is too large", code="frames_size")
        if sha256_hex(head.document) != digest:
            raise WireError("the digest is not the manifest's", code="stream_form")
        errand = self._errand
        if errand is not None and errand.digest == digest:
            errand.offered_again()
            return
        if errand is not None:
            errand.drop_unless_received()
        with self._changed:
            self._errand = self._next = Errand(offer, self._airlock, self._send)
            self._changed.notify_all()

    def _send(self, part: Part) -> None:
        outbox = self._outbox
        if outbox is not None:
            outbox.put(part)

    def _work(self) -> None:
        """Run one errand after the other; only the newest of those that wait."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._ended.is_set())
                errand, self._next = self._next, None
            if self._ended.is_set() or errand is None:
                return
            errand.run()

    def _over(self) -> None:
        """The run is over: end the session, and what the worker computes for it."""
        if self._ended.is_set():
            return
        log_event("session_ended", run=self.invite.run)
        self.close()
        try:
            self._airlock.stop(self.invite.run)
        except AirlockUnavailable:
            return


def _never(run: str) -> bool:
    del run
    return False
