"""Two carriers as one: sites with an open session are asked over it, the others by Flower messages.

The rules:

1. A run's first question invites every site and waits a few seconds for their sessions; later ones
   invite those without one again, and wait for nobody.
2. A session that is lost is waited for some seconds: the site comes back and goes on where it was,
   or is invited again if its node was restarted. Then its question goes by message, and the next one
   by stream again if the session is back.
3. A site's first answer to a question counts, whichever way it came; the others are not yielded.
4. Who has a session is known from its events alone, in their order: nothing is decided by what a
   session has become in the meantime.
5. What happened is said: ``session_lost`` and ``carrier_fell_back`` in the log, and which way each
   site is asked in :attr:`StreamCarrier.ways`.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from wardround_common.log import log_event
from wardround_common.stream.parts import ArrayParts
from wardround_common.types import SiteId
from wardround_common.wire.layout import as_bytes
from wardround_common.wire.session import SessionInvite
from wardround_server.rounds.carrier import Answer, Question
from wardround_server.stream.server import StreamServer
from wardround_server.stream.session import Broken, Event, Lost, Opened

Way = Literal["stream", "messages"]
Invite = Callable[[Mapping[SiteId, SessionInvite]], None]
"""Sends invitations and does not wait for replies: who comes, opens a session."""

_POLL_S = 0.05


class Messages(Protocol):
    """What is needed of :class:`~wardround_server.rounds.carrier.FlowerCarrier`."""

    def send(
        self, question: Question, sites: Sequence[SiteId], deadline_s: float
    ) -> tuple[Answer, ...]:
        """Send a question to some of its sites; what nobody can answer is answered at once."""
        ...

    def poll(self) -> Iterable[Answer]:
        """What has arrived since; does not wait."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the carrier waits for sessions, in seconds.

    Attributes:
        open_s: for the first ones.
        lost_s: for one that was lost.
        again_s: between two invitations of a site.
    """

    open_s: float = 5.0
    lost_s: float = 20.0
    again_s: float = 10.0


@dataclass(slots=True)
class _Step:
    """One question under way.

    Attributes:
        question: what is asked.
        until: its deadline, by the carrier's clock.
        waiting: sites that have not answered.
        lost: sites whose session was lost -> when their question goes by message instead.
        by_message: sites asked by message.
        spooled: answers that lie in files.
    """

    question: Question
    until: float
    waiting: set[SiteId]
    lost: dict[SiteId, float] = field(default_factory=dict)
    by_message: set[SiteId] = field(default_factory=set)
    spooled: list[Answer] = field(default_factory=list)


class StreamCarrier:
    """A :class:`~wardround_server.rounds.carrier.Carrier` over tensor streams and Flower messages.

    Args:
        messages: the way for sites without a session.
        server: the run's sessions.
        invite: sends invitations.
        patience: how long sessions are waited for.
    """

    def __init__(
        self,
        messages: Messages,
        server: StreamServer,
        invite: Invite,
        patience: Patience | None = None,
    ) -> None:
        self._messages = messages
        self._server = server
        self._invite = invite
        self._patience = patience or Patience()
        self._invited: dict[SiteId, float] = {}
        self._open: set[SiteId] = set()
        self._lost_at: dict[SiteId, float] = {}
        self.ways: dict[SiteId, Way] = {}

    def ask(self, question: Question, deadline_s: float) -> Iterator[Answer]:
        """See :class:`~wardround_server.rounds.carrier.Carrier`."""
        step = _Step(question, time.monotonic() + deadline_s, set(question.sites))
        yield from self._meanwhile(step)
        yield from self._invite_missing(step)
        yield from self._begin(step)
        try:
            while step.waiting and time.monotonic() < step.until:
                yield from self._by_stream(step)
                yield from self._by_message(step)
        finally:
            self._end(step)

    def close(self) -> None:
        """The run is over: every site is told so."""
        self._server.close()

    def _invite_missing(self, step: _Step) -> Iterator[Answer]:
        """Invite who has no session; wait for those that are invited for the first time."""
        missing = [
            site
            for site in step.question.sites
            if self._server.knows(site) and site not in self._open
        ]
        awaited = {site for site in missing if site not in self._invited}
        self._invite_again(missing)
        until = min(step.until, time.monotonic() + self._patience.open_s)
        while awaited - self._open:
            left = until - time.monotonic()
            if left <= 0:
                return
            yield from self._next(step, left)

    def _invite_again(self, sites: Sequence[SiteId]) -> None:
        """Invite those that were not invited a short while ago; who has a session ignores it."""
        now = time.monotonic()
        due = [
            site
            for site in sites
            if now - self._invited.get(site, -math.inf) >= self._patience.again_s
        ]
        if due:
            self._invited |= dict.fromkeys(due, now)
            self._invite({site: self._server.invite(site) for site in due})

    def _begin(self, step: _Step) -> Iterator[Answer]:
        now, state = time.monotonic(), ArrayParts(as_bytes(step.question.state))
        for site in sorted(step.waiting):
            lost_at = self._lost_at.get(site)
            back_by = None if lost_at is None else lost_at + self._patience.lost_s
            if site in self._open or (back_by is not None and now < back_by):
                self._server.session(site).ask(step.question, state, step.until - now)
                self.ways[site] = "stream"
                if back_by is not None:
                    step.lost[site] = back_by
            else:
                step.by_message.add(site)
        yield from self._send(step, sorted(step.by_message))

    def _send(self, step: _Step, sites: Sequence[SiteId]) -> Iterator[Answer]:
        """Ask these by message."""
        if not sites:
            return
        step.by_message.update(sites)
        self.ways |= dict.fromkeys(sites, "messages")
        left = step.until - time.monotonic()
        yield from self._first(step, self._messages.send(step.question, sites, left))

    def _by_stream(self, step: _Step) -> Iterator[Answer]:
        """What happens in sessions until something has, or it is time to look elsewhere."""
        now = time.monotonic()
        until = min([step.until, *step.lost.values()])
        if step.by_message & step.waiting:
            until = min(until, now + _POLL_S)
        yield from self._next(step, max(0.0, until - now))
        now = time.monotonic()
        given_up = sorted(site for site, back_by in step.lost.items() if now >= back_by)
        for site in given_up:
            del step.lost[site]
            self._server.session(site).forget()
            log_event("carrier_fell_back", site=site)
        yield from self._send(step, [site for site in given_up if site in step.waiting])

    def _by_message(self, step: _Step) -> Iterator[Answer]:
        if step.by_message & step.waiting:
            yield from self._first(step, self._messages.poll())

    def _meanwhile(self, step: _Step) -> Iterator[Answer]:
        """Take in what happened while nobody asked."""
        while (event := self._server.next_event(0.0)) is not None:
            yield from self._take(step, event)

    def _next(self, step: _Step, timeout_s: float) -> Iterator[Answer]:
        """Take in the next event of any session, if there is one in time."""
        event = self._server.next_event(timeout_s)
        if event is not None:
            yield from self._take(step, event)

    def _take(self, step: _Step, event: Event) -> Iterator[Answer]:
        """What an event is for the step.

        Raises:
            OSError: the disk refused an array.
        """
        if isinstance(event, Broken):
            raise event.error
        if isinstance(event, Opened):
            self._open.add(event.site)
            self._lost_at.pop(event.site, None)
            step.lost.pop(event.site, None)
        elif isinstance(event, Lost):
            log_event("session_lost", site=event.site)
            self._open.discard(event.site)
            self._lost_at[event.site] = time.monotonic()
            if event.site in step.waiting - step.by_message:
                step.lost[event.site] = self._lost_at[event.site] + self._patience.lost_s
                self._invite_again([event.site])  # its node may be a new one
        else:
            yield from self._first(step, [event])

    def _first(self, step: _Step, answers: Iterable[Answer]) -> Iterator[Answer]:
        """Those that nobody gave before; late ones of earlier steps among them."""
        for answer in answers:
            if answer.spooled is not None:
                step.spooled.append(answer)
            if answer.step == step.question.step:
                if answer.site not in step.waiting:
                    continue
                step.waiting.discard(answer.site)
            yield answer

    def _end(self, step: _Step) -> None:
        """Close what is open, and delete arrays that the journal did not take over."""
        for site in step.question.sites:
            if self._server.knows(site):
                self._server.session(site).forget()
        for answer in step.spooled:
            if answer.spooled is not None:
                answer.spooled.path.unlink(missing_ok=True)
