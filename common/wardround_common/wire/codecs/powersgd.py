"""Low-rank factors of each matrix.

Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", NeurIPS
2019, algorithm 1: one step of subspace iteration. The paper starts from the factor of the step
before; here the start is drawn anew from a fixed seed, so that an answer depends on the question alone
(section 3 of the paper calls this the cold start). Error feedback makes up for it.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from wardround_common.spec.exchange import PowerSgdUpdate
from wardround_common.types import TensorSpec
from wardround_common.wire.codecs.base import Coded, check_size
from wardround_common.wire.layout import Layout, Packed, flat_tensor

_SEED = 0x5EED


class PowerSgdCodec:
    """See :class:`~wardround_common.wire.codecs.base.Codec`.

    A tensor of two or more dimensions is a matrix [rows, columns] of its first dimension and the
    others. Format, tensor after tensor, all little-endian float32: P [rows, r] then Q [columns, r]
    where that is shorter than the matrix, else the tensor itself. A matrix is decoded as P Q^T.

    Args:
        layout: of the update.
        settings: says the rank.
    """

    def __init__(self, layout: Layout, settings: PowerSgdUpdate) -> None:
        self._layout = layout
        self._rank = settings.rank

    @property
    def num_bytes(self) -> int:
        """Four for each value of the factors and of the tensors that stay whole."""
        return 4 * sum(
            tensor.num_values if shape is None else self._rank * sum(shape)
            for tensor, shape in self._shapes()
        )

    def encode(self, values: Packed) -> Coded:
        """Factor every matrix."""
        coded = np.empty(self.num_bytes, dtype=np.uint8)
        target, at = torch.from_numpy(coded).view(torch.float32), 0
        flat = flat_tensor(values)
        for (_, where), (_, shape) in zip(self._layout.slices(), self._shapes(), strict=True):
            source = flat[where]
            parts = [source] if shape is None else self._factors(source.view(shape))
            for part in parts:
                target[at : at + part.numel()] = part.flatten()
                at += part.numel()
        return coded

    def decode(self, coded: Coded, out: Packed) -> None:
        """Multiply the factors."""
        check_size(self, coded)
        source, at = flat_tensor(coded).view(torch.float32), 0
        flat = torch.from_numpy(out)
        for (tensor, where), (_, shape) in zip(self._layout.slices(), self._shapes(), strict=True):
            if shape is None:
                flat[where] = source[at : at + tensor.num_values]
                at += tensor.num_values
                continue
            rows, columns = shape
            left = source[at : at + rows * self._rank].view(rows, self._rank)
            at += left.numel()
            right = source[at : at + columns * self._rank].view(columns, self._rank)
            at += right.numel()
            torch.matmul(left, right.T, out=flat[where].view(rows, columns))

    def _factors(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(_SEED)
        start = torch.randn(matrix.shape[1], self._rank, generator=generator)
        left = torch.linalg.qr(matrix @ start).Q
        return [left, matrix.T @ left]

    def _shapes(self) -> Iterator[tuple[TensorSpec, tuple[int, int] | None]]:
        """Each tensor with its matrix shape; None where it stays whole."""
        for tensor in self._layout.tensors:
            if len(tensor.shape) < 2:
                yield tensor, None
                continue
            shape = (tensor.shape[0], math.prod(tensor.shape[1:]))
            fits = self._rank <= min(shape) and self._rank * sum(shape) < tensor.num_values
            yield tensor, shape if fits else None
