"""Freed memory stays with the process: the same allocations again cost few page faults."""

import resource
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from wardround_common.memory import keep_freed_memory, recycled

_MIB = 2**20
_PROBE = f"""
import ctypes, resource, sys
from wardround_common.memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    # Blocks below the size that is always mapped on its own, as gradients are.
    held = [libc.malloc(24 * {_MIB}) for _ in range(4)]
    for block in held:
        libc.memset(block, 1, 24 * {_MIB})
    for block in held:
        libc.free(block)
step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(way: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, way], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_memory_that_was_freed_is_used_again() -> None:
    pages_of_a_step = 96 * _MIB // resource.getpagesize()
    assert _faults("kept") < pages_of_a_step / 4
    assert _faults("given back") > pages_of_a_step, "the probe would not notice"


def _place(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_that_nobody_holds_is_used_for_the_next_array() -> None:
    array = recycled(1_000)
    place = _place(array)
    del array
    again = recycled(1_000)
    assert _place(again) == place
    assert again.dtype == np.float32
    assert again.flags.writeable


@pytest.mark.parametrize(
    "held",
    [lambda a: a[10:20], lambda a: torch.from_numpy(a)[3:], lambda a: a.data.cast("B")[8:]],
    ids=["slice", "tensor", "bytes"],
)
def test_memory_that_anything_views_is_left_alone(held: Callable[[np.ndarray], object]) -> None:
    array = recycled(1_000)
    place = _place(array)
    view = held(array)
    del array
    other = recycled(1_000)
    assert _place(other) != place
    del view
