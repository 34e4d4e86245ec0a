"""Counts and scores of few subjects do not leave, and it is said that something was held back."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.policies import policy
from wardround_client.policy.disclosure import SUPPRESSED, disclosed
from wardround_common.evaluation.scores import (
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


def test_only_metrics_that_the_policy_names_leave() -> None:
    compared = shown("compare", comparison(50), allow__metrics=["roc_auc"])["comparison"]
    assert set(compared["federated"]["metrics"]) == {"roc_auc"}
    assert set(compared["local"]["metrics"]) == {"roc_auc"}


def test_twin_with_the_threshold_off_the_counts_leave() -> None:
    body = EvaluateBody(loss=0.7, metric=0.61, num_validation_subjects=3)
    left = disclosed(receipt("evaluate", body), policy(limits__min_cell=1))
    assert left.body["num_validation_subjects"] == 3
