"""A document and an array as frames, and back; nothing is allocated for bytes nobody declared.

The rules for what is received, in order; each breach is a :class:`WireError` with a code:

1. The first frame is a head, and there is one only (``frames_form``).
2. Its document and the array that it declares are within the receiver's limits (``frames_size``).
3. Chunks hold 1 byte to 1 MiB each and together exactly the declared bytes (``frames_bytes``).
"""

from collections.abc import Iterable, Iterator
from typing import Final

from wardround_common.errors import WireError
from wardround_common.rpc.frames_pb2 import Frame, Head

CHUNK_BYTES: Final = 1 << 20


def pieces(data: memoryview) -> Iterator[memoryview]:
    """Views of at most :data:`CHUNK_BYTES` that together are ``data``."""
    for start in range(0, data.nbytes, CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def head_frame(document: bytes, array_bytes: int, *, failure: str = "") -> Frame:
    """The first frame of a transfer."""
    return Frame(head=Head(document=document, failure=failure, array_bytes=array_bytes))


def chunk_frames(chunks: Iterable[bytes | memoryview]) -> Iterator[Frame]:
    """The frames after it."""
    for chunk in chunks:
        yield Frame(chunk=bytes(chunk))


def read_head(frames: Iterator[Frame], *, max_document_bytes: int, max_array_bytes: int) -> Head:
    """The head of a transfer, checked.

    Args:
        frames: as they arrive; the head is taken from them.
        max_document_bytes: largest document, in bytes.
        max_array_bytes: largest array, in bytes.

    Raises:
        WireError: ``frames_form`` or ``frames_size``.
    """
    first = next(frames, None)
    if first is None or first.WhichOneof("part") != "head":
        raise WireError("a transfer begins with a head", code="frames_form")
    head = first.head
    if len(head.document) > max_document_bytes or head.array_bytes > max_array_bytes:
        raise WireError(
            f"{len(head.document)} and {head.array_bytes} bytes are declared, "
            f"{max_document_bytes} and {max_array_bytes} are allowed",
            code="frames_size",
        )
    return head


def chunks_of(frames: Iterator[Frame], array_bytes: int) -> Iterator[bytes]:
    """The chunks of a transfer whose head was read; ends after exactly the declared bytes.

    Raises:
        WireError: ``frames_form`` or ``frames_bytes``.
    """
    left = array_bytes
    for frame in frames:
        if frame.WhichOneof("part") != "chunk":
            raise WireError("a transfer has one head", code="frames_form")
        size = len(frame.chunk)
        if not 0 < size <= min(left, CHUNK_BYTES):
            raise WireError("a chunk is not within what is declared", code="frames_bytes")
        left -= size
        yield frame.chunk
    if left:
        raise WireError(f"{left} bytes of an array are missing", code="frames_bytes")


def joined(chunks: Iterable[bytes], array_bytes: int) -> memoryview | None:
    """All chunks in one buffer of exactly the declared size; None for no array."""
    if not array_bytes:
        for _ in chunks:
            pass
        return None
    buffer = memoryview(bytearray(array_bytes))
    at = 0
    for chunk in chunks:
        buffer[at : at + len(chunk)] = chunk
        at += len(chunk)
    return buffer
