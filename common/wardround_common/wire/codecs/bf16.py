"""bfloat16: the upper half of each float32, rounded to nearest even. Half the bytes.

Relative error of each value at most 2^-9. What is coded is a change, so the error is relative to the
change and not to the weight.
"""

import numpy as np
import torch

from wardround_common.wire.codecs.base import CHUNK, Coded, check_size
from wardround_common.wire.layout import Layout, Packed, flat_tensor


class Bf16Codec:
    """See :class:`~wardround_common.wire.codecs.base.Codec`. Format: n little-endian bfloat16.

    Args:
        layout: of the update.
    """

    def __init__(self, layout: Layout) -> None:
        self._size = layout.num_values

    @property
    def num_bytes(self) -> int:
        """Two for each value."""
        return 2 * self._size

    def encode(self, values: Packed) -> Coded:
        """Round every value."""
        coded = np.empty(self.num_bytes, dtype=np.uint8)
        target = torch.from_numpy(coded).view(torch.bfloat16)
        source = flat_tensor(values)
        for start in range(0, self._size, CHUNK):
            target[start : start + CHUNK].copy_(source[start : start + CHUNK])
        return coded

    def decode(self, coded: Coded, out: Packed) -> None:
        """Widen every value."""
        check_size(self, coded)
        torch.from_numpy(out).copy_(flat_tensor(coded).view(torch.bfloat16))
