"""One class for each example: loss, and metrics fast enough for a bootstrap.

The metrics, all in [0, 1] and larger is better:

- ``accuracy``: share of examples whose most probable class is the label.
- ``balanced_accuracy``: mean recall over the classes that are present among the labels.
- ``auc``: area under the ROC curve, ties counted half. With two classes, of the probability of
  the second; with more, the mean over classes of one against the rest. Classes without a
  positive or without a negative example are left out; None where none is left.
- ``f1_macro``: mean F1 over the classes present among labels or predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from wardround_common.modalities.base import IGNORED
from wardround_common.tasks.base import Calibration, FloatArray, IntArray
from wardround_common.tasks.loss import cross_entropy

METRICS: Final = ("accuracy", "balanced_accuracy", "auc", "f1_macro")


@dataclass(frozen=True, slots=True)
class ClassPredictions:
    """Class probabilities of one model on n examples.

    Attributes:
        probabilities: float64 [n, C]; rows sum to 1. A row with NaN (a model that diverged) makes
            every metric undefined.
        targets: int64 [n], in [0, C).
        subjects: int64 [n], the patient of each example.
        predicted: int64 [n], the most probable class (the first, where tied).
        ranks: int64 [n, K], dense ranks of the scores of the K classes that AUC looks at.
    """

    probabilities: FloatArray
    targets: IntArray
    subjects: IntArray
    predicted: IntArray
    ranks: IntArray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return int(self.probabilities.shape[1])

    def metric(self, name: str, rows: IntArray | None = None) -> float | None:
        """A metric on ``rows``; None where it is undefined there.

        Args:
            name: one of :data:`METRICS`.
            rows: int64 indices, repetition allowed; all if absent.

        Raises:
            ValueError: there is no such metric.
        """
        if name not in _METRIC:
            raise ValueError(f"no metric {name!r} for classification; one of {', '.join(METRICS)}")
        chosen = np.arange(len(self)) if rows is None else rows
        if len(chosen) == 0 or not bool(np.isfinite(self.probabilities).all()):
            return None
        return _METRIC[name](self, chosen)

    def reliability(self, bins: int = 10) -> list[tuple[float, float, int]] | None:
        """Mean confidence, observed frequency and count of each non-empty bin of confidence.

        With two classes, the confidence is the probability of the second class and the frequency
        is that class's; with more, the probability of the predicted class and its accuracy.

        Args:
            bins: number of bins of equal width on [0, 1].
        """
        if len(self) == 0 or not bool(np.isfinite(self.probabilities).all()):
            return None
        confidence, observed = self._confidence()
        index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
        counts = np.bincount(index, minlength=bins)
        filled = np.flatnonzero(counts)
        confidences = np.bincount(index, weights=confidence, minlength=bins)[filled]
        frequencies = np.bincount(index, weights=observed, minlength=bins)[filled]
        return [
            (float(total / count), float(hits / count), int(count))
            for total, hits, count in zip(confidences, frequencies, counts[filled], strict=True)
        ]

    def calibration(self) -> Calibration | None:
        """Brier score and expected calibration error; None without examples."""
        points = self.reliability()
        if points is None:
            return None
        error = sum(count * abs(hit - mean) for mean, hit, count in points) / len(self)
        truth = np.eye(self.num_classes)[self.targets]
        squares = ((self.probabilities - truth) ** 2).sum(axis=1)
        scale = 0.5 if self.num_classes == 2 else 1.0
        return Calibration(brier=float(squares.mean()) * scale, expected_error=float(error))

    def _confidence(self) -> tuple[FloatArray, FloatArray]:
        if self.num_classes == 2:
            return self.probabilities[:, 1], (self.targets == 1).astype(np.float64)
        return self.probabilities.max(axis=1), (self.predicted == self.targets).astype(np.float64)


def _accuracy(scored: ClassPredictions, rows: IntArray) -> float | None:
    return float(np.mean(scored.predicted[rows] == scored.targets[rows]))


def _counts(scored: ClassPredictions, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Per class: examples, predictions, and both at once: int64 [C] each."""
    targets, predicted = scored.targets[rows], scored.predicted[rows]
    num_classes = scored.num_classes
    return (
        np.bincount(targets, minlength=num_classes),
        np.bincount(predicted, minlength=num_classes),
        np.bincount(targets[targets == predicted], minlength=num_classes),
    )


