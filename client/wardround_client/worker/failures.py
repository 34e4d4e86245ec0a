"""What went wrong at this site, in full: for its own operator, and nowhere else.

The text of an error may name files, columns and values. So it goes neither to the aggregator nor into
the log, but to a file in the worker's state, readable by the worker's user alone. It is cut at about
1 MiB: the newest failures are there, the oldest are gone.
"""

import contextlib
import os
import threading
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from wardround_common.errors import WardroundError

MAX_BYTES: Final = 1 << 19
"""Of each of two files, the current and the previous one."""


class Failures:
    """A file of failures.

    Args:
        path: it; the previous one is beside it, as ``NAME.1``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def note(self, error: Exception) -> None:
        """Write one down; a disk that refuses it stops nothing."""
        text = _text(error).encode(errors="replace")[:MAX_BYTES]
        with self._lock, contextlib.suppress(OSError):
            if self._path.exists() and self._path.stat().st_size + len(text) > MAX_BYTES:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(text)


def _text(error: Exception) -> str:
    """An expected failure says what to do; any other is a bug, and needs its traceback."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    if isinstance(error, WardroundError):
        return f"{time} {type(error).__name__} [{error.code}] {error}\n"
    return f"{time} {''.join(traceback.format_exception(error))}"
