"""Who asked a question and waits for its turn and its answer; may go away, and then waits no more."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from wardround_common.errors import WardroundError

_LOOK_S = 0.1

T = TypeVar("T")


class CallerLeftError(WardroundError):
    """Nobody waits at the other end of a call any more: not a failure, and nobody to tell it to."""


class Caller:
    """One call.

    Args:
        on_end: takes what is to be called at the call's end; whether it will be, that is, whether
            the call is still there.
    """

    def __init__(self, on_end: Callable[[Callable[[], None]], bool]) -> None:
        self._changed = threading.Condition()
        self._has_left = False
        if not on_end(self.leave):
            self.leave()

    @property
    def has_left(self) -> bool:
        """Whether nobody waits any more."""
        return self._has_left

    def result_of(self, future: Future[T]) -> T:
        """What a computation gives; the computation goes on if the caller leaves.

        Raises:
            CallerLeftError: it left first.
            Exception: what the computation raises.
        """
        future.add_done_callback(lambda _: self._wake())
        with self._changed:
            self._changed.wait_for(lambda: future.done() or self._has_left)
        if not future.done():
            raise _left()
        return future.result()

    def leave(self) -> None:
        """Nobody waits any more."""
        self._has_left = True
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Places:
    """A number of places, given in the order in which they were asked for: nobody waits for ever.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[Caller] = deque()
        self._changed = threading.Condition()

    def take(self, caller: Caller) -> None:
        """Wait for a place.

        Raises:
            CallerLeftError: the caller left, and has none.
        """
        with self._changed:
            self._waiting.append(caller)
            try:
                while not (self._free and self._waiting[0] is caller):
                    self._changed.wait(_LOOK_S)
                    if caller.has_left:
                        raise _left()
                self._free -= 1
            finally:
                self._waiting.remove(caller)
                self._changed.notify_all()

    def give_back(self) -> None:
        """Leave a place to the next one."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()


def _left() -> CallerLeftError:
    return CallerLeftError("the caller has left", code="caller_left")
