"""Counts and scores of few subjects do not leave, and it is said that something was held back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.policies import policy
from wardround_client.policy.disclosure import SUPPRESSED, disclosed, require_no_small_counts
from wardround_client.policy.rules import PolicyError
from wardround_common.evaluation.scores import (
    CalibrationScore,
    MetricValue,
    ModelScore,
    ReliabilityBin,
    SiteComparison,
)
from wardround_common.wire.bodies import BODIES, CompareBody, DescribeBody, EvaluateBody
from wardround_common.wire.step import Receipt, StepKind, WireModel

K = 10


def receipt(kind: StepKind, body: WireModel) -> Receipt:
    return Receipt(
        run="0" * 16,
        step=1,
        kind=kind,
        round=1,
        manifest_sha256="0" * 64,
        site="a",
        num_subjects=50,
        num_examples=50,
        body=body.model_dump(mode="json"),
    )


def shown(kind: StepKind, body: WireModel, **changes: Any) -> dict[str, Any]:
    left = disclosed(receipt(kind, body), policy(limits__min_cell=K, **changes))
    BODIES[kind].model_validate(left.body)
    return left.body


def score(num_subjects: int, bins: Sequence[int]) -> ModelScore:
    value = MetricValue(value=0.8, low=0.7, high=0.9)
    return ModelScore(
        metrics={"accuracy": value, "roc_auc": value},
        num_subjects=num_subjects,
        num_examples=sum(bins),
        reliability=[ReliabilityBin(confidence=0.5, frequency=0.5, count=n) for n in bins],
    )


def comparison(num_subjects: int, bins: Sequence[int] = (20, 30)) -> CompareBody:
    made = score(num_subjects, bins)
    return CompareBody(
        comparison=SiteComparison(
            local=made,
            federated=made,
            personalised=None,
            exact_head=made,
            difference=MetricValue(value=0.1, low=0.05, high=0.2),
            difference_personalised=None,
            verdict="helped",
            notes=["rows_as_subjects"],
        )
    )


@pytest.mark.parametrize("subjects", range(2 * K))
def test_scores_of_fewer_subjects_than_k_are_held_back(subjects: int) -> None:
    body = shown("evaluate", EvaluateBody(loss=0.7, metric=0.61, num_validation_subjects=subjects))
    nothing = {"loss": None, "metric": None, "num_validation_subjects": 0, "suppressed": True}
    if subjects < K:
        assert body == nothing
    else:
        assert body["num_validation_subjects"] == subjects
        assert body["metric"] == 0.61
    compared = shown("compare", comparison(subjects))["comparison"]
    assert (SUPPRESSED in compared["notes"]) == (subjects < K)
    if subjects < K:
        assert compared["federated"]["metrics"] == {}
        assert compared["federated"]["num_subjects"] == 0
        assert compared["local"] is compared["difference"] is compared["exact_head"] is None
        assert compared["verdict"] == "not measurable"
    described = shown(
        "describe",
        DescribeBody(num_test_subjects=subjects, has_subjects=True, findings=(), version="1"),
    )
    assert described["num_test_subjects"] == (subjects if subjects >= K else 0)
    assert (SUPPRESSED in described["findings"]) == (subjects < K)


def test_one_small_bin_takes_the_whole_curve_with_it() -> None:
    for bins, there in (((20, 30), True), ((20, 9, 21), False), ((K, K), True), ((1, 49), False)):
        compared = shown("compare", comparison(50, bins))["comparison"]
        for model in ("local", "federated", "exact_head"):
            assert (compared[model]["reliability"] is not None) == there


def test_no_difference_of_two_releases_gives_a_small_count_away() -> None:
    """What a site says of n subjects and of n + 1, for every n: no two differ in a count below k."""
    said = [
        shown("evaluate", EvaluateBody(loss=1.0, metric=0.5, num_validation_subjects=n))
        for n in range(3 * K)
    ]
    counts = [each["num_validation_subjects"] for each in said]
    assert all(count == 0 or count >= K for count in counts)
    assert len({str(each) for each in said[:K]}) == 1, "below k nothing tells one n from another"


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_scores_are_rounded_and_no_share_is_of_nobody_or_everybody(decimals: int) -> None:
    step = 10.0**-decimals
    for exact in (0.0, 0.0004, 0.123456, 0.5, 0.99999, 1.0):
        evaluated = EvaluateBody(loss=exact, metric=exact, num_validation_subjects=50)
        body = shown("evaluate", evaluated, limits__decimals=decimals)
        assert body["loss"] == round(exact, decimals)
        assert step <= body["metric"] <= 1.0 - step
        assert body["metric"] == round(body["metric"], decimals)
        assert abs(body["metric"] - exact) <= step + 1e-12
    told = comparison(50).comparison
    perfect = ModelScore(
        metrics={"accuracy": MetricValue(value=1.0, low=1.0, high=1.0), "auc": None},
        num_subjects=50,
        num_examples=50,
        reliability=[ReliabilityBin(confidence=0.91234, frequency=1.0, count=50)],
        calibration=CalibrationScore(brier=0.012345, expected_error=0.054321),
    )
    difference = MetricValue(value=0.123456, low=-0.0123456, high=0.3)
    made = told.model_copy(update={"federated": perfect, "difference": difference})
    left = shown("compare", CompareBody(comparison=made), limits__decimals=decimals)["comparison"]
    assert left["federated"]["metrics"]["accuracy"]["value"] == round(1.0 - step, decimals)
    assert left["federated"]["metrics"]["auc"] is None
    (only,) = left["federated"]["reliability"]
    assert only["frequency"] == round(1.0 - step, decimals)
    assert only["confidence"] == round(0.91234, decimals)
    assert left["federated"]["calibration"]["brier"] == round(0.012345, decimals)
    assert left["difference"]["value"] == round(0.123456, decimals)


@pytest.mark.parametrize("count", range(2 * K))
def test_sums_of_a_column_that_few_have_a_value_in_are_refused(count: int) -> None:
    sums = np.array([50.0, float(count), 1.0, 2.0, 3.0, 4.0])
    strict = policy(limits__min_cell=K)
    if 0 < count < K:
        with pytest.raises(PolicyError) as caught:
            require_no_small_counts("moments", sums, strict)
        assert caught.value.code == "policy_small_cell"
        require_no_small_counts("moments", sums, policy(limits__min_cell=1))
    else:
        require_no_small_counts("moments", sums, strict)
    require_no_small_counts("train", sums, strict)


def test_only_metrics_that_the_policy_names_leave() -> None:
    compared = shown("compare", comparison(50), allow__metrics=["roc_auc"])["comparison"]
    assert set(compared["federated"]["metrics"]) == {"roc_auc"}
    assert set(compared["local"]["metrics"]) == {"roc_auc"}


def test_twin_with_the_threshold_off_the_counts_leave() -> None:
    body = EvaluateBody(loss=0.7, metric=0.61, num_validation_subjects=3)
    left = disclosed(receipt("evaluate", body), policy(limits__min_cell=1))
    assert left.body["num_validation_subjects"] == 3
