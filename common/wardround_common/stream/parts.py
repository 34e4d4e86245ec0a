"""The parts of a session, made and encoded.

A chunk is written and read as protobuf does it, but without a copy more than is needed: through
protobuf's own objects an array would be copied four times on its way out and twice on its way in, which
costs more than to encrypt it, and memory for each connection.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NewType

from wardround_common.errors import WireError
from wardround_common.rpc.frames_pb2 import Head
from wardround_common.stream.limits import CHUNK_BYTES
from wardround_common.stream.stream_pb2 import Offer, Over, Part, Want

Encoded = NewType("Encoded", bytes)
"""The bytes of a ``Part``."""

_PART_CHUNK, _CHUNK_OFFSET, _CHUNK_DATA = b"\x1a", b"\x08", b"\x12"
"""Tags of the fields ``Part.chunk``, ``Chunk.offset`` and ``Chunk.data``."""
_SHARED = 2
"""Encoded chunks that are kept for the sites that want them next."""


def offer_part(
    digest: str,
    document: bytes,
    array_bytes: int,
    *,
    failure: str = "",
    seconds: float = 0.0,
    again: bool = False,
) -> Part:
    """A question or an answer; see stream.proto."""
    head = Head(document=document, failure=failure, array_bytes=array_bytes)
    return Part(offer=Offer(manifest_sha256=digest, head=head, seconds=seconds, again=again))


def want_part(digest: str, offset: int) -> Part:
    """The wish for an array from a byte on."""
    return Part(want=Want(manifest_sha256=digest, offset=offset))


def over_part() -> Part:
    """The end of the run."""
    return Part(over=Over())


def chunk_part(offset: int, data: bytes | memoryview) -> Encoded:
    """A piece of an array.

    Args:
        offset: where in the array it begins.
        data: at least one byte.
    """
    head = _CHUNK_DATA + _varint(len(data))
    if offset:
        head = _CHUNK_OFFSET + _varint(offset) + head
    return Encoded(b"".join((_PART_CHUNK, _varint(len(head) + len(data)), head, data)))


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk that was received.

    Attributes:
        offset: where in the array it begins.
        data: a view of the message that it came in.
    """

    offset: int
    data: memoryview


def from_wire(message: bytes) -> Part | Piece:
    """A part from its bytes, as gRPC receives them.

    A chunk in the form that :func:`chunk_part` writes is not copied; whatever else protobuf takes for
    a part is read by protobuf.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    piece = _piece(message) if message[:1] == _PART_CHUNK else None
    if piece is not None:
        return piece
    part: Part = Part.FromString(message)
    if part.WhichOneof("part") == "chunk":
        return Piece(part.chunk.offset, memoryview(part.chunk.data))
    return part


def _piece(message: bytes) -> Piece | None:
    """A chunk in our own form; None for any other."""
    size, at = _read_varint(message, 1)
    if at + size != len(message):
        return None
    offset = 0
    if message[at : at + 1] == _CHUNK_OFFSET:
        offset, at = _read_varint(message, at + 1)
    if message[at : at + 1] != _CHUNK_DATA:
        return None
    size, at = _read_varint(message, at + 1)
    return Piece(offset, memoryview(message)[at:]) if at + size == len(message) else None


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A whole number and where it ends; an impossible one, and -1, where there is none."""
    value = 0
    for place, byte in enumerate(message[at : at + 9]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    return -1, -1


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, as protobuf writes whole numbers."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def to_wire(part: Part | Encoded) -> bytes:
    """The bytes of a part, as gRPC sends them."""
    return part.SerializeToString() if isinstance(part, Part) else part


class ArrayParts:
    """An array in memory as chunks: one object, and the same encoded bytes, for all that want it.

    Args:
        data: the array's bytes; must not change.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._encoded = lru_cache(_SHARED)(partial(_encoded, data))

    def starting_at(self, offset: int) -> Iterator[Encoded]:
        """Its chunks from a byte on.

        Raises:
            WireError: the offset is not within the array.
        """
        if not 0 <= offset <= self._data.nbytes:
            raise WireError("an array is wanted from behind its end", code="stream_offset")
        return self._from(offset)

    def _from(self, offset: int) -> Iterator[Encoded]:
        while offset < self._data.nbytes:
            end = offset - offset % CHUNK_BYTES + CHUNK_BYTES
            yield self._encoded(offset, end)
            offset = end


def _encoded(data: memoryview, start: int, end: int) -> Encoded:
    return chunk_part(start, data[start:end])


def chunk_parts(chunks: Iterable[bytes], offset: int) -> Iterator[tuple[int, Encoded]]:
    """An array that comes in pieces of any size, from a byte on; what is before it is passed over.

    Yields:
        Where each chunk ends, and the chunk.
    """
    at = 0
    for chunk in chunks:
        data = memoryview(chunk)
        for start in range(max(offset - at, 0), len(data), CHUNK_BYTES):
            piece = data[start : start + CHUNK_BYTES]
            yield at + start + len(piece), chunk_part(at + start, piece)
        at += len(data)
