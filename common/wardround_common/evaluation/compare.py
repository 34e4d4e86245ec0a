"""From predictions, which stay at a site, to scores, which leave it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from wardround_common.evaluation.bootstrap import (
    MIN_SUBJECTS,
    Interval,
    bootstrap,
    paired_difference,
    verdict,
)
from wardround_common.evaluation.scores import (
    CalibrationScore,
    MetricValue,
    ModelScore,
    ReliabilityBin,
    SiteComparison,
)
from wardround_common.tasks.base import Predictions

NUM_BINS: Final = 10
MIN_BIN: Final = 5
"""Fewest examples in a reliability bin that leaves a site; smaller ones join a neighbour."""
DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Measure:
    """How models are scored.

    Attributes:
        metrics: the task's metrics.
        metric: the one of the verdict.
        resamples: bootstrap resamples of subjects.
        confidence: level of the intervals, in (0, 1).
        seed: at least 0; the same for all models, so that they see the same resamples.
    """

    metrics: tuple[str, ...]
    metric: str
    resamples: int
    confidence: float
    seed: int


def evaluate_model(predictions: Predictions, measure: Measure) -> ModelScore:
    """All metrics of one model with their intervals, its reliability and calibration."""
    intervals = {
        name: bootstrap(
            predictions,
            name,
            resamples=measure.resamples,
            confidence=measure.confidence,
            seed=measure.seed,
        )
        for name in measure.metrics
    }
    calibration = predictions.calibration() if _enough(predictions) else None
    return ModelScore(
        metrics={name: metric_value(interval) for name, interval in intervals.items()},
        num_subjects=len(np.unique(predictions.subjects)),
        num_examples=len(predictions),
        reliability=_reliability(predictions),
        calibration=None
        if calibration is None
        else CalibrationScore(
            brier=round(calibration.brier, DIGITS),
            expected_error=round(calibration.expected_error, DIGITS),
        ),
    )


def compare_models(
    federated: Predictions,
    measure: Measure,
    *,
    local: Predictions | None = None,
    personalised: Predictions | None = None,
    exact_head: Predictions | None = None,
    notes: Sequence[str] = (),
) -> SiteComparison:
    """What one site reports: each model's scores and the verdict on taking part.

    Args:
        federated: predictions of the federated model on the site's held-out examples.
        measure: how to score.
        local: the local-only model's, on the same examples in the same order.
        personalised: the personalised model's, likewise.
        exact_head: the one-round exact head's, likewise.
        notes: note codes; ``few_test_subjects`` is added where it applies.
    """
    difference = _difference(federated, local, measure)
    few = () if _enough(federated) else ("few_test_subjects",)
    return SiteComparison(
        local=_score(local, measure),
        federated=evaluate_model(federated, measure),
        personalised=_score(personalised, measure),
        exact_head=_score(exact_head, measure),
        difference=metric_value(difference),
        difference_personalised=metric_value(_difference(personalised, local, measure)),
        verdict=verdict(difference),
        notes=sorted({*notes, *few}),
    )


def metric_value(interval: Interval | None) -> MetricValue | None:
    """An interval as it leaves a site: rounded to six digits."""
    if interval is None:
        return None
    return MetricValue(
        value=round(interval.value, DIGITS),
        low=round(interval.low, DIGITS),
        high=round(interval.high, DIGITS),
    )


def difference_of(a: Predictions, b: Predictions, measure: Measure) -> MetricValue | None:
    """``a`` minus ``b`` in the verdict's metric, paired; None where it has no interval."""
    return metric_value(_difference(a, b, measure))


def _score(predictions: Predictions | None, measure: Measure) -> ModelScore | None:
    return None if predictions is None else evaluate_model(predictions, measure)


def _difference(a: Predictions | None, b: Predictions | None, measure: Measure) -> Interval | None:
    if a is None or b is None:
        return None
    return paired_difference(
        a,
        b,
        measure.metric,
        resamples=measure.resamples,
        confidence=measure.confidence,
        seed=measure.seed,
    )


def _enough(predictions: Predictions) -> bool:
    return len(np.unique(predictions.subjects)) >= MIN_SUBJECTS


def _reliability(predictions: Predictions) -> list[ReliabilityBin] | None:
    """Bins of at least :data:`MIN_BIN` examples: one example's probability never leaves."""
    points = predictions.reliability(NUM_BINS) if _enough(predictions) else None
    if points is None:
        return None
    return [
        ReliabilityBin(
            confidence=round(confidence, DIGITS), frequency=round(frequency, DIGITS), count=count
        )
        for confidence, frequency, count in _merged(points)
    ]


def _merged(points: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    merged: list[tuple[float, float, int]] = []
    for point in points:
        if merged and (merged[-1][2] < MIN_BIN or point[2] < MIN_BIN):
            merged[-1] = _join(merged[-1], point)
        else:
            merged.append(point)
    return merged


def _join(a: tuple[float, float, int], b: tuple[float, float, int]) -> tuple[float, float, int]:
    count = a[2] + b[2]
    return ((a[0] * a[2] + b[0] * b[2]) / count, (a[1] * a[2] + b[1] * b[2]) / count, count)
