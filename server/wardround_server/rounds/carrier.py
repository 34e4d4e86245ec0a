"""How the engine talks to sites: the ``Carrier`` seam, and Flower messages as its first form."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from wardround_common.errors import WireError
from wardround_common.log import log_event
from wardround_common.types import Digest, SiteId
from wardround_common.wire.flower import (
    MESSAGE_TYPES,
    HandedOver,
    failure_of,
    handed_over,
    json_of,
    packed_of,
    to_content,
)
from wardround_common.wire.layout import Layout, Packed
from wardround_common.wire.session import SESSION_TYPE, SessionInvite
from wardround_common.wire.step import Receipt, StepKind
from wardround_server.rounds.whereabouts import Fixed, Presence, Whereabouts

_POLL_S = 0.05
_AGAIN_S = 1.0
"""Between two attempts to ask one site."""
_INVITATION_S = 60.0
_MAX_CRASHES = 3
_SUPERLINK = 1
"""Flower's number of its SuperLink, in whose name it reports what is gone."""
_UNREADABLE, _GONE, _CRASHED = 0, frozenset({3, 4, 5}), 8
"""Flower's error codes: unknown; message, reply or node unavailable; app crashed."""
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that pass by themselves."""


@dataclass(frozen=True, slots=True)
class Question:
    """One step for a set of sites: the same bytes to each."""

    step: int
    kind: StepKind
    round: int
    sites: tuple[SiteId, ...]
    manifest: bytes
    state: Packed
    reply: Layout
    smaller: Mapping[SiteId, Layout] = field(default_factory=dict)

    def reply_of(self, site: SiteId) -> Layout:
        """What is wanted back from one site: ``reply``, or its own smaller layout."""
        return self.smaller.get(site, self.reply)


@dataclass(frozen=True, slots=True)
class Spooled:
    """A file that an array was written to while it arrived.

    Attributes:
        path: in the journal's spool; all its bytes are on disk.
        sha256: of its bytes, hashed while they came.
    """

    path: Path
    sha256: Digest


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a site for a step.

    Attributes:
        site: who, as the carrier knows it (by connection, not by the site's word).
        step: the step that the answer belongs to; an earlier one when it is late.
        receipt: the receipt's bytes, or the receipt itself where it never left this process; None
            for a failure.
        update: the array, of exactly the promised size; None where none came.
        failure: code of a site's failure or of a malformed message; None for an answer.
        handed_over: the array never left this process's memory: it is not hashed, and its memory
            is used again for the next answer.
        spooled: the file that ``update`` is a view of; None where it lies in memory.
    """

    site: SiteId
    step: int
    receipt: bytes | Receipt | None = None
    update: Packed | None = None
    failure: str | None = None
    handed_over: bool = False
    spooled: Spooled | None = None


class Carrier(Protocol):
    """Brings a question to sites and their answers back, as they arrive."""

    def ask(self, question: Question, deadline_s: float) -> Iterator[Answer]:
        """Ask every site of ``question.sites`` at once.

        Yields:
            Answers in order of arrival, late ones of earlier steps among them; ends when every
            asked site has answered or failed, or after ``deadline_s`` seconds.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message on its way.

    Attributes:
        site: to whom.
        node_id: the node that it was sent to.
        question: what it asks.
        at: Unix time of sending.
    """

    site: SiteId
    node_id: int
    question: Question
    at: float


@dataclass(slots=True)
class _Asking:
    """The question under way.

    Attributes:
        question: what is asked.
        until: its deadline, by the carrier's clock.
        unsent: site -> when to send it next, by the carrier's clock.
        crashes: site -> how often its app crashed over this question.
        answered: who has answered.
    """

    question: Question
    until: float
    unsent: dict[SiteId, float] = field(default_factory=dict)
    crashes: Counter[SiteId] = field(default_factory=Counter)
    answered: set[SiteId] = field(default_factory=set)


