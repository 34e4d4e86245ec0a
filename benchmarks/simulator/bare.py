"""The floor: one process, one model, a loop over the sites, a running weighted sum."""

import time

import numpy as np
import torch

from benchmarks.simulator.rounds import RoundClock
from benchmarks.simulator.workloads import Workload, flat, train_site


def simulate(workload: Workload, clock: RoundClock) -> np.ndarray:
    """Federated averaging as one would write it in an afternoon.

    Returns:
        The final parameters, float32 [n].
    """
    torch.set_num_threads(1)
    model = workload.model()
    shared = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = [workload.tensors(place) for place in range(workload.num_sites)]
    for round_ in range(1, workload.num_rounds + 1):
        clock.begin()
        total = {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
        num_examples = 0
        for place, (inputs, targets) in enumerate(data):
            model.load_state_dict(shared)
            started = time.process_time()
            train_site(model, inputs, targets, workload.batches(place, round_))
            clock.trained(time.process_time() - started)
            for name, tensor in model.state_dict().items():
                total[name].add_(tensor, alpha=len(targets))
            num_examples += len(targets)
        shared = {name: tensor / num_examples for name, tensor in total.items()}
    clock.end()
    return flat(shared)
