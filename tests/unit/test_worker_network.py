"""The worker has no network: what it would have is seen, and what it could open is taken from it.

Each case is a process of its own: the filter cannot be taken off again.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = os.pathsep.join(str(ROOT / part) for part in ("client", "common"))
ATTEMPTS = """
import ctypes, errno, os, socket, sys, threading

def attempt(family, kind=socket.SOCK_STREAM, make=socket.socket):
    try:
        made = make(family, kind)
    except OSError as error:
        return errno.errorcode[error.errno]
    for one in made if isinstance(made, tuple) else (made,):
        one.close()
    return "open"

def ring():
    ctypes.set_errno(0)
    ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(425), 1, None)
    return errno.errorcode[ctypes.get_errno()]

def everything():
    inet = (attempt(socket.AF_INET), attempt(socket.AF_INET6), attempt(socket.AF_INET, socket.SOCK_DGRAM))
    return (*inet, attempt(socket.AF_NETLINK, socket.SOCK_RAW), attempt(socket.AF_PACKET, socket.SOCK_RAW))

def elsewhere(child):
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write, child().encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    return os.read(read, 100).decode()

early, told = threading.Event(), []
thread = threading.Thread(target=lambda: (early.wait(), told.append(attempt(socket.AF_INET))))
thread.start()
"""


def run(script: str, *before: str, pass_fds: tuple[int, ...] = ()) -> list[str]:
    """Words that a script prints, in a process that may have a wrapper."""
    done = subprocess.run(
        [*before, sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": FOLDERS},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        pass_fds=pass_fds,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def sockets(give_up: str, then: str) -> list[str]:
    """What a process can open after ``give_up``."""
    script = "from wardround_client.worker.seccomp import give_up_sockets\n"
    return run(f"{ATTEMPTS}{script}{give_up}\nearly.set(); thread.join()\n{then}")


WITH, WITHOUT = "give_up_sockets()", ""


def test_every_socket_but_a_unix_one_is_refused() -> None:
    assert sockets(WITH, "print(*everything())") == ["EACCES"] * 5
    kept = "print(attempt(socket.AF_UNIX), attempt(socket.AF_UNIX, make=socket.socketpair))"
    assert sockets(WITH, kept) == ["open", "open"]


def test_without_the_filter_the_same_sockets_open() -> None:
    """The failing twin."""
    opened = sockets(WITHOUT, "print(*everything())")
    assert opened[0] == opened[2] == opened[3] == "open"


@pytest.mark.parametrize(("give_up", "expected"), [(WITH, "EACCES"), (WITHOUT, "open")])
def test_it_holds_for_threads_that_were_there_before_and_for_processes_started_later(
    give_up: str, expected: str
) -> None:
    child = "print(told[0], elsewhere(lambda: attempt(socket.AF_INET)))"
    assert sockets(give_up, child) == [expected, expected]
    script = 'import socket; socket.socket(socket.AF_INET); print("open")'
    executed = (
        "import subprocess; done = subprocess.run([sys.executable, '-c', "
        f"{script!r}], capture_output=True, text=True); print(done.stdout or 'EACCES')"
    )
    assert sockets(give_up, executed) == [expected]


def test_io_uring_and_pairs_of_other_families_are_no_way_round() -> None:
    assert sockets(WITH, "print(ring(), attempt(30, make=socket.socketpair))") == ["EACCES"] * 2
    assert "EACCES" not in sockets(WITHOUT, "print(ring(), attempt(30, make=socket.socketpair))")


def test_it_cannot_be_taken_off_by_asking_for_less() -> None:
    again = "give_up_sockets(loopback=True); print(attempt(socket.AF_INET))"
    assert sockets(WITH, again) == ["EACCES"]


def test_several_devices_keep_their_loopback_and_nothing_else() -> None:
    found = sockets("give_up_sockets(loopback=True)", "print(*everything())")
    assert found[0] == found[2] == found[3] == "open"
    others = "print(*(attempt(family, socket.SOCK_RAW) for family in (17, 29, 40, 44)), ring())"
    assert sockets("give_up_sockets(loopback=True)", others) == ["EACCES"] * 5


# -- what a process would have ---------------------------------------------------------------------

LOOK = """
from wardround_client.worker.network import interfaces_up, require_no_network
from wardround_common.errors import ConfigError
try:
    require_no_network(allowed={allowed})
except ConfigError as error:
    print(error.code, str(error))
else:
    print("starts")
"""


def looked(setup: str = "", *, allowed: bool = False) -> list[str]:
    """What a worker does in a network namespace of its own."""
    command = f"{setup}\nexec {sys.executable} -c '{LOOK.format(allowed=allowed)}'"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-e", "-c", command],
        env=os.environ | {"PYTHONPATH": FOLDERS},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _can_make_namespaces() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    command = ["unshare", "--net", "ip", "link", "add", "one", "type", "veth", "peer", "two"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


namespaces = pytest.mark.skipif(
    not _can_make_namespaces(), reason="this user may not make network namespaces"
)
VETH = "ip link add one type veth peer name two"


@namespaces
@pytest.mark.parametrize("setup", ["", "ip link set lo up", VETH])
def test_without_an_interface_that_is_up_the_worker_starts(setup: str) -> None:
    assert looked(setup) == ["starts"]


@namespaces
def test_with_an_interface_that_is_up_it_refuses_and_names_it() -> None:
    said = looked(f"{VETH}; ip link set one up")
    assert said[0] == "worker_network"
    assert "(one)," in said
    assert "--allow-network" in said[-1]


@namespaces
def test_an_interface_does_not_hide_behind_the_name_of_the_loopback() -> None:
    renamed = f"ip link set lo down; ip link set lo name loop; {VETH}; ip link set one name lo"
    assert looked(f"{renamed}; ip link set lo up")[0] == "worker_network"


@namespaces
def test_with_a_network_that_is_allowed_it_starts() -> None:
    assert looked(f"{VETH}; ip link set one up", allowed=True) == ["starts"]


def test_a_network_socket_left_open_by_whoever_started_it_is_seen() -> None:
    script = "from wardround_client.worker.network import inherited_sockets as s; print(*s())"
    with socket.socket(socket.AF_INET) as inet, socket.socket(socket.AF_UNIX) as unix:
        fds = (inet.fileno(), unix.fileno())
        assert run(script, pass_fds=fds) == [str(inet.fileno())]
    assert run(script) == []
