"""What every coding of updates provides.

A coding makes fewer bytes of a float32 update. How many is known from the layout alone, so a
receiver refuses any other number before it looks at a byte. Plain float32 is no coding: the packed
array itself travels (:mod:`wardround_common.wire.layout`).
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from wardround_common.errors import WireError
from wardround_common.wire.layout import Packed

Coded = npt.NDArray[np.uint8]
CHUNK = 1 << 18
"""Values that are coded at a time, so that temporaries stay in the processor's cache."""


class Codec(Protocol):
    """Codes updates of one layout."""

    @property
    def num_bytes(self) -> int:
        """Bytes of every coded update."""
        ...

    def encode(self, values: Packed) -> Coded:
        """Code one update.

        Args:
            values: float32 [n], finite.

        Returns:
            uint8 [num_bytes]; equal values give equal bytes.
        """
        ...

    def decode(self, coded: Coded, out: Packed) -> None:
        """Write what an update was coded as.

        Args:
            coded: uint8 [num_bytes] from anywhere. Scales and values may be NaN or infinite:
                admission looks at what comes out.
            out: float32 [n], overwritten.

        Raises:
            WireError: bytes that no encoder writes, where they could do harm.
        """
        ...


def check_size(codec: Codec, coded: Coded) -> None:
    """Refuse another number of bytes.

    Raises:
        WireError: there are more or fewer.
    """
    if coded.dtype != np.uint8 or coded.shape != (codec.num_bytes,):
        raise WireError(f"{codec.num_bytes} bytes were promised", code="update_bytes")
