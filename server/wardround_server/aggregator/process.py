"""One process that is kept running: started, watched, started again when it dies, ended.

1. It has a process group of its own: when it dies, what it left behind dies too, so that nothing
   holds its port or its files against its successor.
2. It dies with this process, however that ends.
3. Deaths that follow each other are answered after longer and longer pauses; one that comes after a
   quiet minute, at once.
4. What it prints goes to a file of bounded size.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from wardround_common.log import log_event

_CHILD: Final = Path(__file__).with_name("child.py")
_PAUSES_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_QUIET_S: Final = 60.0
_LOG_BYTES: Final = 10 << 20

Command = Callable[[], Sequence[str]]


class KeptProcess:
    """A program that should run.

    Args:
        name: what it is called in logs.
        command: its command line, asked for at each start.
        environment: its environment.
        log: where its output goes; kept with one predecessor.
        farewell: the signal that ends it gracefully.
        clock: seconds.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        environment: Mapping[str, str],
        log: Path,
        *,
        farewell: signal.Signals = signal.SIGTERM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._command = command
        self._environment = dict(environment)
        self._log = log
        self._farewell = farewell
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._num_quick = 0
        self._due = 0.0
        self.num_starts = 0

    @property
    def pid(self) -> int | None:
        """Its number; None while it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def keep(self) -> None:
        """See that it runs; called again and again."""
        if self._process is not None and self._process.poll() is not None:
            self._bury(self._process)
        if self._process is None and self._clock() >= self._due:
            self._start()

    def restart(self) -> None:
        """End it at once, so that :meth:`keep` starts it again."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def end(self, grace_s: float) -> None:
        """Ask it to end, and end it if it does not within so many seconds."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self._farewell)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _start(self) -> None:
        words = [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), *self._command()]
        self._process = subprocess.Popen(  # noqa: S603  our own words
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        threading.Thread(
            target=_keep_output, args=(self._process.stdout, self._log), daemon=True
        ).start()
        self._started_at = self._clock()
        self.num_starts += 1
        log_event("process_started", process=self.name, attempt=self.num_starts)

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        _signal_group(process.pid, signal.SIGKILL)
        now = self._clock()
        quick = now - self._started_at < _QUIET_S
        self._num_quick = self._num_quick + 1 if quick else 0
        self._due = now + _PAUSES_S[min(self._num_quick, len(_PAUSES_S) - 1)]
        log_event("process_ended", process=self.name, exit_status=process.returncode)
        self._process = None


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _keep_output(output: IO[bytes], path: Path) -> None:
    """Copy output to a file; a file that is full becomes the predecessor of a new one."""
    with output:
        file = path.open("ab")
        try:
            for line in iter(lambda: output.readline(65_536), b""):
                if file.tell() > _LOG_BYTES:
                    file.close()
                    path.replace(path.with_suffix(path.suffix + ".1"))
                    file = path.open("ab")
                file.write(line)
                file.flush()
        except (OSError, ValueError):
            log_event("output_lost", process=path.stem)
            while output.read(65_536):  # it must not block on a full pipe
                pass
        finally:
            file.close()
