"""The head solved from summed statistics is the ridge classifier of the pooled data."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier

from wardround_common.errors import RoundError
from wardround_common.exact_head import HeadSums, RidgeHead, can_be_sums, solve_head, sums_layout
from wardround_server.aggregation.exact_sum import ExactSum
from wardround_server.rounds.engine import SUM_BOUND, SUM_FOLDS

TOLERANCE = 1e-9
"""Asked for: 1e-5."""


def _data(
    rng: np.random.Generator, rows: int, width: int, classes: int, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    centres = rng.normal(size=(classes, width))
    targets = rng.integers(0, classes, rows)
    targets[:classes] = np.arange(classes)
    features = centres[targets] + rng.normal(size=(rows, width)) + rng.normal(size=width)
    return (features * scale).astype(np.float32), targets.astype(np.int64)


def _federated(
    features: np.ndarray,
    targets: np.ndarray,
    sites: np.ndarray,
    folds: np.ndarray,
    *,
    num_sites: int,
    classes: int,
    num_folds: int,
    ridge: float | None,
) -> RidgeHead:
    """As the engine does it: each site's sums, added exactly, then solved."""
    width = features.shape[1]
    layout = sums_layout(width, classes, num_folds)
    total = ExactSum(layout.num_values, bound=SUM_BOUND, terms=num_sites, folds=SUM_FOLDS)
    for site in range(num_sites):
        sums = HeadSums(width, classes, num_folds)
        mine = sites == site
        for half in np.array_split(np.flatnonzero(mine), 2):
            sums.add(features[half], targets[half], folds[half])
        sent = sums.packed()
        assert len(sent) == layout.num_values
        assert can_be_sums(layout, sent)
        total.add(sent)
    return solve_head(total.total(), width, classes, num_folds, ridge)


def _pooled(features: np.ndarray, targets: np.ndarray, alpha: float) -> tuple[Any, Any]:
    """scikit-learn's weights; its one column of two classes as our two opposite ones."""
    fitted = RidgeClassifier(alpha=alpha, fit_intercept=True).fit(
        features.astype(np.float64), targets
    )
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        weight, bias = np.vstack([-weight, weight]), np.concatenate([-bias, bias])
    return weight, bias


def _difference(head: RidgeHead, weight: np.ndarray, bias: np.ndarray) -> float:
    ours = np.column_stack([head.weight, head.bias])
    theirs = np.column_stack([weight, bias])
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("num_sites", range(1, 51))
def test_equal_to_the_pooled_classifier_for_every_number_of_sites(num_sites: int) -> None:
    rng = np.random.Generator(np.random.PCG64(num_sites))
    for classes in (2, 5):
        features, targets = _data(rng, 240, 12, classes)
        head = _federated(
            features,
            targets,
            rng.integers(0, num_sites, 240),
            rng.integers(0, 5, 240),
            num_sites=num_sites,
            classes=classes,
            num_folds=5,
            ridge=2.0,
        )
        assert _difference(head, *_pooled(features, targets, 2.0)) <= TOLERANCE


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sites=st.integers(1, 50),
    classes=st.integers(2, 6),
    width=st.integers(1, 20),
    rows=st.integers(12, 150),
    num_folds=st.integers(1, 6),
    alpha=st.sampled_from([1e-2, 1.0, 30.0]),
    skew=st.sampled_from(["mixed", "one class a site", "one site has all", "empty fold"]),
)
def test_equal_for_any_partition(
    seed: int,
    num_sites: int,
    classes: int,
    width: int,
    rows: int,
    num_folds: int,
    alpha: float,
    skew: str,
) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    features, targets = _data(rng, rows, width, classes)
    sites = {
        "mixed": rng.integers(0, num_sites, rows),
        "one class a site": targets % num_sites,
        "one site has all": np.zeros(rows, dtype=int),
        "empty fold": rng.integers(0, num_sites, rows),
    }[skew]
    folds = rng.integers(0, 1 if skew == "empty fold" else num_folds, rows)
    counts = {"num_sites": num_sites, "classes": classes, "num_folds": num_folds}
    head = _federated(features, targets, sites, folds, **counts, ridge=alpha)
    assert _difference(head, *_pooled(features, targets, alpha)) <= TOLERANCE
    chosen = _federated(features, targets, sites, folds, **counts, ridge=None)
    everything = np.zeros(rows, dtype=int)
    alone = _federated(
        features,
        targets,
        everything,
        folds,
        num_sites=1,
        classes=classes,
        num_folds=num_folds,
        ridge=None,
    )
    assert chosen.ridge == pytest.approx(alone.ridge, rel=1e-9), "same folds, same penalty"
    assert _difference(chosen, alone.weight, alone.bias) <= TOLERANCE


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0, 1e3, 1e5])
def test_equal_whatever_the_unit_of_the_features(scale: float) -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    features, targets = _data(rng, 300, 8, 3, scale)
    alpha = 0.5 * scale**2
    head = _federated(
        features,
        targets,
        rng.integers(0, 50, 300),
        rng.integers(0, 5, 300),
        num_sites=50,
        classes=3,
        num_folds=5,
        ridge=alpha,
    )
    assert _difference(head, *_pooled(features, targets, alpha)) <= 1e-7


