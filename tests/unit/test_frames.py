"""Frames of a document and an array: what is declared is checked before anything is allocated."""

import tracemalloc
from collections.abc import Iterator

import pytest

from wardround_common.errors import WireError
from wardround_common.rpc.frames import (
    CHUNK_BYTES,
    chunk_frames,
    chunks_of,
    head_frame,
    joined,
    pieces,
    read_head,
)
from wardround_common.rpc.frames_pb2 import Frame

LIMITS = {"max_document_bytes": 100, "max_array_bytes": 1 << 34}


def received(frames: Iterator[Frame]) -> tuple[bytes, str, bytes | None]:
    """What a receiver makes of frames."""
    head = read_head(frames, **LIMITS)
    array = joined(chunks_of(frames, head.array_bytes), head.array_bytes)
    return head.document, head.failure, None if array is None else bytes(array)


@pytest.mark.parametrize(
    "size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]
)
def test_a_document_and_an_array_arrive_as_they_were(size: int) -> None:
    array = bytes(i % 251 for i in range(size))
    frames = [head_frame(b"document", size), *chunk_frames(pieces(memoryview(array)))]
    assert len(frames) == 1 + -(-size // CHUNK_BYTES)
    assert received(iter(frames)) == (b"document", "", array)


def test_a_document_goes_without_an_array_and_a_failure_without_both() -> None:
    assert received(iter([head_frame(b"document", 0)])) == (b"document", "", None)
    assert received(iter([head_frame(b"", 0, failure="no_data")])) == (b"", "no_data", None)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([], "frames_form"),
        ([Frame()], "frames_form"),
        ([Frame(chunk=b"x"), head_frame(b"d", 1)], "frames_form"),
        ([head_frame(b"d" * 101, 0)], "frames_size"),
        ([head_frame(b"d", (1 << 34) + 1)], "frames_size"),
        ([head_frame(b"d", (1 << 64) - 1)], "frames_size"),
        ([head_frame(b"d", 2), head_frame(b"d", 2)], "frames_form"),
        ([head_frame(b"d", 2), Frame(chunk=b"x"), head_frame(b"d", 1)], "frames_form"),
        ([head_frame(b"d", 2), Frame()], "frames_form"),
        ([head_frame(b"d", 2), Frame(chunk=b"x")], "frames_bytes"),
        ([head_frame(b"d", 2), Frame(chunk=b"xyz")], "frames_bytes"),
        ([head_frame(b"d", 2), Frame(chunk=b"xy"), Frame(chunk=b"z")], "frames_bytes"),
        ([head_frame(b"d", 2), Frame(chunk=b""), Frame(chunk=b"xy")], "frames_bytes"),
        ([head_frame(b"d", 0), Frame(chunk=b"x")], "frames_bytes"),
        ([head_frame(b"d", 2 * CHUNK_BYTES), Frame(chunk=bytes(CHUNK_BYTES + 1))], "frames_bytes"),
        ([head_frame(b"d", 2)], "frames_bytes"),
    ],
)
def test_frames_of_another_form_or_size_than_declared_are_refused(
    frames: list[Frame], code: str
) -> None:
    with pytest.raises(WireError) as caught:
        received(iter(frames))
    assert caught.value.code == code


def test_a_declared_size_beyond_the_limit_allocates_nothing() -> None:
    def peak(array_bytes: int) -> int:
        tracemalloc.start()
        with pytest.raises(WireError):
            received(iter([head_frame(b"d", array_bytes)]))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak((1 << 34) + 1) < 100_000
    assert peak(10_000_000) >= 10_000_000, "the failing twin: what is within the limit is allocated"


def test_chunks_are_drawn_one_at_a_time() -> None:
    drawn = 0

    def pieces() -> Iterator[bytes]:
        nonlocal drawn
        for _ in range(3):
            drawn += 1
            yield b"x"

    frames = chunk_frames(pieces())
    next(chunks_of(frames, 3))
    assert drawn == 1
