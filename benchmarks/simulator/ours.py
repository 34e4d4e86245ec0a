"""Our simulator through the product's own path: federation file, engine, journal, workers.

Two seams are opened for the measurement, nothing else is changed: the backbone is handed over
instead of being read from a file (a small network is no pretrained one), and the training loop is
timed.
"""

import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from safetensors.numpy import load_file

from benchmarks.simulator.rounds import RoundClock
from benchmarks.simulator.workloads import Workload
from wardround_client.training.local import train
from wardround_common.backbones.base import LoadedBackbone
from wardround_common.modalities.image import ImageEncoder, PixelScale
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import Digest
from wardround_common.wire.step import StepManifest
from wardround_server.folder import MODEL
from wardround_server.rounds.results import StepResult
from wardround_server.simulation.simulate import SimulationPlan, simulate_federation


class StampingObserver:
    """Stamps a round when its training step goes out, the last one when the next step does."""

    def __init__(self, clock: RoundClock) -> None:
        self._clock = clock

    def step_started(self, manifest: StepManifest) -> None:
        """A round begins or the last one has ended."""
        if manifest.kind == "train":
            self._clock.begin()
        else:
            self._clock.end()

    def answer_arrived(self, kind: str, site: str, refusal: str | None) -> None:
        """A refusal would make the comparison worthless."""
        if refusal is not None:
            raise RuntimeError(f"{kind}: {site} was refused with {refusal}")

    def step_ended(self, result: StepResult) -> None:
        """Folding, journal and the next manifest still belong to the round."""


def simulate(workload: Workload, clock: RoundClock, workers: int = 1) -> np.ndarray:
    """Run the product's simulation.

    Args:
        workload: what to simulate.
        clock: stamps its rounds.
        workers: processes that sites compute in.

    Returns:
        The final parameters, float32 [n].
    """

    def load(federation: FederationSpec) -> LoadedBackbone:
        encoder = ImageEncoder(32, PixelScale((0.5, 0.5, 0.5), (0.29, 0.29, 0.29)))
        digest = Digest(str(federation.backbone.sha256))
        module = workload.backbone().eval().requires_grad_(False)
        blocks = getattr(module, "blocks", ("conv1", "conv2", "linear1", "linear2"))
        return LoadedBackbone(module, workload.feature_dim, blocks, digest, encoder)

    def timed(*args: object, **named: object) -> object:
        started = time.process_time()
        trained = train(*args, **named)  # type: ignore[arg-type]
        clock.trained(time.process_time() - started)
        return trained

    spec = workload.federation()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload.write(folder)
        plan = SimulationPlan(
            spec=spec,
            base=folder,
            raw=None,
            out=folder / "run",
            cache=folder / "cache",
            resume=False,
            on_failure=_stop,
            workers=workers,
        )
        with patch("wardround_client.worker.worker.train", timed):
            if workload.has_images:
                with patch("wardround_common.shared_model.load_backbone", load):
                    simulate_federation(plan, StampingObserver(clock))
            else:
                simulate_federation(plan, StampingObserver(clock))
        return _in_model_order(load_file(folder / "run" / MODEL), workload)


def _stop(site: str, error: Exception) -> None:
    """A site that fails ends the measurement."""
    raise RuntimeError(site) from error


def _in_model_order(tensors: dict[str, np.ndarray], workload: Workload) -> np.ndarray:
    """The trained tensors in the order of the model's own state: safetensors sorts them."""
    names = workload.model().state_dict()
    return np.concatenate([tensors[name].ravel() for name in names if name in tensors])
