"""Whether this process has a network; the worker reads patient data and does not start with one.

In a network namespace of its own (``ip netns``, ``PrivateNetwork=yes``, ``network_mode: none``) a
process sees no interface but a loopback. What it inherited from whoever started it counts too: a
socket that is already open needs no interface of its own namespace.

Sources: Linux ``netdevice(7)``, ``proc(5)``.
"""

import contextlib
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from wardround_common.errors import ConfigError

_GET_FLAGS = 0x8913  # SIOCGIFFLAGS
_UP, _LOOPBACK = 0x1, 0x8  # IFF_UP, IFF_LOOPBACK
_DEVICES: Final = Path("/proc/self/net/dev")
"""The interfaces of this process's own network namespace, below two lines of headings."""


def interfaces_up() -> list[str]:
    """Names of the interfaces other than a loopback that are up in this network namespace.

    The kernel is asked, not ``/sys``: that may show another namespace's.

    Raises:
        ConfigError: the kernel does not say.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asked:
        flags = {name: _flags(asked, name) for name in _interfaces()}
    return [name for name, bits in flags.items() if bits & _UP and not bits & _LOOPBACK]


def _interfaces() -> list[str]:
    try:
        return [name for _, name in socket.if_nameindex()]
    except OSError:  # it takes a netlink socket, which a service may have been denied
        pass
    try:
        lines = _DEVICES.read_text().splitlines()[2:]
    except OSError:
        raise ConfigError(
            f"whether there is a network cannot be found out: neither by a netlink socket nor from "
            f"{_DEVICES}; let the worker read the latter (it needs /proc)",
            code="worker_network",
        ) from None
    return [line.partition(":")[0].strip() for line in lines]


def _flags(asked: socket.socket, name: str) -> int:
    request = struct.pack("16sH14x", name.encode(), 0)
    try:
        reply = fcntl.ioctl(asked, _GET_FLAGS, request)
    except OSError:
        return _UP  # seen, and nothing is known of it: that is no absence
    return int(struct.unpack("16xH14x", reply)[0])


def inherited_sockets() -> list[int]:
    """Descriptors of open sockets that are not Unix ones."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  names are enough
        descriptor = int(name)
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and not _is_unix(descriptor):
                found.append(descriptor)
    return found


def _is_unix(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as opened:
        return opened.family == socket.AF_UNIX


def require_no_network(*, allowed: bool) -> None:
    """Refuse to go on where there is a network.

    Args:
        allowed: the operator said that there may be one.

    Raises:
        ConfigError: there is one, or it cannot be found out, and it is not allowed.
    """
    if allowed:
        return
    if found := interfaces_up():
        raise ConfigError(
            f"this process would have a network ({', '.join(found)}), and the worker reads patient "
            "data. Start it without one: systemd PrivateNetwork=yes, a container with "
            "network_mode: none, or `ip netns exec`; or, for a trial on one machine, --allow-network",
            code="worker_network",
        )
    if opened := inherited_sockets():
        raise ConfigError(
            f"whoever started this process left network sockets open in it (descriptors "
            f"{', '.join(map(str, opened))}); start the worker without them, for example by systemd",
            code="worker_network",
        )
