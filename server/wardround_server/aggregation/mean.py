"""The weighted mean of updates, streamed: one accumulator however many sites there are.

Float32 throughout: three streams through memory for each update, which is what the addition itself
costs, and two for the first. The rounding error of a mean of N updates is at most about N * 2^-24
of the mean of their magnitudes, below the last bit of the parameters that it moves.
"""

import torch

from wardround_common.memory import recycled
from wardround_common.wire.layout import flat_tensor
from wardround_server.aggregation.base import Values
from wardround_server.mapped import windows

_BLOCK = 1 << 16
"""Values handled at a time where two operations follow one another, to stay in the cache."""


class WeightedMean:
    """``sum_k n_k * x_k / sum_k n_k``; the result depends on the order of the calls.

    Args:
        size: number of values n of each array.
    """

    def __init__(self, size: int) -> None:
        self._sum = torch.from_numpy(recycled(size))
        self._weight = 0

    def add(self, values: Values, weight: int) -> None:
        """Add one array.

        Args:
            values: float32 [n], finite.
            weight: at least 1.
        """
        flat = flat_tensor(values)
        for where in windows(values):
            if self._weight == 0:
                torch.mul(flat[where], weight, out=self._sum[where])
            else:
                self._sum[where].add_(flat[where], alpha=weight)
        self._weight += weight

    def take(self) -> torch.Tensor:
        """The mean, float32 [n], in the accumulator's own memory; may be called once.

        Raises:
            ValueError: nothing was added.
        """
        weight = self._taken()
        return self._sum.div_(weight)

    def take_onto(self, state: Values) -> torch.Tensor:
        """``state + mean``, the same bits as in two steps and one pass; may be called once.

        Args:
            state: float32 [n].

        Raises:
            ValueError: nothing was added.
        """
        weight = self._taken()
        start = flat_tensor(state)
        for at in range(0, start.numel(), _BLOCK):
            block = slice(at, at + _BLOCK)
            self._sum[block].div_(weight).add_(start[block])
        return self._sum

    def _taken(self) -> int:
        if self._weight == 0:
            raise ValueError("no update was folded")
        weight, self._weight = self._weight, 0
        return weight
