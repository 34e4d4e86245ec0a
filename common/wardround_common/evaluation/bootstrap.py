"""Bootstrap intervals over subjects (Efron and Tibshirani 1993, chapters 8 and 13).

1. Subjects are resampled with replacement, and all rows of a subject come along: rows of one
   patient are not independent, and resampling rows would give intervals that are too narrow.
2. Two models are compared on the same resamples, so that easy and hard subjects cancel.
3. The percentile interval is taken over the resamples on which the metric is defined. With fewer
   than half of them, or fewer than :data:`MIN_SUBJECTS` subjects, there is no interval: on a
   handful of subjects a percentile interval collapses and says more than the data do.
4. The same predictions and seed give the same interval.

Not claimed: that an interval covers the choice of hyperparameters or of the split.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from wardround_common.evaluation.scores import Verdict
from wardround_common.tasks.base import IntArray, Predictions

MIN_SUBJECTS: Final = 10
"""Fewest held-out subjects that give an interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value on all subjects and the ends of its percentile interval."""

    value: float
    low: float
    high: float


def resampled_rows(subjects: IntArray, resamples: int, seed: int) -> Iterator[IntArray]:
    """The rows of each bootstrap resample of the subjects.

    Args:
        subjects: int64 [n], the subject of each row, n >= 1.
        resamples: how many to draw, at least 1.
        seed: at least 0.

    Yields:
        int64 row indices: as many subjects as there are, drawn with replacement, each with all
        of its rows.
    """
    order = np.argsort(subjects, kind="stable").astype(np.int64)
    _, first, sizes = np.unique(subjects[order], return_index=True, return_counts=True)
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(resamples):
        drawn = generator.integers(0, len(sizes), size=len(sizes))
        lengths = sizes[drawn]
        begins = np.cumsum(lengths) - lengths
        offsets = np.arange(int(lengths.sum())) - np.repeat(begins, lengths)
        yield order[np.repeat(first[drawn], lengths) + offsets]


def bootstrap(
    predictions: Predictions, metric: str, *, resamples: int, confidence: float, seed: int
) -> Interval | None:
    """A metric with its interval.

    Args:
        predictions: of one model.
        metric: a metric of the task.
        resamples: number of resamples.
        confidence: level of the interval, in (0, 1).
        seed: at least 0.

    Returns:
        None where the metric is undefined or has no interval (rule 3).
    """
    return _interval(
        predictions.subjects,
        lambda rows: predictions.metric(metric, rows),
        resamples,
        confidence,
        seed,
    )


def paired_difference(
    a: Predictions, b: Predictions, metric: str, *, resamples: int, confidence: float, seed: int
) -> Interval | None:
    """``a`` minus ``b`` in a metric, both scored on the same resamples.

    Args:
        a: predictions of one model.
        b: predictions of another on the same examples in the same order.
        metric: a metric of the task.
        resamples: number of resamples.
        confidence: level of the interval, in (0, 1).
        seed: at least 0.

    Returns:
        None where the difference is undefined or has no interval (rule 3).

    Raises:
        ValueError: the two are not predictions for the same examples.
    """
    if not np.array_equal(a.subjects, b.subjects):
        raise ValueError("a paired difference needs predictions for the same examples, in order")

    def difference(rows: IntArray | None) -> float | None:
        first, second = a.metric(metric, rows), b.metric(metric, rows)
        return None if first is None or second is None else first - second

    return _interval(a.subjects, difference, resamples, confidence, seed)


def _interval(
    subjects: IntArray,
    statistic: Callable[[IntArray | None], float | None],
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval | None:
    if len(np.unique(subjects)) < MIN_SUBJECTS:
        return None
    value = statistic(None)
    if value is None:
        return None
    draws = [statistic(rows) for rows in resampled_rows(subjects, resamples, seed)]
    defined = [draw for draw in draws if draw is not None]
    if 2 * len(defined) < resamples:
        return None
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def verdict(difference: Interval | None) -> Verdict:
    """The word for a paired difference of the federated model minus the local one."""
    if difference is None:
        return "not measurable"
    if difference.low > 0.0:
        return "helped"
    return "harmed" if difference.high < 0.0 else "no difference"


def distinct_subjects(parts: Sequence[IntArray]) -> IntArray:
    """The subjects of several sites joined, none of two sites taken for the same.

    Args:
        parts: each site's subject codes, which are local to the site.

    Returns:
        int64 [sum of lengths], new codes from 0.
    """
    joined: list[IntArray] = []
    offset = 0
    for part in parts:
        codes, inverse = np.unique(part, return_inverse=True)
        joined.append(inverse.astype(np.int64) + offset)
        offset += len(codes)
    return np.concatenate(joined) if joined else np.zeros(0, dtype=np.int64)
