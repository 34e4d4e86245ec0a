"""The running worker, tried from inside and from outside: no network, no stranger, no flood."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.airlocks import Hospital
from tests.site_process import ENVIRONMENT, ask, can_make_namespaces, running, without_network
from tests.streams import eventually
from wardround_client.airlock import airlock_pb2_grpc
from wardround_client.airlock.limits import address
from wardround_common.rpc.frames import head_frame
from wardround_common.rpc.frames_pb2 import Frame

INSIDE = """
import errno, json, os, socket, threading, time
def attempt(family, kind):
    try:
        with socket.socket(family, kind) as opened:
            if family == socket.AF_INET:
                opened.connect(('192.0.2.1', 9))
        return 'open'
    except OSError as error:
        return errno.errorcode[error.errno]
def everything():
    while not os.path.exists({socket!r}):
        time.sleep(0.02)
    said = {{f"{{f}} {{k}}": attempt(f, k) for f in range(64) if f != 1 for k in (1, 2, 3, 5)}}
    with open({told!r} + '.part', 'w') as file:
        json.dump(said, file)
    os.rename({told!r} + '.part', {told!r})
threading.Thread(target=everything, daemon=True).start()
"""
UNFILTERED = """
from wardround_client.worker import process
process.give_up_sockets = lambda **_: None
"""


def attempts_inside(hospital: Hospital, *before: str, prelude: str = "") -> dict[str, str]:
    """What the worker's own process gets for every kind of network socket once it serves."""
    told = hospital.folder / "told"
    inside = INSIDE.format(socket=str(hospital.socket), told=str(told))
    with running(hospital, *before, prelude=prelude + inside):
        eventually(told.exists, within_s=20.0)
    said: dict[str, str] = json.loads(told.read_text())
    return said


def test_from_the_worker_every_attempt_to_open_a_network_socket_fails(tmp_path: Path) -> None:
    said = attempts_inside(Hospital(tmp_path))
    assert len(said) == 63 * 4
    assert set(said.values()) == {"EACCES"}


@without_network
def test_without_the_filter_sockets_open_and_lead_nowhere(tmp_path: Path) -> None:
    """The failing twin; and what the namespace alone is good for."""
    said = attempts_inside(Hospital(tmp_path), "unshare", "--net", prelude=UNFILTERED)
    assert said["2 1"] == "ENETUNREACH"
    assert said["10 1"] == said["16 3"] == "open"


WORKER, NODE, STRANGER, AIRLOCK = 61001, 61002, 61003, 61004
VISIT = """
import sys
from pathlib import Path
from wardround_client.airlock.client import AirlockClient, AirlockUnavailable
try:
    print(AirlockClient(Path(sys.argv[1])).status().site)
except AirlockUnavailable:
    print("unavailable")
try:
    print(len(Path(sys.argv[2]).read_text()))
except PermissionError:
    print("refused")
"""


def as_user(user: int, group: int) -> tuple[str, ...]:
    """What comes before a command that another user gives."""
    return ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--")


def _other_users() -> bool:
    try:
        command = [*as_user(WORKER, AIRLOCK), sys.executable, "-c", ""]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def visit(hospital: Hospital, user: int, group: int) -> list[str]:
    """What a user gets at the airlock, and of the table."""
    table = hospital.folder / "data" / "table.csv"
    done = subprocess.run(
        [*as_user(user, group), sys.executable, "-c", VISIT, hospital.socket, table],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.split()


@pytest.mark.skipif(
    not (can_make_namespaces() and _other_users()),
    reason="needs root, and an interpreter that other users may run",
)
def test_the_node_reaches_the_worker_and_not_its_data_and_a_stranger_neither() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hospital = Hospital(folder)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, WORKER, WORKER)
            path.chmod(0o755 if path.is_dir() else 0o600)
        with running(hospital, "unshare", "--net", *as_user(WORKER, AIRLOCK)):
            assert ask(hospital, hospital.question()).failure == ""
            assert visit(hospital, NODE, AIRLOCK) == ["a", "refused"]
            assert visit(hospital, STRANGER, STRANGER) == ["unavailable", "refused"]
            own = visit(hospital, WORKER, AIRLOCK)
        assert own[0] == "a"
        assert int(own[1]) > 0, "the failing twin: one user for both processes"
        for private in ("worker-state", "cache"):
            for path in (folder / private).rglob("*"):
                assert path.stat().st_mode & 0o077 == 0, path


def highest_kib(process: subprocess.Popen[str]) -> int:
    """The most memory that a process has had."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0])


def bombard(hospital: Hospital) -> list[str]:
    """Everything by which a caller might fill the worker's memory; what each is answered with."""
    head = head_frame(hospital.question().document, 1 << 36)
    bomb = Frame(chunk=bytes(64 << 20))
    cases: list[tuple[Frame, dict[str, Any]]] = [
        (Frame(chunk=bytes(48 << 20)), {}),
        (bomb, {"compression": grpc.Compression.Gzip}),
        (head, {}),
        (head, {"metadata": (("bomb", "x" * (1 << 20)),)}),
    ]
    said = []
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address(hospital.socket), unlimited) as channel:
        stub = airlock_pb2_grpc.AirlockStub(channel)
        for frame, how in cases:
            try:
                (answer,) = stub.Execute(iter([frame]), timeout=20.0, **how)
                said.append(answer.head.failure)
            except grpc.RpcError as error:
                said.append(error.code().name)
    return said


UNLIMITED = """
from wardround_client.airlock import limits
limits.SERVER_OPTIONS[:] = [('grpc.max_receive_message_length', -1)]
"""


@pytest.mark.parametrize("prelude", ["", UNLIMITED], ids=["limits", "no limits"])
def test_a_caller_that_lies_about_sizes_is_refused_in_bounded_memory(
    tmp_path: Path, prelude: str
) -> None:
    hospital = Hospital(tmp_path)
    with running(hospital, prelude=prelude) as process:
        assert ask(hospital, hospital.question("describe")).failure == ""
        before = highest_kib(process)
        said = bombard(hospital)
        grown = highest_kib(process) - before
        assert ask(hospital, hospital.question()).failure == ""
    if prelude:
        assert grown > 48 << 10, "the failing twin"
    else:
        assert said == ["RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "state_bytes", "RESOURCE_EXHAUSTED"]
        assert grown < 16 << 10
