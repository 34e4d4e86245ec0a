"""Partitions: every subject at exactly one site, every site with enough, always the same."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_client.data.partition import deal
from wardround_client.data.schema import Checked
from wardround_client.data.shared import share_out
from wardround_common.errors import ConfigError
from wardround_common.modalities.base import Examples, TextInputs
from wardround_common.spec.data import (
    DirichletPartition,
    IidPartition,
    QuantityPartition,
    TextData,
)
from wardround_common.spec.site import SharedPart

seeds = st.integers(0, 2**32 - 1)
classes = st.lists(st.integers(0, 4), min_size=30, max_size=200).map(np.array)
alphas = st.sampled_from([0.3, 1.0, 10.0])


@st.composite
def partitions(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["iid", "dirichlet", "quantity"]))
    table: dict[str, Any] = {"kind": kind, "seed": draw(seeds)}
    if kind != "iid":
        table |= {"alpha": draw(alphas), "min_subjects": draw(st.integers(1, 5))}
    return table


def _deal(table: dict[str, Any], num_sites: int, groups: list[np.ndarray]):
    kinds = {"iid": IidPartition, "dirichlet": DirichletPartition, "quantity": QuantityPartition}
    return deal(kinds[table["kind"]].model_validate(table), num_sites, groups)


@settings(max_examples=60, deadline=None)
@given(table=partitions(), num_sites=st.integers(1, 5), group=classes)
def test_every_site_has_its_minimum_or_the_partition_is_refused(table, num_sites, group):
    try:
        (sites,) = _deal(table, num_sites, [group])
    except ConfigError as error:
        assert (error.code, table["kind"] == "iid") == ("partition_impossible", False)  # noqa: PT017
        return
    assert sites.shape == group.shape
    counts = np.bincount(sites, minlength=num_sites)
    assert len(counts) == num_sites
    assert counts.min() >= table.get("min_subjects", 1)


@settings(max_examples=30, deadline=None)
@given(group=classes, num_sites=st.integers(1, 9), seed=seeds)
def test_iid_shares_differ_by_one_subject_at_most(group, num_sites, seed):
    (sites,) = _deal({"kind": "iid", "seed": seed}, num_sites, [group])
    assert np.ptp(np.bincount(sites, minlength=num_sites)) <= 1


@settings(max_examples=30, deadline=None)
@given(table=partitions(), group=classes)
def test_the_same_seed_gives_the_same_partition(table, group):
    try:
        first = _deal(table, 2, [group, group[:20]])
    except ConfigError:
        with pytest.raises(ConfigError):
            _deal(table, 2, [group, group[:20]])
        return
    for once, again in zip(first, _deal(table, 2, [group, group[:20]]), strict=True):
        assert np.array_equal(once, again)


@st.composite
def shared_data(draw: st.DrawFn) -> tuple[Checked, np.ndarray]:
    """Rows of 30 to 60 patients, with or without a published split that respects them."""
    num_subjects = draw(st.integers(30, 60))
    rng = np.random.default_rng(draw(seeds))
    subjects = rng.permutation(np.concatenate([np.arange(num_subjects)] * 2))
    labels = rng.integers(0, 3, len(subjects))
    parts = None
    if draw(st.booleans()):
        of_subject = (np.arange(num_subjects) % 3 == 0).astype(np.int64)
        parts = of_subject[subjects]
    examples = Examples(
        TextInputs(tuple(str(row) for row in range(len(subjects)))),
        tuple(np.array([label]) for label in labels),
        subjects,
    )
    return Checked(examples, parts, {}, (), ()), subjects


@settings(max_examples=60, deadline=None)
@given(shared=shared_data(), table=partitions(), validation=st.sampled_from([0.0, 0.3]))
def test_every_row_is_at_exactly_one_site_in_one_part_and_no_patient_is_in_two(
    shared, table, validation
):
    checked, subjects = shared
    data = TextData(modality="text", text="t", label="l", validation_fraction=validation)
    part = SharedPart.model_validate({"partition": table, "sites": ("a", "b", "c")})
    try:
        plan = share_out(checked, data, part)
    except ConfigError as error:
        assert error.code == "partition_impossible"  # noqa: PT017
        return
    pieces = [rows for parts in plan for rows in (parts.train, parts.validation, parts.test)]
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(subjects)))
    owners = [set(subjects[piece].tolist()) for piece in pieces]
    assert sum(map(len, owners)) == len(set().union(*owners))
    for parts in plan:
        held = set(subjects[np.concatenate([parts.train, parts.validation, parts.test])].tolist())
        assert len(parts.train)
        assert len(parts.test) or len(held) == 1
        if checked.parts is not None:
            assert set(checked.parts[parts.test].tolist()) == {1}
            assert not checked.parts[parts.train].any()


@settings(max_examples=30, deadline=None)
@given(shared=shared_data(), subset=st.integers(40, 80))
def test_a_subset_shortens_training_only_and_takes_the_first_rows(shared, subset):
    checked, _ = shared
    data = TextData(modality="text", text="t", label="l")
    part = {"partition": {"kind": "iid", "seed": 3}, "sites": ("a", "b")}
    whole = share_out(checked, data, SharedPart.model_validate(part))
    cut = share_out(checked, data, SharedPart.model_validate(part | {"subset": subset}))
    all_train = np.sort(np.concatenate([parts.train for parts in whole]))
    cut_train = np.sort(np.concatenate([parts.train for parts in cut]))
    assert np.array_equal(cut_train, all_train[:subset])
    for before, after in zip(whole, cut, strict=True):
        assert np.array_equal(before.test, after.test)


def test_label_skew_is_the_same_in_training_and_test():
    groups = [np.repeat([0, 1], 500), np.repeat([0, 1], 200)]
    table = {"kind": "dirichlet", "alpha": 0.3, "min_subjects": 1, "seed": 4}
    train, test = _deal(table, 3, groups)
    for site in range(3):
        shares = [
            np.mean(group[sites == site])
            for group, sites in zip(groups, (train, test), strict=True)
        ]
        assert abs(shares[0] - shares[1]) < 0.1
    assert np.ptp([np.mean(groups[0][train == site]) for site in range(3)]) > 0.3


def test_refuses_more_sites_than_subjects_and_draws_that_never_fit():
    with pytest.raises(ConfigError, match="cannot give each of 4 sites") as caught:
        _deal({"kind": "iid", "seed": 0}, 4, [np.zeros(3, dtype=np.int64)])
    assert caught.value.code == "too_few_subjects"
    table = {"kind": "dirichlet", "alpha": 0.001, "min_subjects": 30, "seed": 0}
    with pytest.raises(ConfigError, match="100 draws") as caught:
        _deal(table, 3, [np.zeros(90, dtype=np.int64)])
    assert caught.value.code == "partition_impossible"
