"""One site's session at the aggregator, without a network: what it takes, and what it refuses."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_carrier_contract import question
from wardround_common.errors import WireError
from wardround_common.stream.limits import CHUNK_BYTES
from wardround_common.stream.outbox import Outbox
from wardround_common.stream.parts import (
    ArrayParts,
    Piece,
    chunk_part,
    chunk_parts,
    from_wire,
    offer_part,
    to_wire,
    want_part,
)
from wardround_common.stream.stream_pb2 import Chunk, Part
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.layout import as_bytes
from wardround_server.rounds.carrier import Answer, Question
from wardround_server.stream import session as session_module
from wardround_server.stream.session import Broken, Lost, Opened, SiteSession

RECEIPT = b'{"receipt":1}'


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def session(tmp_path: Path, events: list[Any]) -> Iterator[SiteSession]:
    session = SiteSession(SiteId("a"), tmp_path, events.append)
    yield session
    session.forget()


def received(part: Part | bytes) -> Part:
    """A part as it is at the other end, as protobuf reads it."""
    return Part.FromString(part if isinstance(part, bytes) else part.SerializeToString())


def chunk(offset: int, data: bytes) -> Piece:
    return Piece(offset, memoryview(data))


def sent(outbox: Outbox) -> list[Part]:
    """What is still to be sent, but for the array."""
    outbox.close()
    return [received(part) for part in outbox]


def drawn(outbox: Outbox, count: int) -> list[Part]:
    return [received(next(outbox)) for _ in range(count)]


def ask(session: SiteSession, asked: Question) -> None:
    session.ask(asked, ArrayParts(as_bytes(asked.state)), 10.0)


def answered(asked: Question, receipt: bytes = RECEIPT, array_bytes: int | None = None) -> Part:
    size = asked.reply.num_bytes if array_bytes is None else array_bytes
    return offer_part(sha256_hex(asked.manifest), receipt, size)


def answers(events: list[Any]) -> list[Answer]:
    return [event for event in events if isinstance(event, Answer)]


def test_a_question_is_offered_at_once_and_again_on_a_new_connection(session: SiteSession) -> None:
    asked, first = question(), session.attach()
    ask(session, asked)
    second = session.attach()
    (one,), (two,) = drawn(first, 1), drawn(second, 1)
    assert one.offer.head.document == two.offer.head.document == asked.manifest
    assert (one.offer.again, two.offer.again) == (False, True)
    assert 9.0 < one.offer.seconds <= 10.0


def test_no_byte_of_the_state_flows_before_it_is_wanted(session: SiteSession) -> None:
    asked, outbox = question(), session.attach()
    ask(session, asked)
    drawn(outbox, 1)
    session.receive(outbox, want_part(sha256_hex(asked.manifest), 8))
    (first,) = drawn(outbox, 1)
    assert (first.chunk.offset, first.chunk.data) == (8, asked.state.tobytes()[8:])


def test_an_array_is_wanted_received_and_mapped(session: SiteSession, events: list[Any]) -> None:
    asked, outbox = question(), session.attach()
    ask(session, asked)
    values = np.arange(asked.reply.num_values, dtype=np.float32)
    session.receive(outbox, answered(asked))
    for start in range(0, values.nbytes, 12):
        session.receive(outbox, chunk(start, values.tobytes()[start : start + 12]))
    (answer,) = answers(events)
    assert answer.receipt == RECEIPT
    assert answer.update is not None
    assert answer.spooled is not None
    np.testing.assert_array_equal(answer.update, values)
    assert answer.spooled.sha256 == sha256_hex(values.tobytes())
    assert answer.spooled.path.read_bytes() == values.tobytes()
    assert not answer.update.flags.writeable


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"array_bytes": 28}, "update_bytes"),
        ({"array_bytes": 0}, "update_bytes"),
        ({"array_bytes": 1 << 60}, "update_bytes"),
        ({"receipt": b""}, "no_receipt"),
        ({"receipt": b"x" * ((1 << 20) + 1)}, "message_size"),
    ],
)
def test_what_is_declared_wrongly_fails_and_nothing_is_written(
    session: SiteSession, events: list[Any], tmp_path: Path, change: Any, code: str
) -> None:
    asked, outbox = question(), session.attach()
    ask(session, asked)
    session.receive(outbox, answered(asked, **change))
    assert [answer.failure for answer in answers(events)] == [code]
    assert list(tmp_path.iterdir()) == []
    assert [part.WhichOneof("part") for part in sent(outbox)] == ["offer"]


@pytest.mark.parametrize(
    "chunks",
    [[(0, 33)], [(4, 4)], [(0, 4), (0, 4)], [(0, 4), (8, 4)], [(0, 0)], [(0, 31), (31, 2)]],
)
def test_a_chunk_that_is_not_the_wanted_one_ends_answer_and_connection(
    session: SiteSession, events: list[Any], tmp_path: Path, chunks: list[tuple[int, int]]
) -> None:
    asked, outbox = question(), session.attach()
    assert asked.reply.num_bytes == 32
    ask(session, asked)
    session.receive(outbox, answered(asked))
    *before, last = [chunk(offset, b"\0" * size) for offset, size in chunks]
    for part in before:
        session.receive(outbox, part)
    with pytest.raises(WireError, match="not the one that is wanted"):
        session.receive(outbox, last)
    assert [answer.failure for answer in answers(events)] == ["stream_chunk"]
    assert list(tmp_path.iterdir()) == []


def test_bytes_after_the_end_change_nothing_and_many_of_them_end_the_connection(
    session: SiteSession, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "STRAY_BYTES", 64)
    asked, outbox = question(), session.attach()
    ask(session, asked)
    session.receive(outbox, answered(asked))
    session.receive(outbox, chunk(0, b"\0" * 32))
    session.receive(outbox, chunk(32, b"\1" * 64))
    with pytest.raises(WireError, match="nobody wants"):
        session.receive(outbox, chunk(32, b"\1"))
    (answer,) = answers(events)
    assert answer.update is not None
    assert not answer.update.any()


@pytest.mark.parametrize("received", [0, 4, 16, 28])
def test_a_transfer_goes_on_over_a_new_connection_where_it_stopped(
    session: SiteSession, events: list[Any], received: int
) -> None:
    asked, first = question(), session.attach()
    ask(session, asked)
    data = np.arange(8, dtype=np.float32).tobytes()
    session.receive(first, answered(asked))
    if received:
        session.receive(first, chunk(0, data[:received]))
    session.detach(first)
    second = session.attach()
    session.receive(second, answered(asked))
    offer, want = drawn(second, 2)
    assert offer.offer.again
    assert want.want.offset == received
    session.receive(second, chunk(received, data[received:]))
    (answer,) = answers(events)
    assert answer.spooled is not None
    assert answer.spooled.sha256 == sha256_hex(data)


def test_another_answer_than_the_one_that_was_cut_starts_from_its_first_byte(
    session: SiteSession,
) -> None:
    asked, first = question(), session.attach()
    ask(session, asked)
    session.receive(first, answered(asked))
    session.receive(first, chunk(0, b"\0" * 4))
    second = session.attach()
    session.receive(second, answered(asked, receipt=b"{}"))
    _, want = drawn(second, 2)
    assert want.want.offset == 0


def test_the_same_answer_offered_twice_is_wanted_once(session: SiteSession) -> None:
    asked, outbox = question(), session.attach()
    ask(session, asked)
    for _ in range(3):
        session.receive(outbox, answered(asked))
    assert [part.WhichOneof("part") for part in sent(outbox)] == ["offer", "want"]


def test_an_old_connection_has_nothing_more_to_say(session: SiteSession, events: list[Any]) -> None:
    asked, old = question(kind="evaluate"), session.attach()
    ask(session, asked)
    session.attach()
    session.receive(old, answered(asked))
    session.detach(old)
    assert answers(events) == []
    assert session.is_open
    assert not any(isinstance(event, Lost) for event in events)


def test_a_late_answer_is_told_once_and_its_array_never_wanted(
    session: SiteSession, events: list[Any]
) -> None:
    early, now, outbox = question(3), question(4), session.attach()
    ask(session, early)
    ask(session, now)
    for _ in range(2):
        session.receive(outbox, answered(early))
    (late,) = answers(events)
    assert (late.step, late.receipt, late.update) == (3, RECEIPT, None)
    wants = [p.want for p in sent(outbox) if p.WhichOneof("part") == "want"]
    assert [(w.manifest_sha256, w.offset) for w in wants] == [(sha256_hex(early.manifest), 32)]


def test_a_question_nobody_asked_is_not_answered(session: SiteSession, events: list[Any]) -> None:
    outbox = session.attach()
    session.receive(outbox, offer_part("0" * 64, RECEIPT, 0))
    assert answers(events) == []


@pytest.mark.parametrize("failure", ["Mr Example, 54", "x" * 41, "\u00e9"])
def test_a_failure_code_of_another_form_is_not_passed_on(
    session: SiteSession, events: list[Any], failure: str
) -> None:
    asked, outbox = question(), session.attach()
    ask(session, asked)
    session.receive(outbox, offer_part(sha256_hex(asked.manifest), b"", 0, failure=failure))
    assert [answer.failure for answer in answers(events)] == ["message_form"]


def test_the_state_cannot_be_wanted_from_behind_its_end(session: SiteSession) -> None:
    asked, outbox = question(), session.attach()
    ask(session, asked)
    with pytest.raises(WireError, match="behind its end"):
        session.receive(outbox, want_part(sha256_hex(asked.manifest), 33))


def test_a_part_of_no_kind_ends_the_connection(session: SiteSession) -> None:
    outbox = session.attach()
    for part in (Part(), Part(over={})):
        with pytest.raises(WireError):
            session.receive(outbox, part)


def test_a_full_disk_ends_the_run_and_not_the_sites_contribution(
    session: SiteSession, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, outbox = question(), session.attach()
    ask(session, asked)
    session.receive(outbox, answered(asked))
    error = OSError(28, "No space left on device")

    def full(*_: Any) -> bool:
        raise error

    monkeypatch.setattr("wardround_server.stream.spool.Spool.write", full)
    session.receive(outbox, chunk(0, b"\0" * 32))
    assert [event for event in events if not isinstance(event, Opened)] == [Broken(error)]


def test_the_end_is_said_now_and_on_every_later_connection(session: SiteSession) -> None:
    first = session.attach()
    session.end()
    second = session.attach()
    for outbox in (first, second):
        assert [part.WhichOneof("part") for part in sent(outbox)] == ["over"]


@pytest.mark.parametrize("offset", [0, 5, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES - 1])
def test_an_array_flows_from_any_byte_in_chunks_that_end_at_the_same_places(offset: int) -> None:
    data = memoryview(np.arange(3 * CHUNK_BYTES // 4, dtype=np.float32)).cast("B")
    parts = [received(part) for part in ArrayParts(data).starting_at(offset)]
    assert b"".join(part.chunk.data for part in parts) == bytes(data[offset:])
    ends = [part.chunk.offset + len(part.chunk.data) for part in parts]
    assert ends == [end for end in (CHUNK_BYTES * n for n in (1, 2, 3)) if end > offset]


def test_sites_that_want_an_array_together_are_sent_the_same_bytes_object() -> None:
    parts = ArrayParts(memoryview(bytes(3 * CHUNK_BYTES)))
    for one, two in zip(parts.starting_at(0), parts.starting_at(0), strict=True):
        assert one is two


def test_an_array_is_let_go_of_when_nobody_wants_it() -> None:
    values = np.zeros(8, dtype=np.float32)
    parts = ArrayParts(as_bytes(values))
    list(parts.starting_at(0))
    gone = weakref.ref(parts)
    gc.disable()
    try:
        del parts
        assert gone() is None
    finally:
        gc.enable()


def test_nothing_is_wanted_from_behind_the_end() -> None:
    parts = ArrayParts(memoryview(b"1234"))
    assert list(parts.starting_at(4)) == []
    with pytest.raises(WireError, match="behind its end"):
        parts.starting_at(5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 300) | st.sampled_from([2**14, CHUNK_BYTES]))
def test_a_chunk_is_written_as_protobuf_writes_it(offset: int, size: int) -> None:
    data = b"x" * size
    written = to_wire(chunk_part(offset, data))
    assert written == Part(chunk=Chunk(offset=offset, data=data)).SerializeToString()
    assert from_wire(written) == Piece(offset, memoryview(data))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"\x1a", b"\x08", b"\x12", b"\x0a", b"\x05", b"\x80", b"\x00", b"xyz"])
        | st.binary(max_size=3),
        max_size=8,
    )
)
def test_whatever_comes_is_read_as_protobuf_reads_it(pieces: list[bytes]) -> None:
    message = b"".join(pieces)
    try:
        wanted = Part.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            from_wire(message)
        return
    found = from_wire(message)
    if isinstance(found, Piece):
        assert wanted.WhichOneof("part") == "chunk"
        assert (found.offset, bytes(found.data)) == (wanted.chunk.offset, wanted.chunk.data)
    else:
        assert found == wanted


@pytest.mark.parametrize("offset", range(13))
def test_pieces_are_passed_over_up_to_the_wanted_byte(offset: int) -> None:
    found = list(chunk_parts([b"abcd", b"efgh", b"ijkl"], offset))
    parts = [received(part).chunk for _, part in found]
    assert b"".join(part.data for part in parts) == b"abcdefghijkl"[offset:]
    assert all(b"abcdefghijkl"[part.offset] == part.data[0] for part in parts)
    assert [end for end, _ in found] == [part.offset + len(part.data) for part in parts]


def test_what_is_short_goes_before_the_next_chunk_and_a_new_array_replaces_the_old() -> None:
    outbox = Outbox()
    outbox.send_array(ArrayParts(memoryview(b"x" * (2 * CHUNK_BYTES))).starting_at(0))
    (first,) = drawn(outbox, 1)
    outbox.put(want_part("d", 1))
    outbox.send_array(ArrayParts(memoryview(b"yyy")).starting_at(0))
    want, second = drawn(outbox, 2)
    assert (first.chunk.offset, second.chunk.data) == (0, b"yyy")
    assert want.WhichOneof("part") == "want"
