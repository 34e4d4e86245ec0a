"""FedAvg over all nodes; writes when each round began."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Stamped(FedAvg):
    """Flower's FedAvg that notes when it starts a round."""

    def __init__(self, clock: Path) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0)
        self._clock = clock

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """A round begins."""
        with self._clock.open("a") as file:
            file.write(f"{time.time()}\n")
        return super().configure_train(*args, **kwargs)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    config = context.run_config
    clock = Path(str(config["clock"]))
    count, values = int(config["tensors"]), int(config["values"])
    rng = np.random.Generator(np.random.PCG64(0))  # no two alike, or Flower would send one
    arrays = [rng.random(values // count, dtype=np.float32) for _ in range(count)]
    strategy = Stamped(clock)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(numpy_ndarrays=arrays),
        num_rounds=int(config["rounds"]),
    )
    with clock.open("a") as file:
        file.write(f"{time.time()}\n")
