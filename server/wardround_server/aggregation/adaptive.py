"""What the adaptive server optimizers share.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2: the mean of the updates is
a pseudo-gradient D; ``m = beta1 * m + (1 - beta1) * D``, a rule of its own for the second moment v,
and ``w' = w + rate * m / (sqrt(v) + tau)``. Both moments start at zero, as in Flower.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch

from wardround_common.types import SiteId
from wardround_common.wire.layout import flat_tensor
from wardround_server.aggregation.base import Values
from wardround_server.aggregation.mean import WeightedMean


class Adaptive(ABC):
    """See :class:`~wardround_server.aggregation.base.Aggregation`.

    Remembers ``[rounds, m, v]``: the number of rounds that counted, and both moments, 1 + 2n values.

    Args:
        size: values in an update.
        learning_rate: server learning rate.
        beta1: decay of the first moment.
        tau: added to the root of the second moment.
    """

    def __init__(self, size: int, *, learning_rate: float, beta1: float, tau: float) -> None:
        self._mean = WeightedMean(size)
        self._size = size
        self._learning_rate = learning_rate
        self._beta1 = beta1
        self._tau = tau

    def fold(self, site: SiteId, update: Values, num_subjects: int) -> None:
        """Add ``num_subjects * update``."""
        del site
        self._mean.add(update, num_subjects)

    def finish(self, state: Values, memory: Values) -> tuple[Values, Values]:
        """One step of the server optimizer along the mean."""
        mean = self._mean.take()
        kept = memory.copy() if memory.size else np.zeros(1 + 2 * self._size, dtype=np.float32)
        kept[0] += 1
        rounds = int(kept[0])
        first, second = torch.from_numpy(kept[1:]).split(self._size)  # type: ignore[no-untyped-call]
        first.mul_(self._beta1).add_(mean, alpha=1 - self._beta1)
        self._second_moment(second, mean.square_())
        step = torch.sqrt(second).add_(self._tau).reciprocal_().mul_(first)
        moved = step.mul_(self._rate(rounds)).add_(flat_tensor(state))
        return np.asarray(moved.numpy()), kept

    @abstractmethod
    def _second_moment(self, moment: torch.Tensor, square: torch.Tensor) -> None:
        """Move the second moment, in place.

        Args:
            moment: float32 [n].
            square: float32 [n], the squared pseudo-gradient; may be overwritten.
        """

    def _rate(self, rounds: int) -> float:
        """The learning rate of a round, from 1."""
        del rounds
        return self._learning_rate
