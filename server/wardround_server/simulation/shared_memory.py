"""Arrays in memory that two processes of one machine share.

A block is an anonymous file in memory (Linux ``memfd_create``): it has no name that a crash could
leave behind, and is freed with the last process that holds it. Its descriptor goes to the other
process over the Unix socket between them, once.
"""

import mmap
import os
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

import numpy as np

from wardround_common.wire.layout import Packed


class SharedBlock:
    """Shared memory of one size.

    Args:
        num_bytes: at least 1.
        descriptor: of a block that another process made; None makes a new one.
    """

    def __init__(self, num_bytes: int, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("wardround", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, num_bytes)
        self.num_bytes = num_bytes
        self._map = mmap.mmap(descriptor, num_bytes)
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)  # the mapping lives as long as an array that views it

    def array(self, dtype: str, size: int) -> Packed:
        """The first ``size`` values as an array, not copied."""
        values: Packed = np.frombuffer(self._map, dtype=np.dtype(dtype), count=size)
        return values

    def send(self, connection: Connection, pid: int) -> None:
        """Give the block to the process at the other end, which takes it by :meth:`receive`."""
        send_handle(connection, self._descriptor, pid)

    @classmethod
    def receive(cls, connection: Connection, num_bytes: int) -> "SharedBlock":
        """The block that the other process sent."""
        return cls(num_bytes, recv_handle(connection))


class BlockPool:
    """Blocks for arrays that are written here and read at the other end."""

    def __init__(self) -> None:
        self._blocks: dict[int, SharedBlock] = {}
        self._free: set[int] = set()
        self._num_made = 0

    def take(self, num_bytes: int) -> tuple[int, SharedBlock]:
        """A block that nobody reads, and its number."""
        for number in sorted(self._free):
            self._free.discard(number)
            if self._blocks[number].num_bytes >= num_bytes:
                return number, self._blocks[number]
            del self._blocks[number]
        self._num_made += 1
        self._blocks[self._num_made] = SharedBlock(num_bytes)
        return self._num_made, self._blocks[self._num_made]

    def give_back(self, number: int) -> None:
        """The other end has done with a block, or never got it."""
        self._free.add(number)
