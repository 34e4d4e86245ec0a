"""Sums and means that do not depend on order, grouping or threads."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.types import sha256_hex
from wardround_common.wire.layout import as_bytes
from wardround_server.aggregation.exact_sum import ExactSum
from wardround_server.aggregation.fedavg import FedAvg

SIZE = 40_000
"""More than one block, so that blocks are covered too."""


def _updates(count: int, size: int = SIZE) -> list[np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(0))
    scales = 10.0 ** rng.integers(-6, 1, size=(count, 1))
    updates = rng.normal(size=(count, size)) * scales
    return list((updates / np.linalg.norm(updates, axis=1, keepdims=True) * 9).astype(np.float32))


def _fedavg(size: int = SIZE, sites: int = 12) -> FedAvg:
    return FedAvg(size, max_sites=sites, update_norm=10.0, max_subjects=1000)


def _digest(values: np.ndarray) -> str:
    return sha256_hex(as_bytes(values))


@pytest.mark.parametrize("torch_threads", [1, 2, 3, 4])
def test_any_order_and_any_number_of_threads_give_one_digest(torch_threads: int) -> None:
    updates = _updates(12)
    weights = list(range(1, 13))
    state = np.linspace(-1, 1, SIZE, dtype=np.float32)
    reference = _fedavg()
    for update, weight in zip(updates, weights, strict=True):
        reference.fold(update, weight)
    expected = _digest(reference.finish(state))
    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads)
    try:
        for workers in range(1, 5):
            order = np.random.Generator(np.random.PCG64(workers)).permutation(12)
            rule = _fedavg()
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(lambda i, r=rule: r.fold(updates[i], weights[i]), order))
            assert _digest(rule.finish(state)) == expected
    finally:
        torch.set_num_threads(before)


def test_plain_float32_sums_of_the_same_updates_differ_with_the_order() -> None:
    """The failing twin: what a running mean would have given."""
    updates = _updates(12)
    digests = set()
    for seed in range(6):
        total = np.zeros(SIZE, dtype=np.float32)
        for i in np.random.Generator(np.random.PCG64(seed)).permutation(12):
            total += updates[i] * np.float32(i + 1)
        digests.add(_digest(total))
    assert len(digests) > 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
)
def test_a_sum_is_that_of_exact_arithmetic(terms: list[float], seed: int, folds: int) -> None:
    sums = []
    for order in (0, 1):
        shuffled = list(terms)
        if order:
            np.random.Generator(np.random.PCG64(seed)).shuffle(shuffled)
        total = ExactSum(1, bound=1e3, terms=len(terms), folds=folds)
        for term in shuffled:
            total.add(np.array([term], dtype=np.float32))
        sums.append(total.total()[0])
    assert sums[0] == sums[1]
    resolution = 1e3 * (2 * len(terms) * 2.0**-49) ** folds
    exact = math.fsum(terms)
    assert abs(sums[0] - exact) <= resolution * len(terms) + 2**-52 * abs(exact)


def test_a_mean_is_right_to_twelve_digits() -> None:
    updates = _updates(12, 300)
    weights = [1, 999, 7, 30, 2, 500, 64, 3, 11, 450, 88, 5]
    rule = _fedavg(300)
    total = ExactSum(300, bound=10.0 * 1000, terms=12)
    for update, weight in zip(updates, weights, strict=True):
        rule.fold(update, weight)
        total.add(update, scale=float(weight))
    terms = [u.astype(np.float64) * w for u, w in zip(updates, weights, strict=True)]
    exact = np.array([math.fsum(column) for column in np.array(terms).T])
    np.testing.assert_allclose(total.total(), exact, rtol=1e-12)
    state = np.ones(300, dtype=np.float32)
    expected = (1.0 + exact / sum(weights)).astype(np.float32)
    np.testing.assert_array_equal(rule.finish(state), expected)


def test_the_mean_is_that_of_flower() -> None:
    updates, weights = _updates(5, 500), [10, 20, 30, 5, 700]
    rule = _fedavg(500)
    replies = []
    for update, weight in zip(updates, weights, strict=True):
        rule.fold(update, weight)
        arrays = ArrayRecord({"w": Array.from_numpy_ndarray(update)})
        replies.append(RecordDict({"a": arrays, "m": MetricRecord({"num-examples": weight})}))
    theirs = aggregate_arrayrecords(replies, "num-examples")["w"].numpy()
    ours = rule.finish(np.zeros(500, dtype=np.float32))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_largest_allowed_weights_and_norms_do_not_overflow() -> None:
    rule = FedAvg(2, max_sites=1000, update_norm=1e6, max_subjects=10_000_000)
    for _ in range(1000):
        rule.fold(np.array([1e6, -1e-6], dtype=np.float32), 10_000_000)
    moved = rule.finish(np.zeros(2, dtype=np.float32))
    np.testing.assert_allclose(moved, [1e6, -1e-6], rtol=1e-6)


def test_more_terms_than_announced_are_refused() -> None:
    total = ExactSum(1, bound=1.0, terms=2)
    total.add(np.ones(1))
    total.add(np.ones(1))
    with pytest.raises(ValueError, match="announced 2"):
        total.add(np.ones(1))
    assert total.num_added == 2


def test_a_mean_of_nothing_is_refused_and_a_sum_of_nothing_is_zero() -> None:
    with pytest.raises(ValueError, match="no update"):
        _fedavg().finish(np.zeros(SIZE, dtype=np.float32))
    assert not ExactSum(3, bound=1.0, terms=1).total().any()


def test_an_update_is_not_changed_by_being_folded() -> None:
    (update,) = _updates(1)
    kept = update.copy()
    _fedavg().fold(update, 3)
    np.testing.assert_array_equal(update, kept)
