"""The worker's side of the airlock: gRPC on a Unix socket, and nothing else.

What goes out is a stored answer or a failure code. No text of any exception leaves: what went wrong
in detail is for the site's own operator, through ``on_failure``.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, BinaryIO

import grpc

from wardround_client.airlock import airlock_pb2_grpc
from wardround_client.airlock.airlock_pb2 import (
    StatusRequest,
    StopReply,
    StopRequest,
    WorkerStatus,
)
from wardround_client.airlock.limits import MAX_ARRAY_BYTES, MAX_CALL_S
from wardround_client.worker.answers import Stored
from wardround_client.worker.caller import Caller, CallerLeftError
from wardround_client.worker.desk import SiteDesk, failure_code
from wardround_common import __version__
from wardround_common.errors import WireError
from wardround_common.log import log_event
from wardround_common.rpc.frames import (
    CHUNK_BYTES,
    chunk_frames,
    chunks_of,
    head_frame,
    joined,
    read_head,
)
from wardround_common.rpc.frames_pb2 import Frame, Head
from wardround_common.wire.step import MAX_MANIFEST_BYTES, parse_manifest

Failed = Callable[[Exception], None]


class AirlockService(airlock_pb2_grpc.AirlockServicer):
    """The service.

    Args:
        desk: who answers.
        on_failure: told every exception, locally.
    """

    def __init__(self, desk: SiteDesk, on_failure: Failed) -> None:
        self._desk = desk
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._bytes_in = self._bytes_out = self._num_failed = 0
        self._last_failure = ""

    def Execute(self, request_iterator: Iterator[Frame], context: Any) -> Iterator[Frame]:  # noqa: N802
        """See airlock.proto."""
        with ExitStack() as opened:
            try:
                stored = self._answered(request_iterator, context)
                array = opened.enter_context(stored.opened())
            except CallerLeftError:
                context.abort(grpc.StatusCode.UNAVAILABLE, "")
                raise
            except Exception as error:  # noqa: BLE001  whatever it says may name a patient
                failure = self._failure(error) if context.is_active() else None
                error.__traceback__ = None  # a task that is kept would keep this call by it
                if failure is not None:
                    yield failure
                return
            self._count(bytes_out=len(stored.receipt) + stored.array_bytes)
            yield head_frame(stored.receipt, stored.array_bytes)
            if array is not None:
                yield from chunk_frames(_pieces(array, context))

    def Stop(self, request: StopRequest, context: Any) -> StopReply:  # noqa: N802
        """See airlock.proto."""
        del context
        stopped = self._desk.stop(request.run)
        if stopped:
            log_event("run_stopped", run=request.run)
        return StopReply(stopped=stopped)

    def Status(self, request: StatusRequest, context: Any) -> WorkerStatus:  # noqa: N802
        """See airlock.proto."""
        del request, context
        status = WorkerStatus(
            site=self._desk.site.name,
            version=__version__,
            federations=self._desk.federations.digests,
            steps_answered=self._desk.num_answered,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            failures=self._num_failed,
            last_failure=self._last_failure,
        )
        if (doing := self._desk.doing) is not None:
            status.run, status.kind = doing.manifest.run, doing.manifest.kind
            status.round, status.seconds = doing.manifest.round, doing.seconds
        return status

    def _answered(self, frames: Iterator[Frame], context: Any) -> Stored:
        if context.time_remaining() > MAX_CALL_S:
            raise WireError("a call without a deadline may wait for ever", code="no_deadline")
        head = read_head(
            frames, max_document_bytes=MAX_MANIFEST_BYTES, max_array_bytes=MAX_ARRAY_BYTES
        )
        manifest = parse_manifest(head.document)
        receive = partial(self._received, frames, head)
        caller = Caller(context.add_callback)
        return self._desk.answer(manifest, head.array_bytes, receive, caller)

    def _received(self, frames: Iterator[Frame], head: Head) -> memoryview | None:
        array = joined(chunks_of(frames, head.array_bytes), head.array_bytes)
        self._count(bytes_in=len(head.document) + head.array_bytes)
        return array

    def _count(self, bytes_in: int = 0, bytes_out: int = 0) -> None:
        with self._lock:
            self._bytes_in += bytes_in
            self._bytes_out += bytes_out

    def _failure(self, error: Exception) -> Frame:
        """What is said of an exception: here everything, there a code."""
        code = failure_code(error)
        with self._lock:
            self._num_failed += 1
            self._last_failure = code
        self._on_failure(error)
        log_event("step_failed", code=code)
        return head_frame(b"", 0, failure=code)


def _pieces(array: BinaryIO, context: Any) -> Iterator[bytes]:
    """The file, piece after piece; if the disk fails, the call ends without the error's text."""
    try:
        while chunk := array.read(CHUNK_BYTES):
            yield chunk
    except OSError:
        context.abort(grpc.StatusCode.UNAVAILABLE, "")
