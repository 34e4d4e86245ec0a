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
        # What makes the reason, not the reason: a raised error that is kept would keep the call.
        self._gone: Callable[[], WardroundError] | None = None
        if not on_end(self.leave):
            self.leave()

    def result_of(self, future: Future[T]) -> T:
        """What a computation gives; the computation goes on if the caller leaves.

        Raises:
            CallerLeftError: it left first.
            Exception: what the computation raises, or what the caller was sent away with.
        """
        future.add_done_callback(lambda _: self._wake())
        with self._changed:
            self._changed.wait_for(lambda: future.done() or self._gone is not None)
        if not future.done():
            self.raise_if_gone()
        return future.result()

    def raise_if_gone(self) -> None:
        """Go no further for somebody who does not wait any more.

        Raises:
            CallerLeftError: it left.
            WardroundError: it was sent away.
        """
        if self._gone is not None:
            raise self._gone()

    def leave(self) -> None:
        """Nobody waits any more."""
        self.send_away(_left)

    def send_away(self, why: Callable[[], WardroundError]) -> None:
        """Have it wait no more, for a reason; the first one counts."""
        with self._changed:
            self._gone = self._gone or why
            self._changed.notify_all()

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
            WardroundError: it was sent away, and has none.
        """
        with self._changed:
            self._waiting.append(caller)
            try:
                while not (self._free and self._waiting[0] is caller):
                    self._changed.wait(_LOOK_S)
                    caller.raise_if_gone()
                self._free -= 1
            finally:
                self._waiting.remove(caller)
                self._changed.notify_all()

    def give_back(self) -> None:
        """Leave a place to the next one."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()


def _left() -> WardroundError:
    return CallerLeftError("the caller has left", code="caller_left")
