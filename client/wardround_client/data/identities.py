"""Who the rows are about, as digests that are the same each time the data is read."""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from wardround_client.data.columns import RawData
from wardround_common.modalities.base import IntArray

Identities = npt.NDArray[np.uint64]


def identities(raw: RawData, rows: IntArray, column: str | None) -> Identities:
    """A digest of each row's patient, uint64 [n].

    Args:
        raw: the data.
        rows: int64 [n], which rows.
        column: of the patient's identifier; without one, a row is known by all that was read of it.
    """
    if column is not None:
        known: dict[str, int] = {}
        return np.array(
            [
                known.get(cell) or known.setdefault(cell, digest64(cell.encode()))
                for cell in raw.cells(column, rows)
            ],
            dtype=np.uint64,
        )
    columns = [raw.cells(name, rows) for name in sorted(raw.columns)]
    return np.array(
        [
            digest64(_content(raw, int(row), [cells[place] for cells in columns]))
            for place, row in enumerate(rows)
        ],
        dtype=np.uint64,
    )


def digest64(data: bytes, key: bytes = b"") -> int:
    """BLAKE2b (RFC 7693) of 8 bytes, as a number.

    Args:
        data: what to digest.
        key: without which nobody can, at most 64 bytes.
    """
    return int.from_bytes(blake2b(data, digest_size=8, key=key).digest(), "little")


def _content(raw: RawData, row: int, cells: list[str]) -> bytes:
    parts = ["\x1f".join(cells).encode()]
    if raw.words is not None:
        parts.append("\x1f".join(raw.words[row]).encode())
    if raw.images is not None:
        parts.append(raw.images[row].tobytes())
    return b"\x1e".join(parts)
