"""Our simulator with two worker processes: what ``--workers 2`` does."""

import numpy as np

from benchmarks.simulator import ours
from benchmarks.simulator.rounds import RoundClock
from benchmarks.simulator.workloads import Workload


def simulate(workload: Workload, clock: RoundClock) -> np.ndarray:
    """See :func:`benchmarks.simulator.ours.simulate`."""
    return ours.simulate(workload, clock, workers=2)
