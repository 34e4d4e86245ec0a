"""A process that is kept: started again after it died, with pauses; nothing of it is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from wardround_server.aggregator import process as module
from wardround_server.aggregator.process import KeptProcess

WAIT_S = 10.0
SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "program.log"


class Kept:
    """A kept process and its clock."""

    def __init__(self, log: Path, code: str) -> None:
        self.now = 0.0
        self.log = log
        words = [sys.executable, "-c", code]
        self.process = KeptProcess("program", lambda: words, os.environ, log, clock=self.clock)

    def clock(self) -> float:
        return self.now

    def started(self) -> int:
        self.process.keep()
        assert self.process.pid is not None
        return self.process.pid

    def died(self) -> None:
        until(lambda: not self.process.is_running)


@pytest.fixture
def make(log: Path) -> Iterator[Callable[[str], Kept]]:
    made: list[Kept] = []

    def one(code: str) -> Kept:
        made.append(Kept(log, code))
        return made[-1]

    yield one
    for kept in made:
        kept.process.end(1.0)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_what_was_killed_is_started_again_at_once_after_a_quiet_minute(
    make: Callable[[str], Kept],
) -> None:
    kept = make(SLEEPER)
    first = kept.started()
    kept.now = 61.0
    os.kill(first, signal.SIGKILL)
    kept.died()
    assert kept.started() != first
    assert kept.process.num_starts == 2


def test_quick_deaths_are_answered_after_longer_pauses(make: Callable[[str], Kept]) -> None:
    kept, starts = make("raise SystemExit(1)"), [0.0]
    kept.started()
    while len(starts) < 5:
        kept.died()
        before = kept.process.num_starts
        kept.process.keep()
        while kept.process.num_starts == before:
            kept.now += 0.25
            kept.process.keep()
        starts.append(kept.now)
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_what_a_dead_process_left_behind_dies_too(make: Callable[[str], Kept], log: Path) -> None:
    kept = make(PARENT)
    parent = kept.started()
    until(lambda: log.exists() and log.read_text().strip().isdigit())
    child = int(log.read_text())
    os.kill(parent, signal.SIGKILL)
    kept.died()
    assert not is_gone(child), "the twin: it outlives its parent"
    kept.process.keep()
    until(lambda: is_gone(child))


def test_it_ends_in_order_or_is_ended(make: Callable[[str], Kept], log: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(600)"
    )
    for code in (SLEEPER, stubborn):
        log.unlink(missing_ok=True)
        kept = make(code)
        pid = kept.started()
        until(lambda: log.exists() and log.read_text() == "ready\n")
        kept.process.end(0.2)
        assert is_gone(pid)
        assert not kept.process.is_running


def test_it_dies_with_the_process_that_keeps_it(tmp_path: Path, log: Path) -> None:
    keeper = (
        "import os, sys, time; from pathlib import Path;"
        "from wardround_server.aggregator.process import KeptProcess;"
        f"p = KeptProcess('program', lambda: [sys.executable, '-c', {SLEEPER!r}], os.environ,"
        f" Path({str(log)!r})); p.keep(); print(p.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", keeper], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        until(lambda: log.exists() and log.read_text() == "ready\n")
        running.kill()
    until(lambda: is_gone(pid))


def test_what_it_prints_goes_to_a_file_of_bounded_size(
    make: Callable[[str], Kept], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOG_BYTES", 10_000)
    kept = make("for n in range(5000): print(n, 'x' * 20)")
    kept.started()
    until(lambda: log.exists() and "\n4999 " in log.read_text())
    predecessor = log.with_suffix(".log.1")
    assert log.stat().st_size < 11_000
    assert predecessor.stat().st_size < 11_000
