"""Sums that do not depend on order, and means that are folded in the order of the roster."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.layout import as_bytes
from wardround_server.aggregation.exact_sum import ExactSum
from wardround_server.aggregation.fedavg import FedAvg
from wardround_server.rounds.roster_order import RosterOrder

NOTHING = np.zeros(0, dtype=np.float32)
SIZE = 40_000
"""More than one block, so that blocks are covered too."""


def _updates(count: int, size: int = SIZE) -> list[np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(0))
    scales = 10.0 ** rng.integers(-6, 1, size=(count, 1))
    updates = rng.normal(size=(count, size)) * scales
    return list((updates / np.linalg.norm(updates, axis=1, keepdims=True) * 9).astype(np.float32))


SITES = tuple(f"s{place}" for place in range(12))


def _mean_in_order_of_arrival(arrival: list[int], updates: list[np.ndarray]) -> np.ndarray:
    """Fold what arrives in any order, each weighted by its place in the roster plus one."""
    rule = FedAvg(updates[0].size)
    order = RosterOrder(SITES[: len(updates)], rule.fold)
    for place in arrival:
        order.put(SiteId(SITES[place]), lambda u=updates[place]: u, place + 1)
    order.close()
    return rule.finish(np.linspace(-1, 1, updates[0].size, dtype=np.float32), NOTHING)[0]


def _digest(values: np.ndarray) -> str:
    return sha256_hex(as_bytes(values))


@pytest.mark.parametrize("torch_threads", [1, 2, 3, 4])
def test_any_order_of_arrival_and_any_number_of_threads_give_one_digest(torch_threads: int) -> None:
    updates = _updates(12)
    expected = _digest(_mean_in_order_of_arrival(list(range(12)), updates))
    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads)
    try:
        for seed in range(4):
            arrival = np.random.Generator(np.random.PCG64(seed)).permutation(12).tolist()
            assert _digest(_mean_in_order_of_arrival(arrival, updates)) == expected
    finally:
        torch.set_num_threads(before)


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_each_update_is_folded_once_in_roster_order_whoever_stays_away(
    arrival: list[int], refused: set[int]
) -> None:
    folded: list[tuple[str, int]] = []
    order = RosterOrder(SITES[:8], lambda site, update, weight: folded.append((site, weight)))
    for place in arrival:
        if place in refused:
            order.skip(SiteId(SITES[place]))
        else:
            order.put(SiteId(SITES[place]), lambda: np.zeros(1, dtype=np.float32), place)
    order.close()  # the last two never answered
    assert folded == [(SITES[place], place) for place in range(6) if place not in refused]


def test_an_update_whose_turn_it_is_is_read_at_once_and_others_are_not_read() -> None:
    read: list[str] = []
    order = RosterOrder(("a", "b", "c"), lambda site, update, weight: None)

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: (read.append(name), np.zeros(1, dtype=np.float32))[1]

    order.put(SiteId("c"), reader("c"), 1)
    assert read == []
    assert order.is_next("a")
    order.put(SiteId("a"), reader("a"), 1)
    assert read == ["a"]
    order.skip(SiteId("b"))
    assert read == ["a", "c"]


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


def test_a_sum_is_right_to_twelve_digits_and_a_mean_to_six() -> None:
    updates = _updates(12, 300)
    weights = [1, 999, 7, 30, 2, 500, 64, 3, 11, 450, 88, 5]
    rule = FedAvg(300)
    total = ExactSum(300, bound=10.0 * 1000, terms=12)
    for update, weight in zip(updates, weights, strict=True):
        rule.fold(SiteId("any"), update, weight)
        total.add(update, scale=float(weight))
    terms = [u.astype(np.float64) * w for u, w in zip(updates, weights, strict=True)]
    exact = np.array([math.fsum(column) for column in np.array(terms).T])
    np.testing.assert_allclose(total.total(), exact, rtol=1e-12)
    mean = rule.finish(np.zeros(300, dtype=np.float32), NOTHING)[0]
    largest = np.abs(np.array(terms)).max() / sum(weights)
    np.testing.assert_allclose(mean, exact / sum(weights), atol=1e-6 * largest)


def test_the_mean_is_that_of_flower() -> None:
    updates, weights = _updates(5, 500), [10, 20, 30, 5, 700]
    rule = FedAvg(500)
    replies = []
    for update, weight in zip(updates, weights, strict=True):
        rule.fold(SiteId("any"), update, weight)
        arrays = ArrayRecord({"w": Array.from_numpy_ndarray(update)})
        replies.append(RecordDict({"a": arrays, "m": MetricRecord({"num-examples": weight})}))
    theirs = aggregate_arrayrecords(replies, "num-examples")["w"].numpy()
    ours = rule.finish(np.zeros(500, dtype=np.float32), NOTHING)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_largest_allowed_weights_and_norms_do_not_overflow() -> None:
    rule = FedAvg(2)
    for _ in range(1000):
        rule.fold(SiteId("any"), np.array([1e6, -1e-6], dtype=np.float32), 10_000_000)
    moved = rule.finish(np.zeros(2, dtype=np.float32), NOTHING)[0]
    np.testing.assert_allclose(moved, [1e6, -1e-6], rtol=1000 * 2.0**-24)


def test_more_terms_than_announced_are_refused() -> None:
    total = ExactSum(1, bound=1.0, terms=2)
    total.add(np.ones(1))
    total.add(np.ones(1))
    with pytest.raises(ValueError, match="announced 2"):
        total.add(np.ones(1))
    assert total.num_added == 2


def test_a_mean_of_nothing_is_refused_and_a_sum_of_nothing_is_zero() -> None:
    with pytest.raises(ValueError, match="no update"):
        FedAvg(3).finish(np.zeros(3, dtype=np.float32), NOTHING)
    assert not ExactSum(3, bound=1.0, terms=1).total().any()


def test_an_update_is_not_changed_by_being_folded() -> None:
    (update,) = _updates(1)
    kept = update.copy()
    FedAvg(SIZE).fold(SiteId("any"), update, 3)
    np.testing.assert_array_equal(update, kept)
