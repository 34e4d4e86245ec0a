from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wardround_common.evaluation.bootstrap import (
    Interval,
    bootstrap,
    distinct_subjects,
    paired_difference,
    resampled_rows,
    verdict,
)
from wardround_common.evaluation.compare import MIN_BIN, Measure, compare_models, evaluate_model
from wardround_common.evaluation.scores import MetricValue, ModelScore, SiteComparison
from wardround_common.tasks.classification import METRICS, ClassificationTask, ClassPredictions

TASK = ClassificationTask(("no", "yes"))
MEASURE = Measure(METRICS, "accuracy", 200, 0.95, 0)


def answers(right: np.ndarray, subjects: np.ndarray | None = None) -> ClassPredictions:
    """Predictions that are right where ``right`` says so; classes alternate."""
    targets = np.arange(len(right)) % 2
    shown = np.where(right, targets, 1 - targets)
    margin = np.linspace(1.0, 2.0, len(right)) * (2 * shown - 1)
    logits = np.stack([np.zeros(len(right)), margin], axis=1)
    who = np.arange(len(right)) if subjects is None else subjects
    return TASK.predictions(*(torch.from_numpy(part) for part in (logits, targets, who)))


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def interval(found: ClassPredictions, seed: int = 0, resamples: int = 400) -> Interval:
    result = bootstrap(found, "accuracy", resamples=resamples, confidence=0.95, seed=seed)
    assert result is not None
    return result


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    found = answers(random(0).random(83) < 0.7)
    first, again, other = (
        bootstrap(found, "auc", resamples=100, confidence=0.95, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_resample_takes_all_rows_of_a_subject_or_none():
    subjects = np.array([7, 3, 7, 7, 3, 9])
    for rows in resampled_rows(subjects, 50, 0):
        times = np.bincount(rows, minlength=6)
        assert times[0] == times[2] == times[3]
        assert times[1] == times[4]
        assert times[0] + times[1] + times[5] == 3


def test_rows_of_one_patient_widen_the_interval_and_resampling_rows_would_hide_that():
    each = random(1).random(30) < 0.6
    by_subject = interval(answers(np.repeat(each, 8), np.repeat(np.arange(30), 8)))
    by_row = interval(answers(np.repeat(each, 8)))
    assert by_subject.value == by_row.value
    assert by_subject.high - by_subject.low > 2.0 * (by_row.high - by_row.low)


def test_intervals_cover_the_true_accuracy_about_as_often_as_they_say():
    generator, hits = random(2), 0
    for trial in range(80):
        found = interval(answers(generator.random(80) < 0.75), seed=trial, resamples=150)
        hits += found.low <= 0.75 <= found.high
    assert 68 <= hits <= 80


def test_a_pair_of_models_is_compared_on_the_same_resamples():
    right = random(3).random(200) < 0.7
    better = right.copy()
    better[np.flatnonzero(~right)[:12]] = True
    found = paired_difference(
        answers(better), answers(right), "accuracy", resamples=400, confidence=0.95, seed=0
    )
    assert found is not None
    assert found.value == pytest.approx(12 / 200)
    assert found.low > 0.0
    alone = interval(answers(better)), interval(answers(right))
    assert alone[0].low < alone[1].high


def test_a_model_does_not_differ_from_itself():
    found = answers(random(4).random(50) < 0.7)
    same = paired_difference(found, found, "auc", resamples=100, confidence=0.95, seed=0)
    assert same == Interval(0.0, 0.0, 0.0)


def test_a_pair_on_different_examples_is_refused():
    a, b = answers(np.ones(12, dtype=bool)), answers(np.ones(13, dtype=bool))
    with pytest.raises(ValueError, match="same examples"):
        paired_difference(a, b, "accuracy", resamples=10, confidence=0.95, seed=0)


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        (Interval(0.1, 0.01, 0.2), "helped"),
        (Interval(0.1, 0.0, 0.2), "no difference"),
        (Interval(-0.1, -0.2, 0.0), "no difference"),
        (Interval(-0.1, -0.2, -0.01), "harmed"),
        (None, "not measurable"),
    ],
)
def test_the_verdict_follows_the_interval(difference, word):
    assert verdict(difference) == word


def test_nine_subjects_give_no_verdict_and_ten_do():
    for size, word in ((9, "not measurable"), (10, "helped")):
        found = compare_models(
            answers(np.ones(size, dtype=bool)), MEASURE, local=answers(np.zeros(size, dtype=bool))
        )
        assert found.verdict == word
        assert found.notes == (["few_test_subjects"] if size == 9 else [])


def test_many_rows_of_few_patients_are_few_patients():
    found = evaluate_model(answers(np.ones(90, dtype=bool), np.arange(90) // 10), MEASURE)
    assert (found.num_subjects, found.num_examples) == (9, 90)
    assert set(found.metrics.values()) == {None}
    assert found.reliability is None
    assert found.calibration is None


def test_a_metric_that_most_resamples_do_not_have_has_no_interval():
    found = answers(np.ones(20, dtype=bool))
    one_class = replace(found, targets=np.zeros(20, dtype=np.int64))
    scores = evaluate_model(one_class, MEASURE).metrics
    assert scores["auc"] is None
    assert scores["accuracy"] is not None


def test_scores_survive_json_and_hold_no_bin_of_a_single_patient():
    found = compare_models(
        answers(random(5).random(61) < 0.8), MEASURE, local=answers(random(6).random(61) < 0.6)
    )
    assert SiteComparison.model_validate_json(found.model_dump_json()) == found
    assert found.federated.reliability is not None
    assert min(spot.count for spot in found.federated.reliability) >= MIN_BIN
    assert sum(spot.count for spot in found.federated.reliability) == 61
    assert len(found.model_dump_json()) < 6000


def test_rare_confidences_are_joined_into_bins_of_several_patients():
    margin = np.concatenate([np.full(40, -3.0), [0.0, 0.9], np.full(40, 3.0), [9.0]])
    logits = torch.from_numpy(np.stack([np.zeros(83), margin], axis=1))
    found = TASK.predictions(logits, torch.arange(83) % 2, torch.arange(83))
    assert min(count for _, _, count in found.reliability() or []) == 1
    assert [spot.count for spot in evaluate_model(found, MEASURE).reliability or []] == [42, 41]


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"accuracy": {"value": 1.5, "low": 0.1, "high": 0.2}}},
        {"metrics": {"accuracy": {"value": -0.5, "low": -0.6, "high": 0.2}}},
        {"metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.3}}},
        {"metrics": {f"m{number}": None for number in range(17)}},
        {"metrics": {"<b>": None}},
        {"num_subjects": -1},
        {"num_subjects": "12"},
        {"reliability": [{"confidence": 0.5, "frequency": 0.5, "count": 1}] * 21},
        {"rows": [1, 2, 3]},
    ],
)
def test_scores_from_elsewhere_are_refused_when_out_of_bounds(change):
    good = {"metrics": {"accuracy": None}, "num_subjects": 12, "num_examples": 12}
    assert ModelScore.model_validate(good).num_subjects == 12
    with pytest.raises(ValidationError):
        ModelScore.model_validate({**good, **change})


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValidationError):
        MetricValue(value=float("nan"), low=0.0, high=1.0)


def test_equal_codes_of_two_sites_are_different_patients():
    joined = distinct_subjects([np.array([4, 4, 9]), np.array([4, 9])])
    assert joined.tolist() == [0, 0, 1, 2, 3]
    assert distinct_subjects([]).tolist() == []
