"""What a process does with memory that it has freed.

glibc's settings (``mallopt(3)``) keep blocks of up to 32 MiB; :func:`recycled` keeps one larger.
"""

import ctypes
import weakref
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

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


_free: list[npt.NDArray[np.float32]] = []


def recycled(size: int) -> npt.NDArray[np.float32]:
    """An array of undefined values, in memory that an earlier one had if nobody holds that any more.

    glibc gives blocks above 32 MiB back to the kernel whenever they are freed, and the next one's
    pages are zeroed and mapped anew: for the sums of a 45 MB model, an eighth of what a round of ten
    sites costs beside training. One block is kept.

    Args:
        size: number of values.

    Returns:
        float32 [size].
    """
    block = next((each for each in _free if each.size == size), None)
    _free.clear()
    if block is None:
        block = np.empty(size, dtype=np.float32)
    # Behind a memoryview, so that whatever views the array holds the array and not the block.
    array = np.frombuffer(block.data, dtype=np.float32)
    weakref.finalize(array, _keep, block).atexit = False
    return array


def available_mib() -> float:
    """Memory that a process could take now, in MiB, as ``proc(5)`` estimates it; 0 if it says nothing."""
    try:
        rows = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0.0
    found = (row.split() for row in rows if row.startswith("MemAvailable:"))
    return next((int(row[1]) / 1024 for row in found), 0.0)


def _keep(block: npt.NDArray[np.float32]) -> None:
    _free[:] = [block]


def _set(parameter: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(parameter, value))
