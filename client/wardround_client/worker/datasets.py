"""The site's data in the forms that steps need, each made once."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wardround_client.data.split import SiteExamples
from wardround_client.training.batches import EncodedSet, FeatureSet, TrainingSet
from wardround_client.training.execution import Execution, execution_for
from wardround_client.training.features import cached_features, extract
from wardround_client.training.local import trial_of
from wardround_common.modalities.base import (
    IGNORED,
    Encoder,
    Examples,
    Moments,
    TableInputs,
    subjects_tensor,
)
from wardround_common.modalities.tabular import TableEncoder
from wardround_common.moments import FloatArray, moment_sums, moments_of
from wardround_common.shared_model import SharedModel
from wardround_common.spec.data import TabularData
from wardround_common.spec.lending import Lending
from wardround_common.wire.step import TableMoments

Part = Literal["train", "validation", "test"]


class SiteDatasets:
    """Encoded examples and cached features of one site.

    Args:
        shared: the federation's model.
        examples: the site's data.
        cache: folder for features.
        device: where the model is.
        lending: what the site lends to training; None for the defaults.
    """

    def __init__(
        self,
        shared: SharedModel,
        examples: SiteExamples,
        cache: Path,
        device: torch.device,
        *,
        lending: Lending | None = None,
    ) -> None:
        self._shared = shared
        self._examples = examples
        self._cache = cache
        self._device = device
        self._lending = lending or Lending()
        self._executions: dict[tuple[str, ...], Execution] = {}
        self._encoded: dict[tuple[Part, TableMoments | None], EncodedSet] = {}
        self._features: dict[tuple[Part, TableMoments | None], FeatureSet] = {}

    def part(self, part: Part) -> Examples:
        """The raw examples of a part."""
        return {
            "train": self._examples.train,
            "validation": self._examples.validation,
            "test": self._examples.test,
        }[part]

    def subjects(self, part: Part) -> torch.Tensor:
        """The subject codes of a part, int64 [n]."""
        return subjects_tensor(self.part(part))

    def training_set(
        self, part: Part, moments: TableMoments | None, *, head_only: bool
    ) -> TrainingSet:
        """What a model is trained or scored on.

        Args:
            part: which part of the split.
            moments: how numeric columns are standardised; None where they are not.
            head_only: whether only the head moves, so that features of the initial backbone do.
        """
        return self.features(part, moments) if head_only else self.encoded(part, moments)

    def encoded(self, part: Part, moments: TableMoments | None) -> EncodedSet:
        """The examples of a part as tensors."""
        key = (part, moments)
        if key not in self._encoded:
            examples = self.part(part)
            encoded = self._encoder(moments).encode(examples)
            kept = (encoded.targets.reshape(len(examples), -1) != IGNORED).sum(dim=1).numpy()
            missed = self._shared.task.cut_off(examples.targets, kept)
            self._encoded[key] = EncodedSet(encoded, missed)
        return self._encoded[key]

    def features(self, part: Part, moments: TableMoments | None) -> FeatureSet:
        """Features of the initial, frozen backbone; resets the shared model to its start."""
        key = (part, moments)
        if key not in self._features:
            encoded = self.encoded(part, moments)
            self._shared.reset()
            if self._shared.backbone_digest is None:
                targets = encoded.encoded.targets
                values = extract(self._shared, encoded, self._device)
                self._features[key] = FeatureSet(values, targets, encoded.subjects)
            else:
                self._features[key] = cached_features(
                    self._shared,
                    encoded,
                    self._device,
                    folder=self._cache,
                    data_sha256=self._examples.data_sha256,
                    part=part,
                )
        return self._features[key]

    def execution(self, data: TrainingSet, round_: int) -> Execution:
        """How a round is trained here: decided at the first one that trains the same tensors."""
        names = self._shared.names(round_)
        if names not in self._executions:
            self._executions[names] = execution_for(
                self._shared,
                data,
                self._lending,
                trial_of(self._shared, data, round_, self._device),
                device=self._device,
                folder=self._cache,
                round_=round_,
            )
        return self._executions[names]

    def own_moments(self) -> TableMoments | None:
        """The site's own mean and deviation of numeric columns; None where none are used."""
        data = self._shared.federation.data
        if not isinstance(data, TabularData) or not data.numeric or data.standardise == "none":
            return None
        return moments_of(self.moment_sums())

    def moment_sums(self) -> FloatArray:
        """Count, sum and sum of squares of each numeric training column, float64 [3, a]."""
        inputs = self.part("train").inputs
        assert isinstance(inputs, TableInputs)
        return moment_sums(inputs.numeric)

    def _encoder(self, moments: TableMoments | None) -> Encoder:
        data = self._shared.federation.data
        if not isinstance(data, TabularData):
            return self._shared.encoder
        if moments is None:
            return TableEncoder(data, None)
        return TableEncoder(data, Moments(np.array(moments.mean), np.array(moments.deviation)))
