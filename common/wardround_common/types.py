"""The words that are types: a site, a digest, a named tensor."""

import hashlib
import re
from dataclasses import dataclass
from math import prod
from typing import Final, Literal, NewType

SiteId = NewType("SiteId", str)
"""The name of one hospital in the roster: lower-case letters, digits, hyphens; at most 40."""

Digest = NewType("Digest", str)
"""A SHA-256 digest as 64 lower-case hexadecimal digits."""

SITE_NAME: Final = r"^[a-z][a-z0-9-]{0,39}$"
HEX_DIGEST: Final = r"^[0-9a-f]{64}$"

DTypeName = Literal["float32", "float64", "uint8"]
ITEM_BYTES: Final[dict[str, int]] = {"float32": 4, "float64": 8, "uint8": 1}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one exchanged tensor.

    Attributes:
        name: the parameter's dotted name in the model; printable ASCII, at most 200 characters.
        dtype: ``float32`` (parameters), ``float64`` (sums), or ``uint8`` (a coded update). No
            manifest asks for anything but floats: integer buffers have no mean.
        shape: sizes, each at least 0; ``()`` is a scalar.
    """

    name: str
    dtype: DTypeName
    shape: tuple[int, ...]

    @property
    def num_values(self) -> int:
        """The number of values."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The packed size in bytes."""
        return self.num_values * ITEM_BYTES[self.dtype]


def sha256_hex(data: bytes | bytearray | memoryview) -> Digest:
    """The SHA-256 of ``data`` in hexadecimal."""
    return Digest(hashlib.sha256(data).hexdigest())


def is_digest(text: str) -> bool:
    """Whether ``text`` is a well-formed :data:`Digest`."""
    return re.fullmatch(HEX_DIGEST, text) is not None
