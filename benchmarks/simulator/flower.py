"""Flower's own simulation on Ray, by the book.

The ClientApp builds the model for every message, loads the whole state_dict that came with it,
trains, and sends the whole state_dict back; the ServerApp runs ``FedAvg``. One processor for each
client, as many clients at once as the machine has cores.
"""

import os
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.simulator.rounds import RoundClock
from benchmarks.simulator.workloads import Workload, flat, train_site


@cache
def _data(workload: Workload, place: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A site's examples, kept by each of Ray's processes."""
    return workload.tensors(place)


def client_app(workload: Workload) -> ClientApp:
    """The site side."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        place = int(context.node_config["partition-id"])
        inputs, targets = _data(workload, place)
        model = workload.model()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        round_ = message.content.config_records["config"]["server-round"]
        assert isinstance(round_, int)
        started = time.process_time()
        train_site(model, inputs, targets, workload.batches(place, round_))
        train_cpu_s = time.process_time() - started
        metrics = MetricRecord({"num-examples": len(targets), "train-cpu-s": train_cpu_s})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


class StampedFedAvg(FedAvg):
    """Flower's FedAvg, with its rounds stamped."""

    def __init__(self, clock: RoundClock, num_sites: int) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=num_sites,
            min_available_nodes=num_sites,
        )
        self._clock = clock

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """A round begins."""
        self._clock.begin()
        return super().configure_train(*args, **kwargs)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's mean; the sites' training time is read from their metrics."""
        kept = list(replies)
        for message in kept:
            cpu_s = message.content.metric_records["metrics"]["train-cpu-s"]
            assert isinstance(cpu_s, float)
            self._clock.trained(cpu_s)
        return super().aggregate_train(server_round, kept)


def simulate(workload: Workload, clock: RoundClock) -> np.ndarray:
    """Run Flower's simulation.

    Returns:
        The final parameters, float32 [n].
    """
    torch.set_num_threads(1)
    final: list[ArrayRecord] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy = StampedFedAvg(clock, workload.num_sites)
        initial = ArrayRecord(workload.model().state_dict())
        result = strategy.start(grid, initial, num_rounds=workload.num_rounds)
        clock.end()
        final.append(result.arrays)

    run_simulation(
        server_app=server,
        client_app=client_app(workload),
        num_supernodes=workload.num_sites,
        backend_config={
            "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1, "log_to_driver": False},
        },
    )
    return flat(final[0].to_torch_state_dict())
