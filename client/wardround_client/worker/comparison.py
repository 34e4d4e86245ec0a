"""Did it help this hospital? Local, federated and personalised models on its held-out subjects.

All models start from the same initial weights and follow the same training recipe. The local-only
model sees this site's data alone, for as many epochs as the federated run took, with the site's
own standardisation; nothing of the federation enters it but the shared backbone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from wardround_client.training.batches import FeatureSet
from wardround_client.training.local import Course, predict, train
from wardround_client.training.seeds import derive_seed
from wardround_client.worker.datasets import SiteDatasets
from wardround_common.evaluation.compare import Measure, compare_models
from wardround_common.evaluation.scores import SiteComparison
from wardround_common.exact_head import HeadSums, solve_head
from wardround_common.shared_model import SharedModel
from wardround_common.tasks.base import Predictions
from wardround_common.types import TensorSpec
from wardround_common.wire.layout import Layout
from wardround_common.wire.step import TableMoments

State = Mapping[str, torch.Tensor]
_EXACT = "exact_head."


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A linear head: float32 weight [C, d] and bias [C]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def predictions(self, shared: SharedModel, data: FeatureSet) -> Predictions:
        """Its predictions on cached features."""
        inputs, targets = data.batch(torch.arange(len(data)), torch.device("cpu"))
        logits = inputs["features"] @ self.weight.T + self.bias
        return shared.task.predictions(logits, targets, data.subjects, data.missed)


class ModelComparison:
    """Trains and scores a site's models for the report.

    Args:
        shared: the federation's model.
        datasets: the site's data.
        device: where to compute.
        seed: the run's seed.
        site: the site's name: binds the seeds.
    """

    def __init__(
        self,
        shared: SharedModel,
        datasets: SiteDatasets,
        device: torch.device,
        *,
        seed: int,
        site: str,
    ) -> None:
        self._shared = shared
        self._datasets = datasets
        self._device = device
        self._seed = seed
        self._site = site
        self._last = max(shared.federation.rounds.count, 1)

    @staticmethod
    def state_layout(shared: SharedModel) -> Layout:
        """All that any round trains, and after it the exact head if there is one."""
        layout = shared.state_layout(max(shared.federation.rounds.count, 1))
        if not shared.federation.exact_head.enabled:
            return layout
        outputs, width = shared.task.num_outputs, shared.feature_dim
        weight = TensorSpec(f"{_EXACT}weight", "float32", (outputs, width))
        bias = TensorSpec(f"{_EXACT}bias", "float32", (outputs,))
        return Layout((*layout.tensors, weight, bias))

    def run(self, state: State, moments: TableMoments | None, *, rounds: int) -> SiteComparison:
        """Score everything.

        Args:
            state: the federated trainable set and the exact head.
            moments: the federation's standardisation.
            rounds: training rounds behind the federated model; 0 for the exact head alone.
        """
        federated = {n: t for n, t in state.items() if not n.startswith(_EXACT)}
        wanted = self._shared.federation.evaluation.compare
        return compare_models(
            self.predictions(federated, moments),
            self.measure(),
            local=self._local(rounds) if wanted else None,
            personalised=self._personalised(federated, moments, rounds) if wanted else None,
            exact_head=self.exact_head(state, moments),
            notes=self._notes(),
        )

    def measure(self) -> Measure:
        """How models are scored."""
        spec = self._shared.federation
        return Measure(
            metrics=self._shared.task.metrics,
            metric=spec.metric,
            resamples=spec.evaluation.bootstrap,
            confidence=spec.evaluation.confidence,
            seed=derive_seed(self._seed, "bootstrap", self._site) % 2**32,
        )

    def predictions(self, state: State, moments: TableMoments | None) -> Predictions:
        """A model's predictions on the held-out examples."""
        data = self._datasets.training_set("test", moments, self._last)
        self._shared.reset()
        self._shared.load(state)
        return predict(self._shared, data, self._device)[0]

    def train_alone(self, moments: TableMoments | None, rounds: int) -> dict[str, torch.Tensor]:
        """Train from the initial weights on this data alone, as long as a federated run.

        Returns:
            The trained tensors, copied.
        """
        spec = self._shared.federation
        data = self._datasets.training_set("train", moments, self._last)
        warm = self._own_head(moments) if spec.head.warm_start else None
        how = self._datasets.execution(data, self._last)
        self._shared.reset()
        if warm is not None:
            self._shared.load(self._shared.head_state(warm.weight, warm.bias))
        course = Course(
            rounds=range(1, rounds + 1),
            epochs=spec.training.local_epochs,
            start=1,
            total=spec.rounds.count,
            seed=derive_seed(self._seed, "local", self._site),
            continuous=True,
        )
        train(self._shared, data, course, self._device, how=how)
        return self._trained()

    def _local(self, rounds: int) -> Predictions:
        moments = self._datasets.own_moments()
        if rounds > 0:
            return self.predictions(self.train_alone(moments, rounds), moments)
        return self._own_head(moments).predictions(
            self._shared, self._datasets.features("test", moments)
        )

    def _own_head(self, moments: TableMoments | None) -> LinearHead:
        """The exact head of this data alone."""
        spec = self._shared.federation.exact_head
        sizes = (self._shared.feature_dim, self._shared.task.num_outputs)
        folds = spec.folds if spec.ridge == "auto" else 1
        features = self._datasets.features("train", moments)
        sums = HeadSums(*sizes, folds)
        generator = np.random.Generator(
            np.random.PCG64(derive_seed(self._seed, "folds", self._site))
        )
        sums.add(
            features.features.numpy(),
            features.targets.numpy(),
            generator.permutation(len(features.targets)) % folds,
        )
        ridge = None if spec.ridge == "auto" else spec.ridge
        solved = solve_head(sums.packed(), *sizes, folds, ridge)
        return LinearHead(
            torch.from_numpy(solved.weight).float(), torch.from_numpy(solved.bias).float()
        )

    def _personalised(
        self, state: State, moments: TableMoments | None, rounds: int
    ) -> Predictions | None:
        epochs = self._shared.federation.evaluation.personalise_epochs
        if epochs == 0 or rounds == 0:
            return None
        data = self._datasets.training_set("train", moments, self._last)
        how = self._datasets.execution(data, self._last)
        self._shared.reset()
        self._shared.load(state)
        course = Course(
            rounds=range(self._last, self._last + 1),
            epochs=epochs,
            start=self._last,
            total=1,
            seed=derive_seed(self._seed, "personalise", self._site),
        )
        train(self._shared, data, course, self._device, how=how)
        return self.predictions(self._trained(), moments)

    def exact_head(self, state: State, moments: TableMoments | None) -> Predictions | None:
        """The exact head's predictions on the held-out examples; None if there is none."""
        if f"{_EXACT}weight" not in state:
            return None
        head = LinearHead(state[f"{_EXACT}weight"], state[f"{_EXACT}bias"])
        return head.predictions(self._shared, self._datasets.features("test", moments))

    def _trained(self) -> dict[str, torch.Tensor]:
        names = [spec.name for spec in self._shared.state_layout(self._last).tensors]
        return {name: tensor.clone() for name, tensor in self._shared.tensors(names).items()}

    def _notes(self) -> tuple[str, ...]:
        outputs = self._shared.task.num_outputs
        notes = []
        for part, code in (("train", "one_class_training"), ("test", "one_class_test")):
            targets = self._datasets.part("train" if part == "train" else "test").targets
            present = np.unique(np.concatenate(targets)) if targets else np.zeros(0)
            if len(present) < min(2, outputs):
                notes.append(code)
        if self._shared.federation.data.subject is None:
            notes.append("rows_as_subjects")
        return tuple(notes)
