"""A filter in the kernel that takes every socket but Unix ones from this process, for good.

The rules:

1. ``socket(2)`` and ``socketpair(2)`` fail with EACCES for every family but AF_UNIX. So do the two
   ways round: io_uring, whose requests would pass unseen, and ``pidfd_getfd(2)``, which takes an open
   socket from another process.
2. It holds for every thread, also those that libraries started when they were imported, and for
   every process that is started from here. It cannot be taken off again.
3. A call by another architecture's numbers (32-bit, x32) fails whatever it is: those numbers differ.

Not claimed: sockets that were open before stay open (see :mod:`wardround_client.worker.network`),
and Unix sockets reach whatever listens on this machine's file system.

Sources: Linux ``seccomp(2)``, ``Documentation/userspace-api/seccomp_filter.rst``.
"""

import ctypes
import errno
import platform
import socket
import struct
from dataclasses import dataclass
from typing import Final

from wardround_common.errors import ConfigError

_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _EVERY_THREAD = 38, 1, 1
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32 = 0x40000000
_IO_URING, _PIDFD_GETFD = (425, 426, 427), 438  # the same on every processor
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


@dataclass(frozen=True, slots=True)
class _Calls:
    """A processor's AUDIT_ARCH and the numbers of its system calls."""

    architecture: int
    seccomp: int
    socket: int
    socketpair: int


_CALLS: Final = {
    "x86_64": _Calls(0xC000003E, seccomp=317, socket=41, socketpair=53),
    "aarch64": _Calls(0xC00000B7, seccomp=277, socket=198, socketpair=199),
}


def give_up_sockets(*, loopback: bool = False) -> None:
    """Make every socket but a Unix one impossible, here and in every process started from here.

    Args:
        loopback: leave IPv4 and IPv6 sockets, and netlink's, by which interfaces are found: several
            devices at a site exchange gradients over the loopback of their own network namespace.

    Raises:
        ConfigError: this kernel or processor has no such filter.
    """
    calls = _CALLS.get(platform.machine())
    if calls is None:
        raise ConfigError(
            f"no socket filter is known for {platform.machine()} processors; run the worker on "
            "x86_64 or aarch64",
            code="worker_seccomp",
        )
    needed = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK) if loopback else ()
    program = _program(calls, (socket.AF_UNIX, *needed))
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        ctypes.c_long(calls.seccomp), _SET_MODE_FILTER, _EVERY_THREAD, described
    )
    if failed:
        raise ConfigError(
            f"the socket filter could not be installed (errno {ctypes.get_errno()}); the kernel "
            "needs CONFIG_SECCOMP_FILTER, and a container's own profile must allow seccomp(2)",
            code="worker_seccomp",
        )


def _program(calls: _Calls, families: tuple[int, ...]) -> bytes:
    """The filter in classic BPF; each jump passes over what follows it, or over nothing."""
    refuse = _step(_RETURN, _ERRNO | errno.EACCES)
    allow = _step(_RETURN, _ALLOW)
    return (
        _step(_LOAD, _ARCHITECTURE)
        + _step(_JUMP_EQUAL, calls.architecture, then=1)
        + refuse
        + _step(_LOAD, _NUMBER)
        + _step(_JUMP_AT_LEAST, _X32, other=1)
        + refuse
        + b"".join(
            _step(_JUMP_EQUAL, number, other=1) + refuse for number in (*_IO_URING, _PIDFD_GETFD)
        )
        + _step(_JUMP_EQUAL, calls.socket, then=2)
        + _step(_JUMP_EQUAL, calls.socketpair, then=1)
        + allow
        + _step(_LOAD, _FIRST_ARGUMENT)
        + b"".join(_step(_JUMP_EQUAL, family, other=1) + allow for family in families)
        + refuse
    )


def _step(code: int, value: int, *, then: int = 0, other: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, other, value)
