"""What one end of a session has to send: what is short first, then the wanted array, chunk by chunk.

Both ends use it: gRPC draws one part at a time and waits until it is on its way, so an array is never
further ahead of its receiver than the connection's window.
"""

import threading
from collections import deque
from collections.abc import Iterator

from wardround_common.stream.parts import Encoded
from wardround_common.stream.stream_pb2 import Part

Sendable = Part | Encoded
"""What gRPC is given; :func:`~wardround_common.stream.parts.to_wire` makes its bytes."""


class Outbox(Iterator[Sendable]):
    """Parts to be sent over one connection; written to by any thread, drawn by one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._parts: deque[Part] = deque()
        self._array: Iterator[Encoded] | None = None
        self._closed = False

    def put(self, part: Part) -> None:
        """Send this before the next chunk."""
        with self._changed:
            self._parts.append(part)
            self._changed.notify()

    def send_array(self, chunks: Iterator[Encoded] | None) -> None:
        """Send these chunks; what was left of another array is not sent."""
        with self._changed:
            self._array = chunks
            self._changed.notify()

    def close(self) -> None:
        """Send what was put, and then nothing more."""
        with self._changed:
            self._closed, self._array = True, None
            self._changed.notify()

    def __next__(self) -> Sendable:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parts or self._array or self._closed)
                if self._parts:
                    return self._parts.popleft()
                if self._array is None:
                    raise StopIteration
                array = self._array
            chunk = next(array, None)  # may have to wait for its source: not under the lock
            with self._changed:
                if self._array is array:
                    if chunk is not None:
                        return chunk
                    self._array = None
