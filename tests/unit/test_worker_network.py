"""The worker has no network: what it would have is seen, and what it could open is taken from it.

Each case is a process of its own: the filter cannot be taken off again.
"""

import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from wardround_client.worker import network
from wardround_common.errors import ConfigError

ROOT = Path(__file__).parents[2]
FOLDERS = os.pathsep.join(str(ROOT / part) for part in ("client", "common"))
ATTEMPTS = """
import ctypes, errno, mmap, os, socket, struct, sys, threading

def attempt(family, kind=socket.SOCK_STREAM, make=socket.socket):
    try:
        made = make(family, kind)
    except OSError as error:
        return errno.errorcode[error.errno]
    for one in made if isinstance(made, tuple) else (made,):
        one.close()
    return "open"

def everything(*but, make=socket.socket):
    # every family that a kernel may know, and every kind of socket
    return {attempt(f, k, make) for f in range(64) if f not in but for k in (1, 2, 3, 4, 5)}

def call(number, *arguments):
    ctypes.set_errno(0)
    ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    return errno.errorcode.get(ctypes.get_errno(), "open")

def call_of_32_bits(number, *arguments):
    # push rbx; mov eax, number; mov ebx, ecx and edx; int 0x80; pop rbx; ret
    words = [struct.pack("<I", word) for word in (number, *arguments)]
    code = b"".join(part for pair in zip((b"\\x53\\xb8", b"\\xbb", b"\\xb9", b"\\xba"), words) for part in pair)
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code + b"\\xcd\\x80\\x5b\\xc3")
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return errno.errorcode.get(-ctypes.CFUNCTYPE(ctypes.c_int)(place)(), "open")

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
FAMILIES = {"inet": 2, "inet6": 10, "netlink": 16, "packet": 17, "tipc": 30, "vsock": 40, "xdp": 44}


def test_every_socket_but_a_unix_one_is_refused() -> None:
    both = "print(*everything(1), *everything(1, make=socket.socketpair))"
    assert sockets(WITH, both) == ["EACCES"] * 2
    kept = "print(attempt(socket.AF_UNIX), attempt(socket.AF_UNIX, make=socket.socketpair))"
    assert sockets(WITH, kept) == ["open", "open"]


def test_without_the_filter_network_sockets_open() -> None:
    """The failing twin."""
    assert {"open", "EAFNOSUPPORT"} <= set(sockets(WITHOUT, "print(*everything(1))"))
    assert sockets(WITHOUT, "print(attempt(2, 1), attempt(2, 2))") == ["open"] * 2
    assert "EACCES" not in sockets(WITHOUT, "print(*everything(1, make=socket.socketpair))")


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_by_which_bytes_may_leave_is_refused(name: str) -> None:
    attempts = f"print(*{{attempt({FAMILIES[name]}, kind) for kind in range(1, 6)}})"
    assert sockets(WITH, attempts) == ["EACCES"]
    assert sockets(WITHOUT, attempts) != ["EACCES"]


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


def test_io_uring_and_another_processes_sockets_are_no_way_round() -> None:
    ways = "print(call(425, 1, None), call(426, -1), call(427, -1), call(438, -1, -1, 0))"
    assert sockets(WITH, ways) == ["EACCES"] * 4
    assert "EACCES" not in sockets(WITHOUT, ways)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="has no other way to call the kernel")
def test_calls_by_another_architectures_numbers_are_no_way_round() -> None:
    ways = "print(call(0x40000000 | 41, 2, 1, 0), call_of_32_bits(359, 2, 1, 0))"
    assert sockets(WITH, ways) == ["EACCES"] * 2
    assert "EACCES" not in sockets(WITHOUT, ways)


def test_it_cannot_be_taken_off_by_asking_for_less() -> None:
    again = "give_up_sockets(loopback=True); print(attempt(socket.AF_INET))"
    assert sockets(WITH, again) == ["EACCES"]


def test_several_devices_keep_their_loopback_and_nothing_else() -> None:
    some = "give_up_sockets(loopback=True)"
    kept = "print(attempt(2), attempt(2, 2), attempt(16, 3))"
    assert sockets(some, kept) == ["open"] * 3
    assert sockets(some, "print(*everything(1, 2, 10, 16))") == ["EACCES"]


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


INTERFACES = """
from wardround_client.worker import network
from wardround_client.worker.seccomp import give_up_sockets
names = [name for _, name in socket.if_nameindex()] and network._interfaces()
early.set(); thread.join()
give_up_sockets()
print(attempt(socket.AF_NETLINK), network._interfaces() == names, "lo" in names)
"""


def test_interfaces_are_found_where_a_service_was_denied_netlink_sockets() -> None:
    assert run(ATTEMPTS + INTERFACES) == ["EACCES", "True", "True"]


def test_where_nothing_says_whether_there_is_a_network_the_worker_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused() -> list[tuple[int, str]]:
        raise OSError(errno.EAFNOSUPPORT, "as RestrictAddressFamilies=AF_UNIX answers")

    monkeypatch.setattr(socket, "if_nameindex", refused)
    monkeypatch.setattr(network, "_DEVICES", tmp_path / "dev")
    with pytest.raises(ConfigError, match="cannot be found out") as caught:
        network.require_no_network(allowed=False)
    assert caught.value.code == "worker_network"
    (tmp_path / "dev").write_text("Inter-|\n face |\n    lo: 0 0\nwr-none0: 0 0\n")
    with pytest.raises(ConfigError, match="wr-none0"):
        network.require_no_network(allowed=False)
    network.require_no_network(allowed=True)
