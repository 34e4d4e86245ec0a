"""FedAvg: the mean of the updates, weighted by training subjects.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, algorithm 1, written on updates: ``w' = w + sum_k (n_k / n) * delta_k``.

FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, algorithm 2)
aggregates the same way; its proximal term acts in the sites' training.
"""

from wardround_common.types import SiteId
from wardround_server.aggregation.base import Values
from wardround_server.aggregation.mean import WeightedMean


class FedAvg:
    """Weighted mean of updates; see :class:`~wardround_server.aggregation.base.Aggregation`.

    Args:
        size: values in an update.
    """

    def __init__(self, size: int) -> None:
        self._mean = WeightedMean(size)

    def fold(self, site: SiteId, update: Values, num_subjects: int) -> None:
        """Add ``num_subjects * update``."""
        del site
        self._mean.add(update, num_subjects)

    def finish(self, state: Values, memory: Values) -> tuple[Values, Values]:
        """``state + mean``; nothing is remembered."""
        values: Values = self._mean.take_onto(state).numpy()
        return values, memory
