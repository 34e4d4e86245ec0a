"""A node ends in order at SIGTERM, also where libraries have threads that do not block it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = os.pathsep.join(str(ROOT / part) for part in ("client", "common"))
SCRIPT = """
import os, signal, threading, time
from wardround_client.node.process import _stopped_by_signals
# As a library's, from when it was imported: it does not block SIGTERM.
threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
stop = _stopped_by_signals()
{then}
os.kill(os.getpid(), signal.{name})
for _ in range(500):
    time.sleep(0.01)
    if stop.is_set():
        print("in order", flush=True)
        os._exit(0)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_a_librarys_thread_gets_ends_the_node_in_order(name: str) -> None:
    assert _ended(SCRIPT.format(then="", name=name)) == (0, "in order")


def test_without_passing_it_on_the_process_would_die_of_it() -> None:
    """The failing twin."""
    then = "signal.signal(signal.SIGTERM, signal.SIG_DFL)"
    assert _ended(SCRIPT.format(then=then, name="SIGTERM")) == (-signal.SIGTERM, "")


def _ended(script: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": FOLDERS},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.strip()
