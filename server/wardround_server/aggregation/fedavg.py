"""FedAvg: the mean of the updates, weighted by training subjects.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, algorithm 1, written on updates: ``w' = w + sum_k (n_k / n) * delta_k``.

FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, algorithm 2)
aggregates the same way; its proximal term acts in the sites' training.
"""

import threading

import numpy as np
import numpy.typing as npt

from wardround_common.wire.layout import Packed
from wardround_server.aggregation.exact_sum import ExactSum


class FedAvg:
    """Weighted mean of updates, exact and independent of arrival order; may be fed concurrently.

    Args:
        size: values in an update.
        max_sites: sites that may contribute.
        update_norm: bound on an update's L2 norm, hence on each of its values.
        max_subjects: bound on a site's weight.
    """

    def __init__(self, size: int, *, max_sites: int, update_norm: float, max_subjects: int) -> None:
        self._sum = ExactSum(size, bound=update_norm * max_subjects, terms=max_sites, folds=2)
        self._subjects = 0
        self._lock = threading.Lock()

    def fold(self, update: Packed, num_subjects: int) -> None:
        """Add ``num_subjects * update``."""
        self._sum.add(update, scale=float(num_subjects))
        with self._lock:
            self._subjects += num_subjects

    def finish(self, state: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``state + sum / subjects``, computed in float64 and rounded once."""
        if self._subjects == 0:
            raise ValueError("no update was folded")
        mean = self._sum.total() / self._subjects
        return (state.astype(np.float64) + mean).astype(np.float32)
