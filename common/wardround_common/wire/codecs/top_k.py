"""The largest values alone, with their places.

Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, definition 2.1 (top-k). Without error feedback
most of an update is lost for good.
"""

import math

import numpy as np
import torch

from wardround_common.errors import WireError
from wardround_common.spec.exchange import TopKUpdate
from wardround_common.wire.codecs.base import Coded, check_size
from wardround_common.wire.layout import Layout, Packed, flat_tensor


class TopKCodec:
    """See :class:`~wardround_common.wire.codecs.base.Codec`.

    Format: k little-endian uint32 places, rising, then k float32 values; k = ceil(fraction * n).

    Args:
        layout: of the update, fewer than 2^31 values.
        settings: says which fraction is kept.

    Raises:
        WireError: the layout is too large.
    """

    def __init__(self, layout: Layout, settings: TopKUpdate) -> None:
        self._size = layout.num_values
        if self._size >= 2**31:
            raise WireError("top-k codes fewer than 2^31 values", code="layout_size")
        self._kept = math.ceil(settings.fraction * self._size)

    @property
    def num_bytes(self) -> int:
        """Eight for each value that is kept."""
        return 8 * self._kept

    def encode(self, values: Packed) -> Coded:
        """Keep the values of largest magnitude."""
        source = flat_tensor(values)
        places = torch.topk(source.abs(), self._kept, sorted=False).indices.sort().values
        coded = np.empty(self.num_bytes, dtype=np.uint8)
        coded[: 4 * self._kept].view("<u4")[:] = places.numpy()
        coded[4 * self._kept :].view("<f4")[:] = source[places].numpy()
        return coded

    def decode(self, coded: Coded, out: Packed) -> None:
        """Zero but for the values that were kept.

        Raises:
            WireError: the places do not rise, or one is outside the update.
        """
        check_size(self, coded)
        places = coded[: 4 * self._kept].view("<u4").astype(np.int64)
        if self._kept and (places[-1] >= self._size or (np.diff(places) <= 0).any()):
            raise WireError("places are not rising within the update", code="coded_places")
        out.fill(0.0)
        out[places] = coded[4 * self._kept :].view("<f4")
