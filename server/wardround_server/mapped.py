"""Arrays that lie in a file: read where they are, a window at a time, and never held.

A mapped array is an array like any other to whoever folds it. :func:`windows` walks through it and
gives back each window's pages after use, so an update of any size takes a huge page of this process
while it is checked and folded; the kernel keeps the file in its cache as long as it has room.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wardround_common.wire.layout import Layout, Packed

WINDOW_BYTES = 1 << 20
"""Bytes of a mapped file in use at a time; a multiple of the page size and of every block."""


def mapped(path: Path, layout: Layout) -> Packed:
    """A file viewed as the packed array of ``layout``, read-only.

    Args:
        path: holds exactly the layout's bytes; it may be renamed or deleted while the array is used.
        layout: of at least one value.

    Raises:
        OSError, ValueError: it cannot be read, or is not as long.
    """
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    array: Packed = np.memmap(path, dtype=dtype, mode="r", shape=(layout.num_values,))
    return array


def windows(values: Packed) -> Iterator[slice]:
    """Ranges of values that together are the array: one for an array in memory."""
    if not isinstance(values.base, mmap.mmap):
        yield slice(0, values.size)
        return
    step = WINDOW_BYTES // values.itemsize
    for start in range(0, values.size, step):
        yield slice(start, start + step)
        size = min(WINDOW_BYTES, values.nbytes - start * values.itemsize)
        values.base.madvise(mmap.MADV_DONTNEED, start * values.itemsize, size)
