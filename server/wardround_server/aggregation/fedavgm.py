"""FedAvgM: server momentum on the mean of the updates.

Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv:1909.06335, section 4.3: ``v = momentum * v + mean; w' = w + rate * v``.
"""

import numpy as np
import torch

from wardround_common.spec.federation import FedAvgM as Settings
from wardround_common.types import SiteId
from wardround_common.wire.layout import flat_tensor
from wardround_server.aggregation.base import Values
from wardround_server.aggregation.mean import WeightedMean


class FedAvgM:
    """See :class:`~wardround_server.aggregation.base.Aggregation`; remembers the momentum [n].

    Args:
        size: values in an update.
        settings: server learning rate and momentum.
    """

    def __init__(self, size: int, settings: Settings) -> None:
        self._mean = WeightedMean(size)
        self._settings = settings

    def fold(self, site: SiteId, update: Values, num_subjects: int) -> None:
        """Add ``num_subjects * update``."""
        del site
        self._mean.add(update, num_subjects)

    def finish(self, state: Values, memory: Values) -> tuple[Values, Values]:
        """One step of SGD with momentum along the mean."""
        momentum = self._mean.take()
        if memory.size:
            momentum.add_(flat_tensor(memory), alpha=self._settings.momentum)
        moved = torch.add(flat_tensor(state), momentum, alpha=self._settings.learning_rate)
        return np.asarray(moved.numpy()), np.asarray(momentum.numpy())
