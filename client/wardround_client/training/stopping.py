"""Stopping a computation that nobody wants any more, between two steps of it.

The one who computes asks :func:`raise_if_stopped` where it is cheap to leave: before each forward
pass of training, of an extraction and of an evaluation. Nothing is watched where nobody can stop it (a simulation).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from wardround_common.errors import RoundError

STOPPED: Final = "stopped"

_watched: ContextVar[threading.Event | None] = ContextVar("watched", default=None)


@contextmanager
def stoppable(stop: threading.Event) -> Iterator[None]:
    """What is computed in this context ends once ``stop`` is set."""
    token = _watched.set(stop)
    try:
        yield
    finally:
        _watched.reset(token)


def raise_if_stopped() -> None:
    """Leave, if somebody said stop.

    Raises:
        RoundError: :data:`STOPPED`.
    """
    stop = _watched.get()
    if stop is not None and stop.is_set():
        raise stopped_error()


def stopped_error() -> RoundError:
    """What whoever waits for a stopped computation is told."""
    return RoundError("the aggregator stopped this run", code=STOPPED)
