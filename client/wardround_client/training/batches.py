"""What the local loop trains on: encoded examples, or cached features of a frozen backbone.

Both give batches by example index, so the loop does not know which it has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from wardround_common.modalities.base import IGNORED, Encoded, IntArray
from wardround_common.model import FineTunedModel

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


class TrainingSet(Protocol):
    """n examples that a model can be trained and scored on."""

    def __len__(self) -> int: ...

    @property
    def subjects(self) -> torch.Tensor:
        """int64 [n]."""
        ...

    @property
    def missed(self) -> IntArray | None:
        """What encoding cut off of each example; see ``Task.cut_off``."""
        ...

    def batch(self, rows: torch.Tensor, device: torch.device) -> Batch:
        """Inputs and targets of the examples at ``rows``."""
        ...

    def logits(self, model: FineTunedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The model's logits for inputs of a batch."""
        ...

    def class_counts(self, num_outputs: int) -> torch.Tensor:
        """int64 [num_outputs], labelled positions of each class."""
        ...

    def lengths_hint(self) -> torch.Tensor | None:
        """int64 [n], what an example costs relative to others; None where all cost the same."""
        ...

    def view(self, epoch: int) -> "TrainingSet":
        """The same examples as an epoch of the run (from 0) sees them."""
        ...


class Source(Protocol):
    """Examples that features can be computed of, encoded only where they have to be."""

    def __len__(self) -> int: ...

    @property
    def targets(self) -> torch.Tensor:
        """int64 [n] or [n, T]."""
        ...

    @property
    def subjects(self) -> torch.Tensor:
        """int64 [n]."""
        ...

    @property
    def missed(self) -> IntArray | None:
        """What encoding cut off of each example."""
        ...

    def made(self) -> TrainingSet:
        """The examples as tensors: pixels are decoded and texts cut up here."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """Examples that go through the whole model. Padding is cut to each batch's longest."""

    encoded: Encoded
    missed: IntArray | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def targets(self) -> torch.Tensor:
        """int64 [n] or [n, T]."""
        return self.encoded.targets

    def made(self) -> TrainingSet:
        """Itself."""
        return self

    def view(self, epoch: int) -> TrainingSet:  # noqa: ARG002
        """The same in every epoch."""
        return self

    @property
    def subjects(self) -> torch.Tensor:
        """int64 [n]."""
        return self.encoded.subjects

    def batch(self, rows: torch.Tensor, device: torch.device) -> Batch:
        """Inputs and targets of the examples at ``rows``."""
        inputs = {name: t.index_select(0, rows) for name, t in self.encoded.tensors.items()}
        targets = self.encoded.targets.index_select(0, rows)
        if "attention_mask" in inputs:
            longest = max(int(inputs["attention_mask"].sum(dim=1).max()), 1)
            inputs = {name: tensor[:, :longest] for name, tensor in inputs.items()}
            targets = targets[:, :longest] if targets.dim() == 2 else targets
        return {name: tensor.to(device) for name, tensor in inputs.items()}, targets.to(device)

    def logits(self, model: FineTunedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits through backbone and head."""
        output: torch.Tensor = model(**inputs)
        return output

    def class_counts(self, num_outputs: int) -> torch.Tensor:
        """int64 [num_outputs]."""
        return class_counts(self.encoded.targets, num_outputs)

    def lengths_hint(self) -> torch.Tensor | None:
        """Tokens of each example."""
        mask = self.encoded.tensors.get("attention_mask")
        return None if mask is None else mask.sum(dim=1)


@dataclass(frozen=True, slots=True)
class DeferredSet:
    """Examples with one label each, which are encoded when somebody asks for their inputs.

    Attributes:
        targets: int64 [n].
        subjects: int64 [n].
        make: encodes them.
    """

    targets: torch.Tensor
    subjects: torch.Tensor
    make: Callable[[], TrainingSet]
    missed: IntArray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def made(self) -> TrainingSet:
        """The examples as tensors."""
        return self.make()


@dataclass(frozen=True, slots=True)
class ViewedSet:
    """The same examples in several views: epoch e sees view e modulo their number.

    Attributes:
        views: at least one; the first, the examples as they are, stands for all of them.
    """

    views: tuple[TrainingSet, ...]

    def __len__(self) -> int:
        return len(self.views[0])

    @property
    def subjects(self) -> torch.Tensor:
        """int64 [n]."""
        return self.views[0].subjects

    @property
    def missed(self) -> IntArray | None:
        """What encoding cut off of each example."""
        return self.views[0].missed

    def batch(self, rows: torch.Tensor, device: torch.device) -> Batch:
        """A batch of the first view."""
        return self.views[0].batch(rows, device)

    def logits(self, model: FineTunedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The model's logits for inputs of a batch."""
        return self.views[0].logits(model, inputs)

    def class_counts(self, num_outputs: int) -> torch.Tensor:
        """int64 [num_outputs]; the labels are those of every view."""
        return self.views[0].class_counts(num_outputs)

    def lengths_hint(self) -> torch.Tensor | None:
        """As the first view's."""
        return self.views[0].lengths_hint()

    def view(self, epoch: int) -> TrainingSet:
        """View ``epoch`` modulo their number."""
        return self.views[epoch % len(self.views)]


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Cached features: one vector for each labelled position.

    Attributes:
        features: float32 [m, d], example after example.
        targets: int64 [m].
        subjects: int64 [n].
        lengths: int64 [n], positions of each example; None where each example has exactly one.
    """

    features: torch.Tensor
    targets: torch.Tensor
    subjects: torch.Tensor
    lengths: torch.Tensor | None = None
    missed: IntArray | None = None

    def __len__(self) -> int:
        return len(self.subjects)

    def batch(self, rows: torch.Tensor, device: torch.device) -> Batch:
        """Features and targets of the examples at ``rows``; sequences are padded."""
        if self.lengths is None:
            features = self.features.index_select(0, rows).to(device)
            return {"features": features}, self.targets.index_select(0, rows).to(device)
        stops = self.lengths.cumsum(0)
        places = [slice(int(stops[r] - self.lengths[r]), int(stops[r])) for r in rows]
        features = pad_sequence([self.features[place] for place in places], batch_first=True)
        targets = pad_sequence(
            [self.targets[place] for place in places], batch_first=True, padding_value=IGNORED
        )
        return {"features": features.to(device)}, targets.to(device)

    def logits(self, model: FineTunedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits through the head alone."""
        output: torch.Tensor = model.head(inputs["features"])
        return output

    def class_counts(self, num_outputs: int) -> torch.Tensor:
        """int64 [num_outputs]."""
        return class_counts(self.targets, num_outputs)

    def lengths_hint(self) -> torch.Tensor | None:
        """A head costs the same on every example."""
        return None

    def view(self, epoch: int) -> TrainingSet:  # noqa: ARG002
        """The same in every epoch."""
        return self

    def examples_of_rows(self) -> torch.Tensor:
        """int64 [m], the example that each position belongs to."""
        numbers = torch.arange(len(self.subjects))
        return numbers if self.lengths is None else numbers.repeat_interleave(self.lengths)


def class_counts(targets: torch.Tensor, num_outputs: int) -> torch.Tensor:
    """int64 [num_outputs], labelled positions of each class."""
    return torch.bincount(targets[targets != IGNORED], minlength=num_outputs)


_GROUP = 16
"""Batches whose examples are sorted by length together."""


def in_order(data: TrainingSet, batch_size: int) -> tuple[torch.Tensor, ...]:
    """All examples in batches, similar lengths together."""
    lengths = data.lengths_hint()
    order = torch.arange(len(data)) if lengths is None else torch.argsort(lengths, stable=True)
    return torch.split(order, batch_size)


def shuffled(data: TrainingSet, batch_size: int, seed: int) -> list[torch.Tensor]:
    """A seeded permutation of the examples in batches.

    Sequences are sorted by length within groups of 16 batches, and the batches shuffled again, so
    that little padding is computed and long examples are not always last.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    lengths = data.lengths_hint()
    if lengths is None:
        return list(torch.split(order, batch_size))
    batches: list[torch.Tensor] = []
    for group in torch.split(order, batch_size * _GROUP):
        by_length = group[torch.argsort(lengths[group], stable=True)]
        batches.extend(torch.split(by_length, batch_size))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]