def test_constant_features_carry_no_weight() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    features, targets = _data(rng, 90, 4, 2)
    features[:, 1] = 0.1
    features[:, 3] = 0.0
    for ridge in (1.0, None):
        head = _federated(
            features,
            targets,
            rng.integers(0, 3, 90),
            rng.integers(0, 5, 90),
            num_sites=3,
            classes=2,
            num_folds=5,
            ridge=ridge,
        )
        weight, bias = _pooled(features, targets, head.ridge)
        assert _difference(head, weight, bias) <= TOLERANCE
        assert np.abs(head.weight[:, [1, 3]]).max() < 1e-9


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, 1e4])
def test_features_that_are_all_constant_leave_the_classes_shares(value: float) -> None:
    targets = np.array([0, 0, 0, 1] * 10)
    head = _federated(
        np.full((40, 3), value, dtype=np.float32),
        targets,
        np.arange(40) % 2,
        np.arange(40) % 5,
        num_sites=2,
        classes=2,
        num_folds=5,
        ridge=None,
    )
    prediction = head.weight @ np.full(3, value) + head.bias
    np.testing.assert_allclose(prediction, [0.5, -0.5], atol=1e-9)
    assert np.abs(head.weight).max() < 1e-6
    assert np.isfinite(head.weight.astype(np.float32)).all()


def test_the_penalty_is_the_one_with_the_least_cross_validated_error() -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    features, targets = _data(rng, 80, 30, 2)
    folds = np.arange(80) % 4
    head = _federated(
        features,
        targets,
        rng.integers(0, 5, 80),
        folds,
        num_sites=5,
        classes=2,
        num_folds=4,
        ridge=None,
    )
    spread = np.square(features.astype(np.float64) - features.mean(axis=0)).sum() / 30

    def held_out_error(alpha: float) -> float:
        error = 0.0
        for fold in range(4):
            weight, bias = _pooled(features[folds != fold], targets[folds != fold], alpha)
            scores = features[folds == fold] @ weight.T + bias
            signs = np.where(targets[folds == fold][:, None] == np.arange(2), 1.0, -1.0)
            error += np.square(scores - signs).sum()
        return error

    candidates = np.logspace(-5.0, 2.0, 15) * spread
    best = candidates[np.argmin([held_out_error(alpha) for alpha in candidates])]
    assert head.ridge == pytest.approx(best, rel=1e-6)


def test_the_sum_of_anything_less_than_all_sites_is_another_head() -> None:
    """The failing twin of equality: one site left out is seen in the weights."""
    rng = np.random.Generator(np.random.PCG64(4))
    features, targets = _data(rng, 200, 6, 2)
    sites = rng.integers(0, 10, 200)
    kept = sites != 3
    head = _federated(
        features[kept],
        targets[kept],
        sites[kept],
        np.zeros(kept.sum(), dtype=int),
        num_sites=10,
        classes=2,
        num_folds=1,
        ridge=1.0,
    )
    assert _difference(head, *_pooled(features, targets, 1.0)) > 1e-3


@pytest.mark.parametrize("case", ["nothing", "negative"])
def test_sums_of_no_data_are_refused(case: str) -> None:
    sums = np.zeros(sums_layout(2, 2, 1).num_values)
    if case == "negative":
        sums[:] = -1.0
        assert not can_be_sums(sums_layout(2, 2, 1), sums)
    with pytest.raises(RoundError) as caught:
        solve_head(sums, 2, 2, 1, 1.0)
    assert caught.value.code == "head_sums"
