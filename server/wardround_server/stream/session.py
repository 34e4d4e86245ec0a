"""One site's session: its open question, and its answer on the way, over any number of connections.

The rules:

1. A session has one connection at a time; a newer one replaces it, since it proves that the older
   is dead or abandoned: the older is cancelled, since who does not read would keep it for ever.
   What was open goes on over the new one.
2. A question is open from when it is asked until it is answered, failed or forgotten. While it is
   open it is offered on each new connection, and its array flows from the byte that the site wants.
3. An answer is for the question that its digest names. For the open one its size is checked before
   a byte is wanted; for an earlier one it is late, and its array is never wanted.
4. What is against the protocol costs the site its answer to the open question and its connection;
   so does sending much more than what may have been on its way when a question was closed.
5. The disk's refusal is the aggregator's own trouble and ends the run, not the site's contribution.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wardround_common.errors import WireError
from wardround_common.rpc.frames_pb2 import Head
from wardround_common.stream.outbox import Outbox
from wardround_common.stream.parts import ArrayParts, Piece, offer_part, over_part, want_part
from wardround_common.stream.stream_pb2 import Offer, Part, Want
from wardround_common.types import Digest, SiteId, sha256_hex
from wardround_common.wire.flower import FAILURE_CODE
from wardround_common.wire.layout import Layout
from wardround_common.wire.step import MAX_RECEIPT_BYTES
from wardround_server.mapped import mapped
from wardround_server.rounds.carrier import Answer, Question
from wardround_server.stream.spool import Spool


@dataclass(frozen=True, slots=True)
class Opened:
    """A site's node has a connection."""

    site: SiteId
    again: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """A site's node has no connection any more."""

    site: SiteId


@dataclass(frozen=True, slots=True)
class Broken:
    """The aggregator cannot go on: its own disk refused."""

    error: OSError


STRAY_BYTES = 16 << 20
"""What may be on its way when nothing more is wanted: windows and buffers of a connection, amply."""

Event = Answer | Opened | Lost | Broken
Post = Callable[[Event], None]
HangUp = Callable[[], object]


def _nothing() -> None:
    """Ends no connection."""


@dataclass(slots=True)
class _Asked:
    """An open question.

    Attributes:
        question: what was asked.
        state: its array, shared with the other sites.
        digest: names it.
        layout: of the wanted array.
        until: ``time.monotonic()`` of its deadline.
        offered: the site was offered it.
        receipt: of the answer that is coming; None before.
        spool: its array.
        wanted_over: the connection over which its array was wanted.
    """

    question: Question
    state: ArrayParts
    digest: Digest
    layout: Layout
    until: float
    offered: bool = False
    receipt: bytes | None = None
    spool: Spool | None = None
    wanted_over: Outbox | None = None


