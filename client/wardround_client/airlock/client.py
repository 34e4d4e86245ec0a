"""The node's side of the airlock: asks the worker, and passes on what comes without looking into it."""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc

from wardround_client.airlock import airlock_pb2_grpc
from wardround_client.airlock.airlock_pb2 import StatusRequest, StopRequest, WorkerStatus
from wardround_client.airlock.limits import (
    CHANNEL_OPTIONS,
    MAX_ARRAY_BYTES,
    MAX_CALL_S,
    address,
)
from wardround_common.errors import WardroundError, WireError
from wardround_common.rpc.frames import chunk_frames, chunks_of, head_frame, read_head
from wardround_common.rpc.frames_pb2 import Frame
from wardround_common.wire.step import MAX_MANIFEST_BYTES, MAX_RECEIPT_BYTES

_POLL_S = 0.2
_STATUS_S = 5.0
_SHORTEST_S = 0.001


class AirlockUnavailable(WardroundError):  # noqa: N818  a state, which passes
    """The worker is not there, or was lost while it worked; asking again is right and harmless."""

    public: ClassVar[str] = "The site's worker cannot be reached."


@dataclass(frozen=True, slots=True)
class AirlockAnswer:
    """What the worker answered.

    Attributes:
        document: the receipt's bytes; empty for a failure.
        failure: a code; empty for an answer.
        array_bytes: size of the array.
        chunks: its bytes, as they arrive; to be read once, to the end.
    """

    document: bytes
    failure: str
    array_bytes: int
    chunks: Iterator[bytes]


class AirlockClient:
    """The worker at a Unix socket.

    Args:
        socket: its path.

    Raises:
        ConfigError: the path is too long.
    """

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(address(socket), options=CHANNEL_OPTIONS)
        self._stub = airlock_pb2_grpc.AirlockStub(self._channel)

    def execute(
        self,
        document: bytes,
        chunks: Iterable[bytes | memoryview] = (),
        array_bytes: int = 0,
        *,
        deadline_s: float,
    ) -> AirlockAnswer:
        """Ask one question; returns when the answer begins.

        Args:
            document: the manifest's bytes.
            chunks: the array, in pieces of at most 1 MiB.
            array_bytes: its size.
            deadline_s: seconds that the whole may take.

        Raises:
            AirlockUnavailable: the worker is not there or went away.
            WireError: the manifest is too large, or what came back has not the form of an answer.
        """
        if len(document) > MAX_MANIFEST_BYTES:
            raise WireError("no manifest is as large as this", code="frames_size")

        def frames() -> Iterator[Frame]:
            yield head_frame(document, array_bytes)
            yield from chunk_frames(chunks)

        timeout = min(max(deadline_s, _SHORTEST_S), MAX_CALL_S)
        call = self._stub.Execute(frames(), timeout=timeout)
        answer = _Received(call)
        try:
            head = read_head(
                answer, max_document_bytes=MAX_RECEIPT_BYTES, max_array_bytes=MAX_ARRAY_BYTES
            )
        except WireError:
            call.cancel()
            raise
        received = chunks_of(answer, head.array_bytes)
        return AirlockAnswer(head.document, head.failure, head.array_bytes, received)

    def stop(self, run: str) -> bool:
        """Stop what the worker computes for a run; whether anything was.

        Raises:
            AirlockUnavailable: it is not there.
        """
        try:
            return bool(self._stub.Stop(StopRequest(run=run), timeout=_STATUS_S).stopped)
        except grpc.RpcError as error:
            raise _unavailable(error) from error

    def status(self) -> WorkerStatus:
        """How the worker is.

        Raises:
            AirlockUnavailable: it is not there.
        """
        try:
            found: WorkerStatus = self._stub.Status(StatusRequest(), timeout=_STATUS_S)
        except grpc.RpcError as error:
            raise _unavailable(error) from error
        return found

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class _Received(Iterator[Frame]):
    """Frames of an answer; a lost worker is one of our errors."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __next__(self) -> Frame:
        try:
            frame: Frame = next(self._call)
        except grpc.RpcError as error:
            raise _unavailable(error) from error
        return frame


def _unavailable(error: grpc.RpcError) -> AirlockUnavailable:
    code = error.code().name.lower() if isinstance(error, grpc.Call) else "unknown"
    return AirlockUnavailable(f"the worker did not answer ({code})", code="worker_unavailable")


def wait_for(client: AirlockClient, until: float, stop: threading.Event) -> bool:
    """Wait until the worker is there; whether it is.

    Args:
        client: the airlock.
        until: ``time.monotonic()`` at which to give up.
        stop: leave at once.
    """
    while not stop.is_set() and time.monotonic() < until:
        try:
            client.status()
        except AirlockUnavailable:
            stop.wait(_POLL_S)
        else:
            return True
    return False
