"""What a process does with memory that it has freed: settings of glibc's ``mallopt(3)``."""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEPT: Final = 2**30
_LARGEST: Final = 32 * 2**20
"""glibc's own upper limit."""


def keep_freed_memory() -> bool:
    """Let the C library keep up to 1 GiB of freed memory instead of giving it back at once.

    A training step frees its gradients and activations and the next one asks for them again. Given
    back to the kernel in between, every page is zeroed and mapped anew: a tenth of the time of a
    step of ResNet-18. Results do not depend on it.

    Returns:
        Whether the C library has such a setting.
    """
    # Setting one threshold stops glibc from moving the other by itself.
    return _set(_M_MMAP_THRESHOLD, _LARGEST) and _set(_M_TRIM_THRESHOLD, _KEPT)


def share_arenas() -> bool:
    """Have threads that begin from now on allocate from one heap.

    glibc gives each thread a heap of its own (an *arena*), and keeps in each what its thread once
    needed. A server with two threads a connection would hold several MiB a connection that nobody
    uses. One is as fast there: copying and encrypting take long, allocating does not.

    Returns:
        Whether the C library has such a setting.
    """
    return _set(_M_ARENA_MAX, 1)


def _set(parameter: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(parameter, value))