class SiteSession:
    """The session of one site in one run.

    Args:
        site: whose.
        folder: where arrays are written while they come.
        post: takes what happens, from any thread.
    """

    def __init__(self, site: SiteId, folder: Path, post: Post) -> None:
        self.site = site
        self._folder = folder
        self._post = post
        self._lock = threading.RLock()
        self._outbox: Outbox | None = None
        self._hang_up: HangUp = _nothing
        self._asked: _Asked | None = None
        self._steps: dict[str, int] = {}
        self._num_connections = 0
        self._stray_bytes = 0
        self._over = False

    @property
    def is_open(self) -> bool:
        """Whether the site has a connection."""
        return self._outbox is not None

    def ask(self, question: Question, state: ArrayParts, deadline_s: float) -> None:
        """Open a question; it is offered at once, or as soon as the site has a connection.

        Args:
            question: what to ask.
            state: the question's array, one object for all sites.
            deadline_s: seconds that the site has.
        """
        digest = sha256_hex(question.manifest)
        until = time.monotonic() + deadline_s
        with self._lock:
            self.forget()
            self._asked = _Asked(question, state, digest, question.reply_of(self.site), until)
            self._steps[digest] = question.step
            self._offer()

    def forget(self) -> None:
        """Close the open question, if any: its answer will be late."""
        with self._lock:
            asked, self._asked = self._asked, None
            if asked is None:
                return
            if asked.spool is not None:
                asked.spool.drop()
            if self._outbox is not None:
                self._outbox.send_array(None)
                self._outbox.put(want_part(asked.digest, asked.layout.num_bytes))

    def end(self) -> None:
        """Say that the run is over, now and on each later connection."""
        with self._lock:
            self.forget()
            self._over = True
            if self._outbox is not None:
                self._outbox.put(over_part())
                self._outbox.close()

    def attach(self, hang_up: HangUp = _nothing) -> Outbox:
        """A new connection; returns what is to be sent over it.

        Args:
            hang_up: ends the connection at once, whatever is on its way.
        """
        outbox = Outbox()
        with self._lock:
            if self._outbox is not None:
                self._outbox.close()
                self._hang_up()
            self._outbox, self._hang_up = outbox, hang_up
            self._num_connections += 1
            self._stray_bytes = 0
            if self._over:
                self.end()
            else:
                self._post(Opened(self.site, self._num_connections > 1))
                self._offer()
        return outbox

    def detach(self, outbox: Outbox) -> None:
        """A connection is gone."""
        outbox.close()
        with self._lock:
            if self._outbox is outbox:
                self._outbox = None
                self._post(Lost(self.site))

    def receive(self, outbox: Outbox, part: Part | Piece) -> None:
        """Take in what came over a connection.

        Raises:
            WireError: it is against the protocol; the connection is to be ended.
        """
        with self._lock:
            if self._outbox is not outbox:
                return
            try:
                self._take(outbox, part)
            except WireError as error:
                self._fail(error.code)
                raise
            except OSError as error:
                self._asked = None
                self._post(Broken(error))

    def _take(self, outbox: Outbox, part: Part | Piece) -> None:
        if isinstance(part, Piece):
            self._take_piece(part)
            return
        kind = part.WhichOneof("part")
        if kind == "offer":
            self._take_offer(outbox, part.offer)
        elif kind == "want":
            self._take_want(outbox, part.want)
        else:
            raise WireError("a part of no known kind", code="stream_form")

    def _offer(self) -> None:
        asked, outbox = self._asked, self._outbox
        if asked is None or outbox is None:
            return
        outbox.put(
            offer_part(
                asked.digest,
                asked.question.manifest,
                asked.question.state.nbytes,
                seconds=max(0.0, asked.until - time.monotonic()),
                again=asked.offered,
            )
        )
        asked.offered = True

    def _take_want(self, outbox: Outbox, want: Want) -> None:
        asked = self._asked
        if asked is not None and want.manifest_sha256 == asked.digest:
            outbox.send_array(asked.state.starting_at(want.offset))

    def _take_offer(self, outbox: Outbox, offer: Offer) -> None:
        asked = self._asked
        if asked is None or offer.manifest_sha256 != asked.digest:
            self._take_late(offer)
            return
        if failure := _failure_of(offer.head, asked.layout):
            self._fail(failure)
        elif not asked.layout.num_bytes:
            self._answer(Answer(self.site, asked.question.step, offer.head.document))
        else:
            self._want(outbox, asked, offer.head.document)

    def _take_late(self, offer: Offer) -> None:
        """An answer to an earlier question; one that was answered before is not news."""
        step = self._steps.pop(offer.manifest_sha256, None)
        if step is not None and len(offer.head.document) <= MAX_RECEIPT_BYTES:
            failure = None if offer.head.document else "no_receipt"
            self._post(Answer(self.site, step, offer.head.document, failure=failure))

    def _want(self, outbox: Outbox, asked: _Asked, receipt: bytes) -> None:
        """Want the array of an answer, once a connection; from where it stopped if it is the same."""
        if asked.receipt == receipt and asked.wanted_over is outbox:
            return
        if asked.spool is not None and asked.receipt != receipt:
            asked.spool.drop()
            asked.spool = None
        if asked.spool is None:
            name = f"{self.site}-{asked.question.step}"
            asked.spool = Spool(self._folder / name, asked.layout.num_bytes)
        asked.receipt, asked.wanted_over = receipt, outbox
        outbox.put(want_part(asked.digest, asked.spool.received))

    def _take_piece(self, piece: Piece) -> None:
        asked = self._asked
        if asked is None or asked.spool is None:
            self._stray_bytes += len(piece.data)
            if self._stray_bytes > STRAY_BYTES:
                raise WireError("an array is sent that nobody wants", code="stream_chunk")
            return
        if not asked.spool.write(piece.offset, piece.data):
            return
        spooled, step = asked.spool.finish(), asked.question.step
        update = mapped(spooled.path, asked.layout)
        self._answer(Answer(self.site, step, asked.receipt, update, spooled=spooled))

    def _fail(self, code: str) -> None:
        if self._asked is not None:
            if self._asked.spool is not None:
                self._asked.spool.drop()
            self._answer(Answer(self.site, self._asked.question.step, failure=code))

    def _answer(self, answer: Answer) -> None:
        if self._asked is not None:
            self._steps.pop(self._asked.digest, None)
            self._asked = None
        self._post(answer)


def _failure_of(head: Head, layout: Layout) -> str | None:
    """Why an offered answer is none: the site's own code, or what is wrong with its sizes."""
    if head.failure:
        well_formed = re.fullmatch(FAILURE_CODE, head.failure) is not None
        return head.failure if well_formed else "message_form"
    if not head.document:
        return "no_receipt"
    if len(head.document) > MAX_RECEIPT_BYTES:
        return "message_size"
    return None if head.array_bytes == layout.num_bytes else "update_bytes"
