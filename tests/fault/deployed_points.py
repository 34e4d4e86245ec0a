"""The points at which a deployed ServerApp changes the disk, counted in its own process.

What it promises: nothing of the product is replaced; every call of fsync, rename, unlink and mkdir of a
ServerApp is one point, from its start to its end; it is killed by SIGKILL instead of making the
wanted call, once, and its next lives go on untouched.

It works through files in a folder that ``WARDROUND_DIE_AT`` names: ``at`` holds the number of the call
(0 to count only), ``calls`` grows by a byte a call of the life that is watched, ``died`` is there after
the kill.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround_common.types import sha256_hex

COUNTED = ("fsync", "replace", "rename", "unlink", "mkdir")
VARIABLE = "WARDROUND_DIE_AT"
BROKEN = -1


@dataclass(frozen=True, slots=True)
class Points:
    """The folder, as a test sees it.

    Attributes:
        folder: made by :meth:`arm`.
    """

    folder: Path

    def arm(self, at: int) -> None:
        """Have the next ServerApp die at a call, counted from 1; 0 lets it live.

        :data:`BROKEN` has it record an answer before its array is durable, and die between the two.
        """
        self.folder.mkdir(exist_ok=True)
        for name in ("died", "calls", "watched"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "at").write_text(str(at))

    @property
    def num_calls(self) -> int:
        """Calls of the life that was watched, the last one included."""
        calls = self.folder / "calls"
        return calls.stat().st_size if calls.exists() else 0

    @property
    def has_died(self) -> bool:
        """Whether it was killed at the wanted call."""
        return (self.folder / "died").exists()


def install() -> None:
    """In a ServerApp: count, and die; only in the first life since it was armed."""
    folder = Path(os.environ[VARIABLE])
    try:
        watched = os.open(folder / "watched", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except OSError:
        return  # another life of the same run
    os.close(watched)
    at = int((folder / "at").read_text())
    if at == BROKEN:
        _break_order(folder)
        return
    calls = os.open(folder / "calls", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    made = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            nonlocal made
            made += 1
            os.write(calls, b".")
            if made == at:
                os.close(os.open(folder / "died", os.O_CREAT | os.O_WRONLY))
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)

        return counted

    for name in COUNTED:
        setattr(os, name, counting(getattr(os, name)))


def _break_order(folder: Path) -> None:
    """An answer's record is durable before its array is."""
    from wardround_server.rounds.journal import Journal
    from wardround_server.rounds.steps import StepRunner

    append = Journal.append

    def append_first(self: Journal, kind: str, **fields: object) -> None:
        append(self, kind, **fields)
        if kind == "answer_admitted" and fields["update"] is not None:
            os.close(os.open(folder / "died", os.O_CREAT | os.O_WRONLY))
            os.kill(os.getpid(), signal.SIGKILL)

    def keep_later(self: StepRunner, coded: memoryview, spooled: Any) -> str:
        del self
        return sha256_hex(coded) if spooled is None else str(spooled.sha256)

    Journal.append = append_first  # type: ignore[method-assign]
    StepRunner._keep = keep_later  # type: ignore[assignment,method-assign]