def _balanced_accuracy(scored: ClassPredictions, rows: IntArray) -> float | None:
    true, _, both = _counts(scored, rows)
    present = true > 0
    return float(np.mean(both[present] / true[present]))


def _f1_macro(scored: ClassPredictions, rows: IntArray) -> float | None:
    true, predicted, both = _counts(scored, rows)
    total = true + predicted
    present = total > 0
    return float(np.mean(2 * both[present] / total[present]))


def _auc(scored: ClassPredictions, rows: IntArray) -> float | None:
    targets = scored.targets[rows]
    classes = (1,) if scored.num_classes == 2 else range(scored.num_classes)
    areas = [
        area_under_curve(scored.ranks[rows, column], targets == label)
        for column, label in enumerate(classes)
    ]
    defined = [area for area in areas if area is not None]
    return float(np.mean(defined)) if defined else None


def area_under_curve(ranks: IntArray, positive: np.ndarray) -> float | None:
    """AUC by counting pairs (Mann and Whitney 1947), ties counted half; no sorting.

    Args:
        ranks: int64 [n], dense ranks of the scores, from 0; equal rank, equal score.
        positive: bool [n].

    Returns:
        The area in [0, 1]; None without a positive or without a negative.
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    size = int(ranks.max()) + 1
    positives = np.bincount(ranks[positive], minlength=size)
    negatives = np.bincount(ranks[~positive], minlength=size)
    twice_below = 2 * np.cumsum(negatives) - negatives
    return float(positives @ twice_below) / (2.0 * num_positive * num_negative)


_METRIC: Final[dict[str, Callable[[ClassPredictions, IntArray], float | None]]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "auc": _auc,
    "f1_macro": _f1_macro,
}


def class_predictions(
    probabilities: FloatArray, targets: IntArray, subjects: IntArray
) -> ClassPredictions:
    """Score class probabilities (shapes as in :class:`ClassPredictions`)."""
    scores = probabilities[:, 1:] if probabilities.shape[1] == 2 else probabilities
    ranks = np.empty(scores.shape, dtype=np.int64)
    for column in range(scores.shape[1]):
        ranks[:, column] = np.unique(scores[:, column], return_inverse=True)[1]
    predicted = probabilities.argmax(axis=1).astype(np.int64)
    return ClassPredictions(probabilities, targets, subjects, predicted, ranks)


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """One of C classes for each example; with two, the second is the positive one.

    Attributes:
        labels: the C class names.
    """

    labels: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """One logit a class, also with two classes."""
        return len(self.labels)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the default first."""
        return METRICS

    def loss(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Mean cross-entropy (shapes as in :class:`wardround_common.tasks.base.Task`)."""
        return cross_entropy(logits, targets, class_weights, label_smoothing)

    def cut_off(self, full: Sequence[IntArray], kept: IntArray) -> None:
        """None: an example keeps its label however long it is."""
        del full, kept

    def predictions(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        subjects: torch.Tensor,
        missed: IntArray | None = None,
    ) -> ClassPredictions:
        """Score logits.

        Args:
            logits: float [n, C].
            targets: int64 [n]; rows with -100 are left out.
            subjects: int64 [n].
            missed: nothing is ever cut off here.
        """
        assert missed is None
        labelled = targets != IGNORED
        probabilities = torch.softmax(logits.detach()[labelled].double(), dim=-1)
        return class_predictions(
            probabilities.cpu().numpy(),
            targets[labelled].cpu().numpy(),
            subjects[labelled.to(subjects.device)].cpu().numpy(),
        )
