"""One question's way to the worker, and its answer's way back; outlives any connection.

What is kept of a question is its manifest and at most two chunks of its array; of an answer, its
receipt. The worker is asked once. If it is lost it is asked again, which is harmless: it answers the
same question with the same stored bytes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from wardround_client.airlock.airlock_pb2 import WorkerStatus
from wardround_client.airlock.client import AirlockAnswer, AirlockUnavailable
from wardround_common.errors import WardroundError
from wardround_common.stream.parts import Encoded, Piece, chunk_parts, offer_part, want_part
from wardround_common.stream.stream_pb2 import Offer, Part

_AHEAD = 2
"""Chunks of a question that may wait for the worker."""
_POLL_S = 0.2


class Airlock(Protocol):
    """What is needed of :class:`~wardround_client.airlock.client.AirlockClient`."""

    def execute(
        self,
        document: bytes,
        chunks: Iterable[bytes | memoryview] = (),
        array_bytes: int = 0,
        *,
        deadline_s: float,
    ) -> AirlockAnswer:
        """Ask one question; returns when the answer begins."""
        ...

    def status(self) -> WorkerStatus:
        """How the worker is."""
        ...

    def stop(self, run: str) -> bool:
        """Stop what the worker computes for a run."""
        ...


class Errand:
    """One question.

    Args:
        offer: as the aggregator offered it.
        airlock: to the worker.
        send: sends a part to the aggregator if there is a connection.
    """

    def __init__(self, offer: Offer, airlock: Airlock, send: Callable[[Part], None]) -> None:
        self.digest = str(offer.manifest_sha256)
        self._document = bytes(offer.head.document)
        self._array_bytes = int(offer.head.array_bytes)
        self._until = time.monotonic() + offer.seconds
        self._maybe_stored = bool(offer.again)
        self._airlock = airlock
        self._send = send
        self._changed = threading.Condition()
        self._chunks: deque[memoryview] = deque()
        self._attempt = 0
        self._received = 0
        self._answer: AirlockAnswer | None = None
        self._answer_bytes = 0
        self._offer: Part | None = None
        self.dropped = threading.Event()

    def run(self) -> None:
        """Have the question answered, and offer the answer; returns when that is done."""
        try:
            answer = self._executed()
        except WardroundError as error:
            self._offer = offer_part(self.digest, b"", 0, failure=error.code)
        else:
            self._answer, self._answer_bytes = answer, answer.array_bytes
            self._offer = offer_part(
                self.digest, answer.document, answer.array_bytes, failure=answer.failure
            )
        if not self.dropped.is_set():
            self._send(self._offer)

    def offered_again(self) -> None:
        """The aggregator has a new connection: go on where the last one stopped."""
        with self._changed:
            begun, received = self._attempt > 0, self._received
        if self._offer is not None:
            self._send(self._offer)
        elif begun and received < self._array_bytes:
            self._send(want_part(self.digest, received))

    def feed(self, piece: Piece, lost: threading.Event) -> None:
        """Take the next bytes of the question's array; waits until the worker has room for them.

        Args:
            piece: those that are not the next ones are not taken.
            lost: set, and :meth:`wake` called, when their connection is gone.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._chunks) < _AHEAD or lost.is_set() or self.dropped.is_set()
            )
            left = self._array_bytes - self._received
            if lost.is_set() or self.dropped.is_set() or piece.offset != self._received:
                return
            if 0 < len(piece.data) <= left and self._attempt:
                self._chunks.append(piece.data)
                self._received += len(piece.data)
                self._changed.notify_all()

    def wake(self) -> None:
        """Look again at what is waited for."""
        with self._changed:
            self._changed.notify_all()

    def drop(self) -> None:
        """Nobody wants the answer."""
        self.dropped.set()
        self.wake()

    def drop_unless_received(self) -> None:
        """Another question was asked: what the worker does not have whole it will never have."""
        with self._changed:
            whole = self._attempt > 0 and self._received == self._array_bytes
        if not whole:
            self.drop()

    def answer_parts(self, offset: int) -> Iterator[Encoded]:
        """The answer's array from a byte on, read from the worker as it is drawn."""
        answer, self._answer = self._answer, None
        while offset < self._answer_bytes and not self.dropped.is_set():
            try:
                if answer is None:
                    answer = self._airlock.execute(
                        self._document, (), self._array_bytes, deadline_s=self._left()
                    )
                for end, part in chunk_parts(answer.chunks, offset):
                    yield part
                    offset = end
            except AirlockUnavailable:
                answer = None
                if not self._worker_is_back():
                    return
            except WardroundError:
                return  # what the aggregator does not get in time is missing there
            else:
                return  # also where it is shorter than it was said to be

    def _executed(self) -> AirlockAnswer:
        """The beginning of the worker's answer.

        Raises:
            AirlockUnavailable: the worker did not come back in time.
            WireError: its answer has not the form of one.
        """
        while True:
            try:
                if self._maybe_stored:
                    answer = self._ask(())
                    if answer.failure != "frames_bytes":  # else it would need the array
                        return answer
                    self._maybe_stored = False
                return self._ask(self._question())
            except AirlockUnavailable:
                if not self._worker_is_back():
                    raise

    def _ask(self, chunks: Iterable[memoryview]) -> AirlockAnswer:
        return self._airlock.execute(
            self._document, chunks, self._array_bytes, deadline_s=self._left()
        )

    def _question(self) -> Iterator[memoryview]:
        """The question's array from its first byte, as it comes; drawn by the airlock's thread."""
        with self._changed:
            self._attempt += 1
            self._chunks.clear()
            self._received = 0
            self._changed.notify_all()
        return self._pieces(self._attempt)

    def _pieces(self, attempt: int) -> Iterator[memoryview]:
        if self._array_bytes:
            self._send(want_part(self.digest, 0))
        left = self._array_bytes
        while left:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._chunks or self.dropped.is_set() or self._attempt != attempt
                )
                if self.dropped.is_set() or self._attempt != attempt:
                    return
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            left -= len(chunk)
            yield chunk

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _worker_is_back(self) -> bool:
        """Wait for the worker as long as its answer may still count; whether it is there."""
        while not self.dropped.is_set() and self._left() > 0:
            try:
                self._airlock.status()
            except AirlockUnavailable:
                self.dropped.wait(_POLL_S)
            else:
                return True
        return False
