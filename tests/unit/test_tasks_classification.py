import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from wardround_common.spec.federation import Classification, Entities, metrics_of
from wardround_common.tasks.classification import ClassificationTask, ClassPredictions
from wardround_common.tasks.registry import task_for

BINARY = ClassificationTask(("no", "yes"))
THREE = ClassificationTask(("a", "b", "c"))


def scored(task: ClassificationTask, size: int, seed: int, *, steps: int = 6) -> ClassPredictions:
    """Random predictions with many ties."""
    generator = np.random.Generator(np.random.PCG64(seed))
    logits = generator.integers(0, steps, (size, task.num_outputs)) / 2.0
    targets = generator.integers(0, task.num_outputs, size)
    return task.predictions(torch.from_numpy(logits), torch.from_numpy(targets), torch.arange(size))


@given(st.integers(2, 60), st.integers(0, 10_000), st.sampled_from([BINARY, THREE]))
@settings(max_examples=60, deadline=None)
def test_metrics_equal_scikit_learn_also_on_resampled_rows(size, seed, task):
    found = scored(task, size, seed)
    rows = np.random.Generator(np.random.PCG64(seed)).integers(0, size, size)
    truth, predicted = found.targets[rows], found.predicted[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": oracle.accuracy_score(truth, predicted),
            "balanced_accuracy": np.mean(
                oracle.recall_score(truth, predicted, labels=np.unique(truth), average=None)
            ),
            "f1_macro": oracle.f1_score(truth, predicted, average="macro"),
        }
    for name, value in expected.items():
        assert found.metric(name, rows) == pytest.approx(value, abs=1e-12)


@given(st.integers(4, 60), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_auc_equals_scikit_learn_with_ties_and_repeated_rows(size, seed):
    for task in (BINARY, THREE):
        found = scored(task, size, seed)
        rows = np.random.Generator(np.random.PCG64(seed + 1)).integers(0, size, size)
        truth, scores = found.targets[rows], found.probabilities[rows]
        classes = [1] if task is BINARY else list(range(3))
        defined = [c for c in classes if 0 < np.sum(truth == c) < len(truth)]
        expected = [oracle.roc_auc_score(truth == c, scores[:, c]) for c in defined]
        value = found.metric("auc", rows)
        assert value == (pytest.approx(np.mean(expected), abs=1e-12) if expected else None)


def test_auc_counts_a_tie_as_half():
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    found = BINARY.predictions(logits, torch.tensor([0, 1]), torch.arange(2))
    assert found.metric("auc") == 0.5


def test_auc_ranks_the_second_class_as_positive():
    logits = torch.tensor([[0.0, -1.0], [0.0, 2.0], [0.0, 0.5]])
    found = BINARY.predictions(logits, torch.tensor([0, 1, 1]), torch.arange(3))
    turned = BINARY.predictions(logits.flip(1), torch.tensor([0, 1, 1]), torch.arange(3))
    assert (found.metric("auc"), turned.metric("auc")) == (1.0, 0.0)


def test_auc_with_one_class_is_undefined_and_accuracy_is_not():
    found = BINARY.predictions(torch.randn(5, 2), torch.ones(5, dtype=torch.long), torch.arange(5))
    assert found.metric("auc") is None
    assert found.metric("accuracy") is not None


def test_balanced_accuracy_leaves_out_classes_that_no_label_has():
    logits = torch.eye(3)[[0, 0, 1, 2]] * 5
    found = THREE.predictions(logits, torch.tensor([0, 0, 1, 1]), torch.arange(4))
    assert found.metric("balanced_accuracy") == 0.75


def test_a_model_that_diverged_has_no_metrics():
    logits = torch.zeros(4, 2)
    targets = torch.tensor([0, 1, 0, 1])
    assert BINARY.predictions(logits, targets, torch.arange(4)).metric("accuracy") == 0.5
    logits[2, 1] = float("nan")
    found = BINARY.predictions(logits, targets, torch.arange(4))
    assert [found.metric(name) for name in BINARY.metrics] == [None] * 4
    assert found.reliability() is None
    assert found.calibration() is None


def test_an_unknown_metric_is_refused_by_name():
    with pytest.raises(ValueError, match="sensitivity"):
        scored(BINARY, 5, 0).metric("sensitivity")


def test_brier_score_equals_scikit_learn_and_calibration_error_a_plain_loop():
    found = scored(BINARY, 300, 3, steps=40)
    positive = found.probabilities[:, 1]
    calibration = found.calibration()
    assert calibration is not None
    assert calibration.brier == pytest.approx(oracle.brier_score_loss(found.targets, positive))
    error = 0.0
    for low in range(10):
        inside = [i for i in range(300) if min(int(positive[i] * 10), 9) == low]
        if inside:
            error += abs(found.targets[inside].mean() - positive[inside].mean()) * len(inside) / 300
    assert calibration.expected_error == pytest.approx(error)


def test_reliability_bins_hold_every_example_once_and_certain_predictions_too():
    logits = torch.tensor([[0.0, 100.0], [100.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    found = BINARY.predictions(logits, torch.tensor([1, 0, 1]), torch.arange(3))
    bins = found.reliability()
    assert bins is not None
    assert [(round(hit, 2), count) for _, hit, count in bins] == [(0.0, 1), (1.0, 1), (1.0, 1)]


def test_loss_is_the_cross_entropy_with_weights_and_smoothing():
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = torch.tensor([1.0, 2.0, 0.5])
    log = torch.log_softmax(logits, -1)
    chosen = -(log[torch.arange(6), targets] * weights[targets]).sum() / weights[targets].sum()
    assert THREE.loss(logits, targets, weights) == pytest.approx(float(chosen), rel=1e-5)
    smooth = -(0.9 * log[torch.arange(6), targets] + 0.1 * log.mean(-1)).mean()
    assert THREE.loss(logits, targets, None, 0.1) == pytest.approx(float(smooth), rel=1e-5)


def test_loss_without_a_labelled_position_is_zero_and_moves_nothing():
    logits = torch.randn(4, 3, requires_grad=True)
    loss = THREE.loss(logits, torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_registry_builds_the_task_with_the_metrics_that_the_file_may_name():
    for spec in (
        Classification(kind="classification", labels=("a", "b", "c")),
        Entities(kind="entities", types=("drug", "disease")),
    ):
        task = task_for(spec)
        assert task.num_outputs == len(spec.labels)
        assert task.metrics == metrics_of(spec.kind)
