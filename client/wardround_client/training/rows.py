"""Cache files of rows: written row by row, renamed when whole, read as a memory map.

The format is safetensors with one float32 tensor, so that a file needs neither fit into memory
while it is written nor while it is read. A file that is not of the expected name, type and shape is
as good as none.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from wardround_common.durable import fsync_folder

_ALIGNED: Final = 8
"""Bytes that a safetensors header is a multiple of."""


def read_rows(path: Path, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The rows in a file, mapped into memory.

    Args:
        path: the file.
        name: of the tensor.
        shape: that it must have.

    Returns:
        float32 of that shape; None where the file is absent, damaged or of other content.
    """
    try:
        rows = load_file(path).get(name)
    except (OSError, SafetensorError):
        return None
    if rows is None or tuple(rows.shape) != shape or rows.dtype != torch.float32:
        return None
    return rows


class RowWriter:
    """Writes one tensor of rows; on leaving without an error the file is durable and complete.

    Args:
        path: the final name; its folder must exist.
        name: of the tensor.
        shape: of the tensor, float32; at least one value.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...]) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        stop = 4 * int(np.prod(shape, dtype=np.int64))
        table = {name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, stop]}}
        header = json.dumps(table, separators=(",", ":")).encode()
        header += b" " * (-len(header) % _ALIGNED)
        with self._temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            start = file.tell()
            file.truncate(start + stop)
        self._rows = np.memmap(self._temporary, np.float32, "r+", start, shape)

    def put(self, where: slice | list[int], values: torch.Tensor) -> None:
        """Write rows."""
        self._rows[where] = values.numpy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rows.flush()
        del self._rows
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        with self._temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self._path)  # noqa: PTH105  as in wardround_common.durable
        fsync_folder(self._path.parent)
