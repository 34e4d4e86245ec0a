"""Processes of a measurement: started together, ended together, their output kept."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

LIMIT_S = 600.0


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Processes:
    """A context that ends all that were started in it.

    Args:
        folder: their working directory and logs.
        environment: added to this process's.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._environment = {**os.environ, **(environment or {})}
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every process and what it started."""
        for process in reversed(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, words: Sequence[str], log: str) -> int:
        """Start a process that goes on; its number."""
        with (self._folder / log).open("ab") as output:
            process = subprocess.Popen(
                list(words),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)
        return process.pid

    def call(self, words: Sequence[str]) -> str:
        """Run a command to its end; what it printed.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(
            list(words),
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(words[-4:])}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done.stdout

    def until(self, condition: Callable[[], bool], what: str, within_s: float = LIMIT_S) -> None:
        """Wait until something is so.

        Raises:
            RuntimeError: it never was; the message ends with the last lines of each log.
        """
        limit = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > limit:
                tails = [path.read_text(errors="replace")[-800:] for path in self._logs()]
                raise RuntimeError(f"not within {within_s} s: {what}\n" + "\n---\n".join(tails))
            time.sleep(0.05)

    def _logs(self) -> list[Path]:
        return sorted(self._folder.rglob("*.log"))
