"""One question's way to the worker and back, whatever becomes of worker and connection."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.test_carrier_contract import question
from tests.streams import FakeAirlock, eventually
from tests.support import FakeSite
from wardround_client.airlock.client import AirlockUnavailable
from wardround_client.node.errand import Errand
from wardround_common.stream.parts import Piece, offer_part
from wardround_common.stream.stream_pb2 import Part
from wardround_common.types import sha256_hex
from wardround_common.wire.layout import as_bytes
from wardround_server.rounds.carrier import Question

CONNECTED = threading.Event()


class Aggregator:
    """The other end: keeps what it is sent, and sends the question's array when it is wanted."""

    def __init__(self, asked: Question, *, again: bool = False, seconds: float = 20.0) -> None:
        self.parts: list[Part] = []
        self.data = as_bytes(asked.state)
        digest = sha256_hex(asked.manifest)
        part = offer_part(digest, asked.manifest, len(self.data), seconds=seconds, again=again)
        self.airlock = FakeAirlock(FakeSite("a"))
        self.errand = Errand(part.offer, self.airlock, self.parts.append)
        self.thread = threading.Thread(target=self.errand.run, daemon=True)

    def wanted(self) -> list[int]:
        return [p.want.offset for p in self.parts if p.WhichOneof("part") == "want"]

    def offers(self) -> list[Any]:
        return [part.offer for part in self.parts if part.WhichOneof("part") == "offer"]

    def feed(self, start: int, stop: int | None = None) -> None:
        self.errand.feed(Piece(start, self.data[start:stop]), CONNECTED)

    def answer(self, offset: int = 0) -> bytes:
        parts = (Part.FromString(part) for part in self.errand.answer_parts(offset))
        return b"".join(part.chunk.data for part in parts)

    def begin(self) -> None:
        self.thread.start()
        eventually(self.wanted)


@pytest.fixture
def aggregator() -> Iterator[Aggregator]:
    aggregator = Aggregator(question())
    yield aggregator
    aggregator.errand.drop()


def test_the_array_is_wanted_passed_on_and_answered(aggregator: Aggregator) -> None:
    aggregator.begin()
    assert aggregator.wanted() == [0]
    aggregator.feed(0)
    aggregator.thread.join(5)
    (offer,) = aggregator.offers()
    assert offer.head.array_bytes == len(aggregator.answer()) == 32


def test_nothing_is_taken_before_the_worker_begins(aggregator: Aggregator) -> None:
    aggregator.feed(0)
    aggregator.begin()
    assert aggregator.wanted() == [0]
    assert aggregator.airlock.computed == []


@pytest.mark.parametrize("cut", [0, 4, 20, 28])
def test_a_question_goes_on_where_its_connection_was_lost(aggregator: Aggregator, cut: int) -> None:
    aggregator.begin()
    if cut:
        aggregator.feed(0, cut)
    aggregator.errand.offered_again()
    assert aggregator.wanted() == [0, cut]
    aggregator.feed(cut)
    aggregator.thread.join(5)
    assert len(aggregator.offers()) == 1


def test_bytes_that_are_not_the_next_ones_are_not_taken(aggregator: Aggregator) -> None:
    aggregator.begin()
    aggregator.feed(4)
    aggregator.feed(0, 8)
    aggregator.feed(0, 8)
    aggregator.feed(8)
    aggregator.thread.join(5)
    assert aggregator.airlock.received == 32


def test_a_reader_waits_for_the_worker_and_is_let_go_when_its_connection_is_lost(
    aggregator: Aggregator,
) -> None:
    lost = threading.Event()
    aggregator.errand._attempt = 1  # begun, and the worker draws nothing
    for start in (0, 4):
        aggregator.feed(start, start + 4)
    blocked = threading.Thread(
        target=aggregator.errand.feed, args=(Piece(8, memoryview(bytes(4))), lost)
    )
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    lost.set()
    aggregator.errand.wake()
    blocked.join(5)
    assert not blocked.is_alive()
    assert aggregator.errand._received == 8


def test_a_worker_that_dies_is_asked_again_from_the_first_byte(aggregator: Aggregator) -> None:
    execute = aggregator.airlock.execute
    deaths: list[int] = []

    def once(document: bytes, chunks: Any = (), *more: Any, **named: Any) -> Any:
        if not deaths:
            deaths.append(len(next(iter(chunks))))
            raise AirlockUnavailable("killed", code="worker_unavailable")
        return execute(document, chunks, *more, **named)

    aggregator.airlock.execute = once  # type: ignore[method-assign]
    aggregator.begin()
    aggregator.feed(0, 8)
    eventually(lambda: len(aggregator.wanted()) == 2)
    assert aggregator.wanted() == [0, 0]
    aggregator.feed(8)  # was on its way
    aggregator.feed(0)
    aggregator.thread.join(5)
    assert len(aggregator.airlock.computed) == 1
    assert len(aggregator.answer()) == 32


def test_a_worker_that_stays_away_is_a_failure_when_the_time_is_over() -> None:
    aggregator = Aggregator(question(), seconds=0.2)
    aggregator.airlock.down.set()
    aggregator.errand.run()
    assert [offer.head.failure for offer in aggregator.offers()] == ["worker_unavailable"]


def test_an_answer_that_is_stored_costs_no_second_transfer_of_the_question() -> None:
    aggregator = Aggregator(question(), again=True)
    aggregator.airlock.execute(question().manifest, [bytes(aggregator.data)], 32, deadline_s=1.0)
    aggregator.errand.run()
    assert aggregator.wanted() == []
    assert len(aggregator.offers()) == 1


def test_a_question_asked_before_that_is_not_stored_is_transferred() -> None:
    aggregator = Aggregator(question(), again=True)
    aggregator.begin()
    aggregator.feed(0)
    aggregator.thread.join(5)
    assert [offer.head.failure for offer in aggregator.offers()] == [""]


@pytest.mark.parametrize("offset", [0, 1, 13, 32])
def test_an_answer_is_read_again_from_the_byte_where_it_was_cut(
    aggregator: Aggregator, offset: int
) -> None:
    aggregator.begin()
    aggregator.feed(0)
    aggregator.thread.join(5)
    whole = aggregator.answer()
    assert aggregator.answer(offset) == whole[offset:]
    assert len(aggregator.airlock.computed) == 1


def test_a_worker_lost_while_its_answer_is_read_costs_nothing(aggregator: Aggregator) -> None:
    aggregator.begin()
    aggregator.feed(0)
    aggregator.thread.join(5)
    aggregator.airlock.before = lambda number: aggregator.airlock.down.set()
    threading.Timer(0.1, self_heal, [aggregator.airlock]).start()
    assert len(aggregator.answer()) == 32


def self_heal(airlock: FakeAirlock) -> None:
    airlock.before = lambda number: None
    airlock.down.clear()


def test_a_dropped_errand_says_nothing(aggregator: Aggregator) -> None:
    aggregator.begin()
    aggregator.errand.drop()
    aggregator.thread.join(5)
    assert not aggregator.thread.is_alive()
    assert aggregator.offers() == []


def test_a_newer_question_drops_one_that_is_half_way_in_and_no_other(
    aggregator: Aggregator,
) -> None:
    aggregator.begin()
    aggregator.feed(0, 4)
    aggregator.errand.drop_unless_received()
    assert aggregator.errand.dropped.is_set()
    other = Aggregator(question())
    other.begin()
    other.feed(0)
    other.errand.drop_unless_received()
    assert not other.errand.dropped.is_set()
