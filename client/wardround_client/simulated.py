"""The sites of a simulation: a worker for each, one model for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from wardround_client.data import catalogue
from wardround_client.data.load import load_pooled, load_site
from wardround_client.data.split import SiteExamples
from wardround_client.training.batches import EncodedSet
from wardround_client.training.execution import usable_device
from wardround_client.worker.comparison import ModelComparison
from wardround_client.worker.datasets import Part, SiteDatasets
from wardround_client.worker.error_feedback import ErrorFeedback, Remainders
from wardround_client.worker.worker import SiteWorker
from wardround_common.errors import ConfigError
from wardround_common.evaluation.compare import difference_of, evaluate_model
from wardround_common.evaluation.scores import ModelScore
from wardround_common.modalities.base import Encoded
from wardround_common.shared_model import SharedModel, shared_model
from wardround_common.sites import PooledScores
from wardround_common.spec.data import TabularData
from wardround_common.spec.federation import FederationSpec, Simulation
from wardround_common.spec.lending import Lending
from wardround_common.spec.site import Compute, SharedPart, SiteData, SiteSpec
from wardround_common.types import SiteId
from wardround_common.wire.layout import unpack
from wardround_common.wire.step import TableMoments

POOLED = "pooled"


@dataclass
class InProcessSites:
    """Workers over parts of one public set.

    Attributes:
        workers: one a site of the roster, sharing one model.
        device: where they compute.
    """

    federation: FederationSpec
    base: Path
    raw: Path | None
    cache: Path
    memory: Path

    def __post_init__(self) -> None:
        self.lending = _simulation(self.federation).compute
        self.device = usable_device(self.lending)
        self.shared: SharedModel = shared_model(self.federation)
        self.shared.move_to(self.device)
        self.data = self._shared_data(_simulation(self.federation))
        self.remainders = Remainders(self.memory)
        remembers = self.federation.exchange.error_feedback
        self.workers = {
            SiteId(site): SiteWorker(
                SiteId(site),
                self.shared,
                partial(load_site, self.federation, self._spec(site), self.base),
                self.cache,
                self.device,
                feedback=partial(self._remainder, site) if remembers else None,
                lora_rank=self._compute(site).lora_rank,
                lending=self.lending,
            )
            for site in self.federation.federation.sites
        }

    def pooled(
        self,
        state: npt.NDArray[np.float32],
        moments: TableMoments | None,
        *,
        rounds: int,
        train: bool,
    ) -> PooledScores:
        """See ``wardround_common.sites.SimulatedSites``."""
        first = self.federation.federation.sites[0]
        together = load_pooled(self.federation, self._spec(first), self.base)
        datasets = PooledDatasets(
            self.shared,
            together,
            self.cache,
            self.device,
            lending=self.lending,
            sites=self._datasets(),
        )
        seed = self.federation.federation.seed
        pooled = ModelComparison(self.shared, datasets, self.device, seed=seed, site=POOLED)
        measure = pooled.measure()
        arrays = unpack(ModelComparison.state_layout(self.shared), state)
        federated_state = {n: t for n, t in arrays.items() if not n.startswith("exact_head.")}
        federated = pooled.predictions(federated_state, moments)
        exact = pooled.exact_head(arrays, moments)
        scores = PooledScores(
            sites={},
            pooled=None,
            federated=evaluate_model(federated, measure),
            exact_head=None if exact is None else evaluate_model(exact, measure),
            difference=None,
        )
        if not train or rounds == 0:
            return scores
        own = datasets.own_moments()
        trained = pooled.train_alone(own, rounds)
        predictions = pooled.predictions(trained, own)
        return PooledScores(
            sites=self._on_each_site(trained, own),
            pooled=evaluate_model(predictions, measure),
            federated=scores.federated,
            exact_head=scores.exact_head,
            difference=difference_of(federated, predictions, measure),
        )

    def _remainder(self, site: str, run: str) -> ErrorFeedback:
        """A simulation's folder holds one run."""
        del run
        return self.remainders.of(site)

    def _datasets(self) -> list[SiteDatasets]:
        return [worker.datasets for worker in self.workers.values()]

    def _on_each_site(
        self, trained: dict[str, torch.Tensor], moments: TableMoments | None
    ) -> dict[str, ModelScore]:
        scores: dict[str, ModelScore] = {}
        for name, worker in self.workers.items():
            if not len(worker.datasets.part("test")):
                continue
            at_site = ModelComparison(
                self.shared,
                worker.datasets,
                self.device,
                seed=self.federation.federation.seed,
                site=name,
            )
            scores[name] = evaluate_model(at_site.predictions(trained, moments), at_site.measure())
        return scores

    def _shared_data(self, simulation: Simulation) -> SiteData:
        found = catalogue.locate(simulation.dataset, self.base, self.raw)
        return SiteData(
            format=found.format,
            path=str(found.path),
            shared_part=SharedPart(
                partition=simulation.partition,
                sites=self.federation.federation.sites,
                subset=simulation.subset,
            ),
        )

    def _spec(self, site: str) -> SiteSpec:
        return SiteSpec(name=site, data=self.data, compute=self._compute(site))

    def _compute(self, site: str) -> Compute:
        ranks = _simulation(self.federation).lora_ranks
        return Compute(cache=str(self.cache), lora_rank=ranks.get(site))


class PooledDatasets(SiteDatasets):
    """All sites' data together, each site's rows standardised as that site does it."""

    def __init__(
        self,
        shared: SharedModel,
        examples: SiteExamples,
        cache: Path,
        device: torch.device,
        *,
        lending: Lending,
        sites: Sequence[SiteDatasets],
    ) -> None:
        super().__init__(shared, examples, cache, device, lending=lending)
        self._sites = sites

    def encoded(self, part: Part, moments: TableMoments | None) -> EncodedSet:
        """The examples of a part as tensors; see the class."""
        data = self._shared.federation.data
        if not isinstance(data, TabularData) or data.standardise != "site":
            return super().encoded(part, moments)
        sets = [site.encoded(part, site.own_moments()).encoded for site in self._sites]
        values = torch.cat([encoded.tensors["values"] for encoded in sets])
        targets = torch.cat([encoded.targets for encoded in sets])
        return EncodedSet(Encoded({"values": values}, targets, self.subjects(part)))


def _simulation(federation: FederationSpec) -> Simulation:
    if federation.simulation is None:
        raise ConfigError(
            "the federation file has no [simulation] table; add one that names a dataset and a "
            "partition (`wardround explain simulation`)",
            code="no_simulation",
        )
    return federation.simulation
