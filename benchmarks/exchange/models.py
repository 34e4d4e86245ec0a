"""BERT-base's state, and an update that was really trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch

from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.load import load_federation
from wardround_common.wire.layout import Layout
from wardround_server.progress import QuietObserver
from wardround_server.rounds.results import StepResult
from wardround_server.simulation.simulate import SimulationPlan, simulate_federation

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "examples" / "reports.toml"


def bert_state() -> dict[str, torch.Tensor]:
    """Random float32 values in the shapes of BERT-base, 438 MB."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        shapes = {name: t.shape for name, t in BertModel(BertConfig()).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def trained_update(num_examples: int) -> tuple[Layout, np.ndarray]:
    """The update of one site after an epoch of tuning every parameter of MiniLM on reports."""
    raw = load_federation(REPORTS).model_dump(mode="json")
    raw["federation"]["sites"] = ["north"]
    raw["tuning"] = {"method": "full"}
    raw["rounds"]["count"] = 1
    raw["head"]["warm_start"] = False
    raw["exact_head"]["enabled"] = False
    raw["evaluation"]["compare"] = False
    raw["training"]["optimizer"] |= {"learning_rate": 5e-5, "head_learning_rate": 1e-3}
    raw["simulation"] |= {"subset": num_examples, "pooled": False, "threads": 1}
    spec = FederationSpec.model_validate(raw, strict=False)
    found: list[tuple[Layout, np.ndarray]] = []
    with TemporaryDirectory() as name, _watched(found):
        simulate(spec, Path(name), REPORTS.parent)
    return found[0]


def simulate(spec: FederationSpec, folder: Path, base: Path) -> list[StepResult]:
    """Run a federation to its end; the results of its training steps."""
    kept: list[StepResult] = []

    class Keeping(QuietObserver):
        def step_ended(self, result: StepResult) -> None:
            if result.refused or result.missing:
                raise RuntimeError(f"{result.manifest.kind}: {result.refused} {result.missing}")
            if result.manifest.kind == "train":
                kept.append(result)

    plan = SimulationPlan(
        spec,
        base=base,
        raw=None,
        out=folder / "run",
        cache=folder / "cache",
        resume=False,
        on_failure=_stop,
    )
    simulate_federation(plan, Keeping())
    return kept


@contextmanager
def _watched(found: list[tuple[Layout, np.ndarray]]) -> Iterator[None]:
    """Keep every update that a worker is about to code."""
    from wardround_client.worker.worker import SiteWorker

    coded = SiteWorker._coded

    def keep(self: SiteWorker, round_: int, layout: Layout, update: np.ndarray) -> object:
        found.append((layout, update.copy()))
        return coded(self, round_, layout, update)

    with patch.object(SiteWorker, "_coded", keep):
        yield


def _stop(site: str, error: Exception) -> None:
    raise RuntimeError(site) from error
