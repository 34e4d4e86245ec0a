"""`wardround site ...` as a process of its own, and a node's way to ask it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.airlocks import Asked, Got, Hospital, got
from wardround_client.airlock.client import AirlockClient, wait_for
from wardround_common.rpc.frames import pieces

ROOT = Path(__file__).parents[1]
START = """
import sys; from importlib.metadata import EntryPoint; from wardround_common import cli
cli._verbs = lambda: (EntryPoint('site', 'wardround_client.cli:site', cli.VERB_GROUP),)
cli.main()
"""
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("client", "common")),
    "WARDROUND_LOG_STRICT": "1",
}


def command(*words: str | Path, prelude: str = "") -> list[str]:
    """``wardround site ...``, whatever is installed; after a prelude in the same process."""
    return [sys.executable, "-c", prelude + START, "site", *map(str, words)]


@contextmanager
def running(hospital: Hospital, *before: str, prelude: str = "") -> Iterator[subprocess.Popen[str]]:
    """A worker that answers; killed at the end if it has not ended."""
    words = ["worker", hospital.file, *([] if before else ["--allow-network"])]
    process = subprocess.Popen(
        [*before, *command(*words, prelude=prelude)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    client = AirlockClient(hospital.socket)
    try:
        assert wait_for(client, time.monotonic() + 30, threading.Event())
        yield process
    finally:
        client.close()
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def ask(hospital: Hospital, asked: Asked) -> Got:
    """Ask the worker, over a connection of its own."""
    client = AirlockClient(hospital.socket)
    try:
        size = asked.array.nbytes
        return got(client.execute(asked.document, pieces(asked.array), size, deadline_s=60.0))
    finally:
        client.close()


def site(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that is expected to end by itself."""
    return subprocess.run(
        command(*words), env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=30
    )


def can_make_namespaces() -> bool:
    """Whether this user may start a process without a network."""
    try:
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


without_network = pytest.mark.skipif(
    not can_make_namespaces(), reason="this user may not make network namespaces"
)
