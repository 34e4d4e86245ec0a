"""pfl-research, as its tutorials write it: ``SimulatedBackend`` and federated averaging.

The package is installed apart (``pip install --no-deps pfl==0.6.0``); it averages gradients of
examples, which with sites of one size is the same mean.
"""

import time
import types
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.simulator.rounds import RoundClock
from benchmarks.simulator.workloads import BATCH_SIZE, RATE, Workload, flat


def _loss(name: str, net: Any, inputs: Any, targets: Any, **_: Any) -> torch.Tensor:
    return functional.cross_entropy(net(**{name: inputs}), targets)


def _metrics(weighted: Any, net: Any, inputs: Any, targets: Any, **_: Any) -> dict[str, Any]:
    del net, targets
    return {"loss": weighted(0.0, len(inputs))}


def simulate(workload: Workload, clock: RoundClock) -> np.ndarray:
    """Run pfl's simulation; it deals batches in an order of its own.

    Returns:
        The final parameters, float32 [n]; not those of the others.
    """
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    net: Any = workload.model()
    name = "pixels" if workload.has_images else "values"
    net.loss = partial(_loss, name, net)
    net.metrics = partial(_metrics, Weighted, net)
    data = {}
    for place in range(workload.num_sites):
        inputs, targets = workload.tensors(place)
        data[place] = (inputs[name], targets)
    sampler = get_user_sampler("minimize_reuse", list(data))
    dataset = FederatedDataset(lambda user: Dataset(data[user], user_id=str(user)), sampler)
    model = PyTorchModel(
        model=net,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), 1.0),
    )

    class Stamping(TrainingProcessCallback):  # type: ignore[misc]
        """Stamps a round when the one before it has ended."""

        def after_central_iteration(self, *args: Any, **kwargs: Any) -> tuple[bool, Metrics]:
            """A round has ended."""
            del args, kwargs
            clock.begin()
            return False, Metrics()

    backend = SimulatedBackend(
        training_data=dataset, val_data=None, postprocessors=[WeightByDatapoints()]
    )
    train = PyTorchModel.do_multiple_epochs_of

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        trained = train(*args, **kwargs)
        clock.trained(time.process_time() - started)
        return trained

    model.do_multiple_epochs_of = types.MethodType(timed, model)
    clock.begin()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=workload.num_rounds,
            evaluation_frequency=10**9,
            train_cohort_size=workload.num_sites,
            val_cohort_size=0,
        ),
        backend,
        model,
        model_train_params=NNTrainHyperParams(
            local_learning_rate=RATE, local_num_epochs=1, local_batch_size=BATCH_SIZE
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=BATCH_SIZE),
        callbacks=[Stamping()],
    )
    return flat(net.state_dict())
