"""An array on its way in: written to a file and hashed once, as it comes.

1. Nothing is written before its size was compared with what the manifest promises.
2. Bytes are taken only where the last ones ended: a transfer that was cut goes on, none is mixed.
3. A whole array is on disk before anybody is told of it; the journal takes the file over by its name.
"""

import hashlib
import os
from pathlib import Path

from wardround_common.errors import WireError
from wardround_common.types import Digest
from wardround_server.rounds.carrier import Spooled


class Spool:
    """One array.

    Args:
        path: where to write; its folder is made if absent.
        num_bytes: the promised size, at least 1.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._num_bytes = num_bytes
        self._hash = hashlib.sha256()
        self._file = path.open("wb", buffering=0)
        self.received = 0

    def write(self, offset: int, data: memoryview) -> bool:
        """Take the next bytes; whether the array is whole.

        Raises:
            WireError: they are none, not the next ones, or more than promised (``stream_chunk``).
            OSError: the disk refused.
        """
        if offset != self.received or not 0 < len(data) <= self._num_bytes - offset:
            raise WireError("a chunk is not the one that is wanted", code="stream_chunk")
        self._hash.update(data)
        self.received += len(data)
        while data:
            data = data[self._file.write(data) :]
        return self.received == self._num_bytes

    def finish(self) -> Spooled:
        """Bring the file to the disk; called once, when the array is whole.

        Raises:
            OSError: the disk refused; never tried again.
        """
        os.fsync(self._file.fileno())
        self._file.close()
        return Spooled(self._path, Digest(self._hash.hexdigest()))

    def drop(self) -> None:
        """Delete what came; nobody wants it."""
        self._file.close()
        self._path.unlink(missing_ok=True)
