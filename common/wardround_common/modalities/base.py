"""The examples of a site, before and after encoding.

``Examples`` are what the reader of a file produces: raw values in file order. ``Encoded`` are the
tensors that a model eats. Both are plain values; neither ever leaves the site.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
IGNORED = -100
"""Target of a position that has no label (padding, later word pieces)."""


class Inputs(Protocol):
    """The raw inputs of n examples of one modality."""

    def __len__(self) -> int: ...

    def select(self, rows: IntArray) -> "Inputs":
        """The examples at ``rows``, in that order."""
        ...


@dataclass(frozen=True, slots=True)
class TableInputs:
    """Rows of a table.

    Attributes:
        numeric: float64 [n, a]; NaN where the cell is empty.
        categorical: int64 [n, b], index into the column's allowed values; -1 where empty.
    """

    numeric: FloatArray
    categorical: IntArray

    def __len__(self) -> int:
        return len(self.numeric)

    def select(self, rows: IntArray) -> "TableInputs":
        """The rows at ``rows``."""
        return TableInputs(self.numeric[rows], self.categorical[rows])


@dataclass(frozen=True, slots=True)
class TextInputs:
    """Documents."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: IntArray) -> "TextInputs":
        """The documents at ``rows``."""
        return TextInputs(tuple(self.texts[row] for row in rows))


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """Images, already resized: uint8 [n, size, size, channels], channels 1 (grey) or 3 (RGB)."""

    pixels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, rows: IntArray) -> "ImageInputs":
        """The images at ``rows``."""
        return ImageInputs(self.pixels[rows])


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """Sentences as words."""

    words: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.words)

    def select(self, rows: IntArray) -> "TokenInputs":
        """The sentences at ``rows``."""
        return TokenInputs(tuple(self.words[row] for row in rows))


@dataclass(frozen=True)
class Examples:
    """n labelled examples in file order.

    Attributes:
        inputs: the raw inputs.
        targets: n arrays of int64 class indices: shape [1] for one label an example, [num_words]
            for tagged words.
        subjects: int64 [n], a code for each example's patient; equal code, same patient. The
            codes are local to this value and carry no identifier.
        identities: uint64 [n], a digest of each example's patient, the same whenever the data is read;
            of the example where patients have no identifier. None where nobody asks who they are.
    """

    inputs: Inputs
    targets: tuple[IntArray, ...]
    subjects: IntArray
    identities: npt.NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        assert len(self.inputs) == len(self.targets) == len(self.subjects)

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, rows: IntArray) -> "Examples":
        """The examples at ``rows``, in that order."""
        return Examples(
            self.inputs.select(rows),
            tuple(self.targets[row] for row in rows),
            self.subjects[rows],
            None if self.identities is None else self.identities[rows],
        )

    @cached_property
    def num_subjects(self) -> int:
        """The number of different patients."""
        return len(np.unique(self.subjects))


@dataclass(frozen=True, slots=True)
class Encoded:
    """n examples as tensors.

    Attributes:
        tensors: name -> tensor whose first dimension is n; what ``model(**batch)`` receives.
        targets: int64 [n] or [n, T]; ``IGNORED`` where there is no label.
        subjects: int64 [n].
    """

    tensors: dict[str, torch.Tensor]
    targets: torch.Tensor
    subjects: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, rows: torch.Tensor) -> "Encoded":
        """The examples at ``rows``, in that order."""
        return Encoded(
            {name: tensor[rows] for name, tensor in self.tensors.items()},
            self.targets[rows],
            self.subjects[rows],
        )


class Encoder(Protocol):
    """Turns raw examples into tensors; deterministic, without state that training changes."""

    @property
    def transform(self) -> str:
        """Canonical description of the encoding: part of the feature cache's key."""
        ...

    def encode(self, examples: Examples) -> Encoded:
        """Encode all examples.

        Raises:
            DataError: the inputs are of another modality than this encoder reads.
        """
        ...


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and deviation of numeric columns, float64 [a] each; deviation is never 0."""

    mean: FloatArray
    deviation: FloatArray


def targets_1d(examples: Examples) -> torch.Tensor:
    """The single label of each example as int64 [n]."""
    return torch.from_numpy(np.array([target[0] for target in examples.targets], dtype=np.int64))


def subjects_tensor(examples: Examples) -> torch.Tensor:
    """The subject codes as int64 [n]."""
    return torch.from_numpy(np.ascontiguousarray(examples.subjects))
