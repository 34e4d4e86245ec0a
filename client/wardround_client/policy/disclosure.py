"""Disclosure control: what a receipt may say beside the update.

Counts and scores of few subjects can single one out. So below ``limits.min_cell`` nothing of them
leaves, and it is said that something was held back:

1. Scores on fewer held-out subjects are withheld as a whole, with their count.
2. A reliability curve with a smaller bin is withheld as a whole: the others and the total would give
   the missing bin away.
3. Metrics that the policy does not name are taken out.
4. Scores and losses are rounded to ``limits.decimals``, and no share leaves that is 0 or 1: that would
   say something of every patient behind it.
5. Sums of numeric columns are not sent at all if one of them has a value for fewer rows.

These are thresholds for published tables, as statistical offices use them; they do not add up over
many releases like differential privacy does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from wardround_client.policy.rules import PolicyError
from wardround_common.canonical import canonical_bytes
from wardround_common.evaluation.scores import (
    CalibrationScore,
    MetricValue,
    ModelScore,
    ReliabilityBin,
    SiteComparison,
)
from wardround_common.spec.policy import PolicySpec
from wardround_common.wire.bodies import CompareBody, DescribeBody, EvaluateBody
from wardround_common.wire.layout import Packed
from wardround_common.wire.step import Receipt, WireModel

SUPPRESSED = "suppressed_small_cell"


Held = Callable[[dict[str, Any], PolicySpec], WireModel]


def disclosed(receipt: Receipt, policy: PolicySpec) -> Receipt:
    """The receipt as it may leave; the same one where nothing has to be held back.

    Args:
        receipt: of any step.
        policy: the site's.
    """
    body = _HELD_BACK.get(receipt.kind)
    if body is None:
        return receipt
    kept = body(receipt.body, policy).model_dump(mode="json")
    return receipt if kept == receipt.body else receipt.model_copy(update={"body": kept})


def _describe(body: dict[str, Any], policy: PolicySpec) -> WireModel:
    found = DescribeBody.model_validate(body)
    if found.num_test_subjects >= policy.limits.min_cell:
        return found
    findings = tuple(sorted({*found.findings, SUPPRESSED}))
    return found.model_copy(update={"num_test_subjects": 0, "findings": findings})


def _evaluate(body: dict[str, Any], policy: PolicySpec) -> WireModel:
    found = EvaluateBody.model_validate(body)
    if max(found.num_validation_subjects, 1) >= policy.limits.min_cell:
        # of nobody there is nothing to say, unless small numbers are to look alike
        decimals = policy.limits.decimals
        loss = None if found.loss is None else round(found.loss, decimals)
        metric = None if found.metric is None else _share(found.metric, decimals)
        return found.model_copy(update={"loss": loss, "metric": metric})
    return EvaluateBody(loss=None, metric=None, num_validation_subjects=0, suppressed=True)


def _compare(body: dict[str, Any], policy: PolicySpec) -> WireModel:
    found = CompareBody.model_validate_json(canonical_bytes(body)).comparison
    if found.federated.num_subjects < policy.limits.min_cell:
        return CompareBody(comparison=_nothing(found))
    kept: dict[str, Any] = {
        name: None if score is None else _score(score, policy)
        for name in ("local", "federated", "personalised", "exact_head")
        for score in (getattr(found, name),)
    }
    for name in ("difference", "difference_personalised"):
        value = getattr(found, name)
        kept[name] = None if value is None else _value(value, policy, _plainly)
    return CompareBody(comparison=found.model_copy(update=kept))


def _score(score: ModelScore, policy: PolicySpec) -> ModelScore:
    decimals = policy.limits.decimals
    metrics = {
        name: None if value is None else _value(value, policy, _share)
        for name, value in score.metrics.items()
        if name in policy.allow.metrics
    }
    bins = score.reliability
    if bins is not None and any(each.count < policy.limits.min_cell for each in bins):
        bins = None
    if bins is not None:
        bins = [
            ReliabilityBin(
                confidence=round(each.confidence, decimals),
                frequency=_share(each.frequency, decimals),
                count=each.count,
            )
            for each in bins
        ]
    calibration = score.calibration
    if calibration is not None:
        calibration = CalibrationScore(
            brier=round(calibration.brier, decimals),
            expected_error=round(calibration.expected_error, decimals),
        )
    return score.model_copy(
        update={"metrics": metrics, "reliability": bins, "calibration": calibration}
    )


def _value(
    value: MetricValue, policy: PolicySpec, rounded: Callable[[float, int], float]
) -> MetricValue:
    decimals = policy.limits.decimals
    return MetricValue(
        value=rounded(value.value, decimals),
        low=rounded(value.low, decimals),
        high=rounded(value.high, decimals),
    )


def _plainly(value: float, decimals: int) -> float:
    return round(value, decimals)


def _share(value: float, decimals: int) -> float:
    """Rounded, and neither 0 nor 1."""
    step = 10.0**-decimals
    return round(min(max(value, step), 1.0 - step), decimals)


def require_no_small_counts(kind: str, update: Packed | None, policy: PolicySpec) -> None:
    """Refuse sums of columns for which fewer rows than a cell have a value.

    Args:
        kind: of the step; only ``moments`` has such sums.
        update: count, sum and sum of squares of each column, float64 [3 * a].
        policy: the site's.

    Raises:
        PolicyError: ``policy_small_cell``.
    """
    if kind != "moments" or update is None:
        return
    counts = update.reshape(3, -1)[0]
    if np.any((counts > 0) & (counts < policy.limits.min_cell)):
        raise PolicyError(
            "a numeric column has a value for fewer training rows than limits.min_cell in "
            f"policy.toml, {policy.limits.min_cell}",
            code="policy_small_cell",
        )


def _nothing(found: SiteComparison) -> SiteComparison:
    """That there was a comparison, and nothing of what it came to."""
    return SiteComparison(
        local=None,
        federated=ModelScore(
            metrics={}, num_subjects=0, num_examples=0, reliability=None, calibration=None
        ),
        personalised=None,
        exact_head=None,
        difference=None,
        difference_personalised=None,
        verdict="not measurable",
        notes=[*(note for note in found.notes if note != SUPPRESSED), SUPPRESSED][-16:],
    )


_HELD_BACK: dict[str, Held] = {"describe": _describe, "evaluate": _evaluate, "compare": _compare}