class FlowerCarrier:
    """Questions and answers as Flower messages over a :class:`flwr.serverapp.Grid`.

    1. Only nodes of the question's sites are ever addressed.
    2. A site that is not there is asked as soon as it comes, until the deadline; where none can come
       (in one process) it is refused at once.
    3. A message that may be lost is sent again: its node came anew after it was sent, or Flower says
       that node, message or reply are gone. A site answers the same question with the same bytes, so
       asking twice costs nothing but time. After an answer, others to the same step do not count.
    4. A SuperLink that restarts is waited for.

    Args:
        grid: Flower's, of a deployment, of its simulation runtime, or the in-process one.
        nodes: site -> Flower node id where sites never come or go; else where to look for them.
        clock: seconds; a simulation passes a clock that stands still, since there a slow
            computation is not a slow hospital.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[SiteId, int] | Whereabouts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grid = grid
        self._nodes = Fixed(nodes) if isinstance(nodes, Mapping) else nodes
        self._clock = clock
        self._open: dict[str, _Sent] = {}
        self._asking: _Asking | None = None

    def ask(self, question: Question, deadline_s: float) -> Iterator[Answer]:
        """See :class:`Carrier`."""
        started = self._clock()
        waiting = set(question.sites)
        for answer in self.send(question, question.sites, deadline_s):
            waiting.discard(answer.site)
            yield answer
        while waiting and self._clock() - started < deadline_s:
            arrived = False
            for answer in self.poll():
                arrived = True
                if answer.step == question.step:
                    waiting.discard(answer.site)
                yield answer
            if waiting and not arrived:
                time.sleep(_POLL_S)
        self._asking = None  # it holds the state

    def send(
        self, question: Question, sites: Sequence[SiteId], deadline_s: float
    ) -> tuple[Answer, ...]:
        """Send a question to some of its sites; what nobody can answer is answered at once.

        Who is not there now is asked by :meth:`poll` as soon as it comes.

        Args:
            question: what to ask.
            sites: whom; others of the question may be asked by another carrier.
            deadline_s: seconds after which a message that was not fetched is not delivered.
        """
        now = self._clock()
        if self._asking is None or self._asking.question is not question:
            self._asking = _Asking(question, now + deadline_s)
        self._asking.unsent |= dict.fromkeys(sites, now)
        self._send_due(self._asking, now)
        if self._nodes.may_come:
            return ()
        strangers = sorted(set(self._asking.unsent) - set(self._nodes.look()))
        for site in strangers:
            del self._asking.unsent[site]
        return tuple(Answer(site, question.step, failure="site_unknown") for site in strangers)

    def poll(self) -> Iterator[Answer]:
        """What has arrived since; does not wait. Sends what is to be sent again."""
        if self._open:
            for message in self._pulled():
                answer = self._read(message)
                if answer is not None:
                    yield answer
        asking = self._asking
        if asking is not None:
            self._find_lost(asking)
            self._send_due(asking, self._clock())

    def invite(self, invites: Mapping[SiteId, SessionInvite]) -> None:
        """Send invitations to a tensor stream to who is there; nobody waits for replies."""
        there = self._present()
        messages = [
            Message(
                to_content(invite.to_bytes(), None),
                there[site].node_id,
                SESSION_TYPE,
                ttl=_INVITATION_S,
            )
            for site, invite in invites.items()
            if site in there
        ]
        if messages:
            with _passing():
                self._grid.push_messages(messages)

    def _present(self) -> Mapping[SiteId, Presence]:
        """Who is there; nobody while that cannot be known."""
        with _passing():
            return self._nodes.look()
        return {}

    def _send_due(self, asking: _Asking, now: float) -> None:
        """Send the question to who is there and is to have it."""
        due = [site for site, when in asking.unsent.items() if when <= now]
        left = asking.until - now
        if not due or left <= 0:
            return
        there = self._present()
        known = [site for site in due if site in there]
        if not known:
            return
        content = to_content(asking.question.manifest, asking.question.state)
        kind, group = MESSAGE_TYPES[asking.question.kind], str(asking.question.round)
        messages = [
            Message(content, there[site].node_id, kind, ttl=left, group_id=group) for site in known
        ]
        asking.unsent |= dict.fromkeys(known, now + _AGAIN_S)
        names: list[str] = []
        with _passing():
            names = list(self._grid.push_messages(messages))
        for site, message, name in zip(known, messages, names, strict=False):
            if name:
                sent_at = message.metadata.created_at
                self._open[name] = _Sent(site, there[site].node_id, asking.question, sent_at)
                del asking.unsent[site]

    def _find_lost(self, asking: _Asking) -> None:
        """Mark for sending again what was sent before its node came anew."""
        if not self._nodes.may_come:
            return
        open_ = {
            name: sent for name, sent in self._open.items() if sent.question is asking.question
        }
        if not open_:
            return
        there = self._present()
        for name, sent in open_.items():
            found = there.get(sent.site)
            if found is not None and (found.since > sent.at or found.node_id != sent.node_id):
                log_event("message_lost", site=sent.site, code="node_came_anew")
                self._again(asking, name, 0.0)

    def _again(self, asking: _Asking, name: str, pause_s: float) -> None:
        """Give a message up, and ask its site again."""
        asking.unsent[self._open.pop(name).site] = self._clock() + pause_s

    def _pulled(self) -> list[Message]:
        with _passing():
            return list(self._grid.pull_messages(list(self._open)))
        return []

    def _read(self, message: Message) -> Answer | None:
        name = message.metadata.reply_to_message_id
        sent = self._open.get(name)
        if sent is None:
            return None
        by_flower = message.has_error() and message.metadata.src_node_id == _SUPERLINK
        if message.metadata.src_node_id != sent.node_id and not by_flower:
            return None  # another node's word does not count, and does not use up the site's
        if message.has_error():
            return self._read_error(name, sent, message.error.code, by_flower=by_flower)
        del self._open[name]
        return self._first(sent, _answer(sent, message.content))

    def _read_error(self, name: str, sent: _Sent, code: int, *, by_flower: bool) -> Answer | None:
        """What Flower's word that there is no reply comes to: asking again, or a failure."""
        asking = self._asking
        if asking is None or sent.question is not asking.question:
            del self._open[name]
            return None
        if code == _CRASHED:
            asking.crashes[sent.site] += 1
        if code in _GONE or (code == _CRASHED and asking.crashes[sent.site] < _MAX_CRASHES):
            log_event("message_lost", site=sent.site, code=f"flower_{code}")
            self._again(asking, name, _AGAIN_S)
            return None
        del self._open[name]
        failure = "message_form" if by_flower and code == _UNREADABLE else "site_unreachable"
        return self._first(sent, Answer(sent.site, sent.question.step, failure=failure))

    def _first(self, sent: _Sent, answer: Answer) -> Answer | None:
        """The answer, if it is the site's first to the step, or late."""
        asking = self._asking
        if asking is None or sent.question is not asking.question:
            return answer
        if sent.site in asking.answered:
            return None
        asking.answered.add(sent.site)
        asking.unsent.pop(sent.site, None)
        for name in [name for name, other in self._open.items() if _same(other, sent)]:
            del self._open[name]
        return answer


def _same(one: _Sent, other: _Sent) -> bool:
    """Whether two messages ask the same of the same site."""
    return one.site == other.site and one.question is other.question


@contextlib.contextmanager
def _passing() -> Iterator[None]:
    """Nothing is made of an outage: whatever was to be done is done at the next look."""
    try:
        yield
    except httpx.TransportError:
        log_event("superlink_lost")
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in _PASSING:
            raise
        log_event("superlink_lost")


def _answer(sent: _Sent, content: RecordDict) -> Answer:
    """What a reply says."""
    site, step = sent.site, sent.question.step
    if isinstance(content, HandedOver):
        return Answer(site, step, content.receipt, content.array, handed_over=True)
    try:
        failure = failure_of(content)
        if failure is not None:
            return Answer(site, step, failure=failure)
        receipt = json_of(content)
        packed = packed_of(content, sent.question.reply_of(site))
        return Answer(site, step, receipt, packed, handed_over=handed_over(content))
    except WireError as error:
        return Answer(site, step, failure=error.code)
