"""How the engine talks to sites: the ``Carrier`` seam, and Flower messages as its first form."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from wardround_common.errors import WireError
from wardround_common.types import SiteId
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
from wardround_common.wire.step import Receipt, StepKind

_POLL_S = 0.05


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
    """

    site: SiteId
    step: int
    receipt: bytes | Receipt | None = None
    update: Packed | None = None
    failure: str | None = None
    handed_over: bool = False


class Carrier(Protocol):
    """Brings a question to sites and their answers back, as they arrive."""

    def ask(self, question: Question, deadline_s: float) -> Iterator[Answer]:
        """Ask every site of ``question.sites`` at once.

        Yields:
            Answers in order of arrival, late ones of earlier steps among them; ends when every
            asked site has answered or failed, or after ``deadline_s`` seconds.
        """
        ...


class FlowerCarrier:
    """Questions and answers as Flower messages over a :class:`flwr.serverapp.Grid`.

    Args:
        grid: Flower's, of a deployment, of its simulation runtime, or the in-process one.
        node_of: site -> Flower node id; only these nodes are ever addressed.
        clock: seconds; a simulation passes a clock that stands still, since there a slow
            computation is not a slow hospital.
    """

    def __init__(
        self,
        grid: Grid,
        node_of: Mapping[SiteId, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grid = grid
        self._node_of = dict(node_of)
        self._clock = clock
        self._open: dict[str, tuple[SiteId, int, Layout]] = {}

    def ask(self, question: Question, deadline_s: float) -> Iterator[Answer]:
        """See :class:`Carrier`."""
        started = self._clock()
        known = [site for site in question.sites if site in self._node_of]
        for site in sorted(set(question.sites) - set(known)):
            yield Answer(SiteId(site), question.step, failure="site_unknown")
        waiting = self._push(question, known, deadline_s)
        while waiting and self._clock() - started < deadline_s:
            arrived = False
            for message in self._grid.pull_messages(list(self._open)):
                answer = self._read(message)
                if answer is not None:
                    arrived = True
                    if answer.step == question.step:
                        waiting.discard(answer.site)
                    yield answer
            if waiting and not arrived:
                time.sleep(_POLL_S)

    def _push(self, question: Question, sites: Sequence[SiteId], deadline_s: float) -> set[SiteId]:
        content = to_content(question.manifest, question.state)
        messages = [
            Message(
                content,
                self._node_of[site],
                MESSAGE_TYPES[question.kind],
                ttl=deadline_s,
                group_id=str(question.round),
            )
            for site in sites
        ]
        waiting: set[SiteId] = set()
        for site, message_id in zip(sites, self._grid.push_messages(messages), strict=True):
            self._open[message_id] = (site, question.step, question.reply_of(site))
            waiting.add(site)
        return waiting

    def _read(self, message: Message) -> Answer | None:
        message_id = message.metadata.reply_to_message_id
        if message_id not in self._open:
            return None
        site, step, layout = self._open[message_id]
        if message.metadata.src_node_id != self._node_of[site]:
            return None  # another node's word does not count, and does not use up the site's
        del self._open[message_id]
        if message.has_error():
            return Answer(site, step, failure="site_unreachable")
        return _answer(site, step, message.content, layout)


def _answer(site: SiteId, step: int, content: RecordDict, layout: Layout) -> Answer:
    """What a reply says."""
    if isinstance(content, HandedOver):
        return Answer(site, step, content.receipt, content.array, handed_over=True)
    try:
        failure = failure_of(content)
        if failure is not None:
            return Answer(site, step, failure=failure)
        receipt = json_of(content)
        packed = packed_of(content, layout)
        return Answer(site, step, receipt, packed, handed_over=handed_over(content))
    except WireError as error:
        return Answer(site, step, failure=error.code)
