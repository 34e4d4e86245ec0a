"""Hosts for end-to-end tests: network namespaces of one machine, joined by a bridge.

What it promises: a host reaches other hosts and nothing else; a host that was cut off has no
interface but a loopback that is down; everything is gone when the context ends, whatever happened.
Needs root, ``ip`` (iproute2) and ``setpriv`` (util-linux), as a laboratory of real hosts would need
real machines.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

NETWORK = "10.77.0"
_HUB = "hub"
_numbers = itertools.count(1)


def why_not() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    missing = [tool for tool in ("ip", "setpriv", "nginx") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux, nginx-light)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "network namespaces cannot be made here"


@dataclass(frozen=True, slots=True)
class User:
    """Who a process runs as: numeric ids, which need no account."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)


@dataclass(slots=True)
class Host:
    """One host.

    Attributes:
        name: in the test.
        namespace: the kernel's name of its network.
        address: IPv4; None for a host that was cut off.
    """

    name: str
    namespace: str
    address: str | None

    def command(self, words: Sequence[str], user: User = ROOT) -> list[str]:
        """The command line that runs ``words`` on this host as ``user``."""
        groups = ",".join(map(str, user.groups)) if user.groups else None
        as_user = ["setpriv", "--reuid", str(user.uid), "--regid", str(user.gid)]
        as_user += ["--groups", groups] if groups else ["--clear-groups"]
        as_user += ["--inh-caps=-all", "--bounding-set=-all"] if user.uid else []
        return ["ip", "netns", "exec", self.namespace, *_with_python(), *as_user, "--", *words]

    def run(
        self, words: Sequence[str], user: User = ROOT, *, timeout_s: float = 60.0, **more: object
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return what it printed."""
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            self.command(words, user),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **more,
        )

    def start(
        self,
        words: Sequence[str],
        log: Path,
        user: User = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a process that goes on; what it prints is added to ``log``."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(words, user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )


@dataclass(slots=True)
class Hosts:
    """All hosts of a test; a context that removes them."""

    _prefix: str = field(default_factory=lambda: f"wr{os.getpid()}n{next(_numbers)}")
    _hosts: dict[str, Host] = field(default_factory=dict)

    def __enter__(self) -> Self:
        """Make the bridge that joins hosts."""
        self._namespace(_HUB)
        hub = self._hosts[_HUB].namespace
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill what still runs on the hosts, and remove them."""
        for host in self._hosts.values():
            listed = subprocess.run(
                ["ip", "netns", "pids", host.namespace],
                capture_output=True,
                text=True,
                check=False,
            )
            for pid in listed.stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            subprocess.run(["ip", "netns", "del", host.namespace], check=False)
        self._hosts.clear()

    def add(self, name: str) -> Host:
        """A host on the common network."""
        number = len(self._hosts) + 1
        host = self._namespace(name, f"{NETWORK}.{number}")
        hub, port = self._hosts[_HUB].namespace, f"port{number}"
        peer = ("peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", hub, "link", "add", port, "type", "veth", *peer)
        _ip("-n", hub, "link", "set", port, "master", "bridge", "up")
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        return host

    def add_cut_off(self, name: str) -> Host:
        """A host without any interface that is up."""
        return self._namespace(name)

    def _namespace(self, name: str, address: str | None = None) -> Host:
        host = Host(name, f"{self._prefix}-{name}", address)
        _ip("netns", "add", host.namespace)
        self._hosts[name] = host
        return host


def _with_python() -> list[str]:
    """Words that make this Python readable on a host, where its folder is for root alone.

    A host has files of its own, as ``ip netns exec`` gives it mounts of its own: an interpreter below
    ``/root`` is shown in an otherwise empty folder of that name.
    """
    prefix = Path(sys.executable).resolve().parents[1]
    closed = [path for path in reversed(prefix.parents) if not path.stat().st_mode & 0o001]
    if not closed:
        return []
    script = (
        f"mount --bind {prefix} /mnt && mount -t tmpfs -o mode=755 none {closed[0]} && "
        f'mkdir -p {prefix} && mount --bind /mnt {prefix} && umount /mnt && exec "$@"'
    )
    return ["sh", "-c", script, "sh"]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
