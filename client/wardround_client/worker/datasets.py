"""The site's data in the forms that steps need, each made once."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wardround_client.data.split import SiteExamples
from wardround_client.training.augmentation import AugmentedSet, Views
from wardround_client.training.batches import (
    DeferredSet,
    EncodedSet,
    FeatureSet,
    Source,
    TrainingSet,
    ViewedSet,
)
from wardround_client.training.block_inputs import block_inputs, num_bytes
from wardround_client.training.execution import Execution, execution_for
from wardround_client.training.features import cache_file, cached_features, extract
from wardround_client.training.local import trial_of
from wardround_common.modalities.base import (
    IGNORED,
    Encoder,
    Examples,
    Moments,
    TableInputs,
    subjects_tensor,
    targets_1d,
)
from wardround_common.modalities.tabular import TableEncoder
from wardround_common.moments import FloatArray, moment_sums, moments_of
from wardround_common.shared_model import SharedModel
from wardround_common.spec.data import ImageData, TabularData, TextData
from wardround_common.spec.lending import Lending
from wardround_common.spec.site import Compute
from wardround_common.wire.step import TableMoments

Part = Literal["train", "validation", "test"]


_GIB = 2**30
_Key = tuple[Part, TableMoments | None]


class SiteDatasets:
    """Encoded examples, and what the frozen part of the backbone gives for them, of one site.

    Args:
        shared: the federation's model.
        examples: the site's data.
        cache: folder for features and block inputs.
        device: where the model is.
        lending: what the site lends to training; None for the defaults.
        cache_gib: largest file of block inputs; see the site's ``[compute]`` table.
    """

    def __init__(
        self,
        shared: SharedModel,
        examples: SiteExamples,
        cache: Path,
        device: torch.device,
        *,
        lending: Lending | None = None,
        cache_gib: float | None = None,
    ) -> None:
        self._shared = shared
        self._examples = examples
        self._cache = cache
        self._device = device
        self._lending = lending or Lending()
        self._executions: dict[tuple[str, ...], Execution] = {}
        self._cache_gib = Compute().cache_gib if cache_gib is None else cache_gib
        self._encoded: dict[_Key, EncodedSet] = {}
        self._features: dict[tuple[_Key, int], FeatureSet] = {}
        self._sets: dict[tuple[_Key, str], TrainingSet] = {}
        spec = shared.federation
        augmentation = spec.training.augmentation
        self._views = None if augmentation is None else Views(augmentation, spec.federation.seed)

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

    def training_set(self, part: Part, moments: TableMoments | None, round_: int) -> TrainingSet:
        """What a model is trained or scored on; may reset the shared model to its start.

        Features where a round moves only the head, inputs of the first trained block where it
        moves the last blocks, all of the example else. The training part comes in its views.

        Args:
            part: which part of the split.
            moments: how numeric columns are standardised; None where they are not.
            round_: the round that trains or is scored.
        """
        head_only = self._shared.head_only(round_)
        block = "" if head_only else (self._shared.first_trained(round_) or "")
        form = "features" if head_only else block
        key: tuple[_Key, str] = ((part, moments), form)
        if key not in self._sets:
            views = [
                self.features(part, moments, view)
                if head_only
                else self._from_block(part, moments, view, block)
                for view in self._view_numbers(part)
            ]
            self._sets[key] = views[0] if len(views) == 1 else ViewedSet(tuple(views))
        return self._sets[key]

    def _view_numbers(self, part: Part) -> range:
        seen = part == "train" and self._views is not None
        return range(self._views.spec.views if self._views is not None and seen else 1)

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

    def features(self, part: Part, moments: TableMoments | None, view: int = 0) -> FeatureSet:
        """Features of the initial, frozen backbone; resets the shared model to its start.

        Args:
            part: which part of the split.
            moments: how numeric columns are standardised; None where they are not.
            view: which view of the images; 0 is the plain one.
        """
        key: tuple[_Key, int] = ((part, moments), view)
        if key not in self._features:
            self._shared.reset()
            if self._shared.backbone_digest is None:
                encoded = self.encoded(part, moments)
                values = extract(self._shared, encoded, self._device)
                self._features[key] = FeatureSet(values, encoded.targets, encoded.subjects)
            else:
                self._features[key] = cached_features(
                    self._shared,
                    self._source(part, moments, view),
                    self._device,
                    folder=self._cache,
                    data_sha256=self._examples.data_sha256,
                    part=part,
                    view=self._described(view),
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

    def _from_block(
        self, part: Part, moments: TableMoments | None, view: int, block: str
    ) -> TrainingSet:
        """The kept inputs of a block, or the whole examples where none are to be kept."""
        source = self._source(part, moments, view)
        if not block or self._cache_gib == 0.0 or not len(source):
            return source.made()
        self._shared.reset()
        self._shared.eval_mode()
        split = self._shared.split(block)
        if split is None or num_bytes(split, source) > self._cache_gib * _GIB:
            return source.made()
        path = cache_file(
            self._shared,
            self._cache,
            data_sha256=self._examples.data_sha256,
            part=part,
            rows=len(source),
            view=self._described(view),
            block=block,
        )
        return block_inputs(self._shared, split, source, self._device, path)

    def _described(self, view: int) -> str:
        return "" if view == 0 or self._views is None else self._views.describe(view)

    def _source(self, part: Part, moments: TableMoments | None, view: int) -> Source:
        """The examples of a part, encoded late where their labels do not depend on it."""
        data, examples = self._shared.federation.data, self.part(part)

        def make() -> TrainingSet:
            encoded = self.encoded(part, moments)
            if view == 0 or self._views is None:
                return encoded
            return AugmentedSet(encoded, self._views, view)

        if isinstance(data, ImageData | TextData):
            return DeferredSet(targets_1d(examples), self.subjects(part), make)
        return self.encoded(part, moments)

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
