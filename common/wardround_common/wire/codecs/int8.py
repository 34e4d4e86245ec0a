"""Blockwise int8: one byte a value and one float32 scale a block.

Symmetric and linear, as in Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR
2022, section 2.1, with a linear map: a block's scale is its largest magnitude over 127, and values are
rounded to nearest even multiples, so no value is off by more than half its block's scale.
"""

import numpy as np
import torch

from wardround_common.spec.exchange import Int8Update
from wardround_common.wire.codecs.base import CHUNK, Coded, check_size
from wardround_common.wire.layout import Layout, Packed, flat_tensor


class Int8Codec:
    """See :class:`~wardround_common.wire.codecs.base.Codec`.

    Format: ceil(n / block) little-endian float32 scales, then n int8.

    Args:
        layout: of the update.
        settings: says how long a block is.
    """

    def __init__(self, layout: Layout, settings: Int8Update) -> None:
        self._size = layout.num_values
        self._block = settings.block
        self._num_blocks = -(-self._size // settings.block)
        self._chunk = max(1, CHUNK // settings.block) * settings.block

    @property
    def num_bytes(self) -> int:
        """One for each value and four for each block."""
        return self._size + 4 * self._num_blocks

    def encode(self, values: Packed) -> Coded:
        """Scale and round every block."""
        coded = np.empty(self.num_bytes, dtype=np.uint8)
        scales, codes = self._parts(torch.from_numpy(coded))
        source = flat_tensor(values)
        for start in range(0, self._size, self._chunk):
            chunk = source[start : start + self._chunk]
            blocks = self._blocks(chunk)
            largest = blocks.abs().amax(dim=1, keepdim=True)
            scale = largest / 127.0
            first = start // self._block
            scales[first : first + len(blocks)] = scale[:, 0]
            # A block of zeros, or of values too small to have a scale, is all zeros.
            levels = torch.where(scale > 0, blocks / scale, 0.0).round_().clamp_(-127, 127)
            codes[start : start + self._chunk] = levels.flatten()[: len(chunk)].to(torch.int8)
        return coded

    def decode(self, coded: Coded, out: Packed) -> None:
        """Multiply every block by its scale."""
        check_size(self, coded)
        scales, codes = self._parts(flat_tensor(coded))
        target = torch.from_numpy(out)
        for start in range(0, self._size, self._chunk):
            chunk = target[start : start + self._chunk]
            chunk.copy_(codes[start : start + self._chunk])
            first = start // self._block
            whole = len(chunk) // self._block
            chunk[: whole * self._block].view(whole, self._block).mul_(
                scales[first : first + whole, None]
            )
            if whole * self._block < len(chunk):
                chunk[whole * self._block :].mul_(scales[first + whole])

    def _parts(self, coded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            coded[: 4 * self._num_blocks].view(torch.float32),
            coded[4 * self._num_blocks :].view(torch.int8),
        )

    def _blocks(self, chunk: torch.Tensor) -> torch.Tensor:
        """float32 [blocks, block]; a short last one is filled up with zeros."""
        missing = -len(chunk) % self._block
        whole = torch.nn.functional.pad(chunk, (0, missing)) if missing else chunk
        return whole.view(-1, self._block)
