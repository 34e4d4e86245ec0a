"""What every task provides.

A task turns logits into a loss and, for evaluation, into *per-subject scores* from which a metric
and its bootstrap interval can be computed without ever joining two sites' rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far probabilities can be taken at their word; smaller is better.

    Attributes:
        brier: mean squared error of the probabilities (Brier 1950): in [0, 1] with two classes,
            in [0, 2] with more.
        expected_error: expected calibration error over ten bins of equal width, in [0, 1].
    """

    brier: float
    expected_error: float


class Predictions(Protocol):
    """The scored predictions of one model on n examples."""

    def __len__(self) -> int: ...

    @property
    def subjects(self) -> IntArray:
        """int64 [n], the patient of each example."""
        ...

    def metric(self, name: str, rows: IntArray | None = None) -> float | None:
        """A metric in [0, 1] on ``rows`` (int64 indices with repetition allowed; all if absent).

        Returns None where the metric is undefined there (AUC with one class).
        """
        ...

    def reliability(self, bins: int = 10) -> list[tuple[float, float, int]] | None:
        """Mean confidence, accuracy and count of each non-empty confidence bin; None if n/a."""
        ...

    def calibration(self) -> Calibration | None:
        """Brier score and calibration error of the probabilities; None if n/a."""
        ...


class Task(Protocol):
    """Loss and metrics of one kind of task."""

    @property
    def num_outputs(self) -> int:
        """Width of the logits."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the default first."""
        ...

    def loss(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Mean loss over labelled positions: a float32 scalar.

        Args:
            logits: float32 [B, C] or [B, T, C].
            targets: int64 [B] or [B, T]; -100 is ignored.
            class_weights: float32 [C] or None.
            label_smoothing: in [0, 1].
        """
        ...

    def predictions(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        subjects: torch.Tensor,
        missed: IntArray | None = None,
    ) -> Predictions:
        """Score a model's logits on all n examples (shapes as in :meth:`loss`, B = n).

        Args:
            logits: as in :meth:`loss`.
            targets: as in :meth:`loss`.
            subjects: int64 [n].
            missed: int64 [n], what :meth:`cut_off` gave; None where nothing was cut.
        """
        ...

    def cut_off(self, full: Sequence[IntArray], kept: IntArray) -> IntArray | None:
        """What the encoder's length limit made unreachable in each example, to count as missed.

        Args:
            full: n arrays of int64 targets before encoding.
            kept: int64 [n], labelled positions after it.
        """
        ...


MetricValues = Mapping[str, float | None]
