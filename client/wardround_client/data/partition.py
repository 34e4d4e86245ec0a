"""Deals the patients of shared data out to simulated sites.

1. Patients are dealt, not rows: nobody is at two sites, and everybody is at exactly one.
2. Several groups (the training and the test part of a published split) are dealt by one draw of
   proportions, so a site's test part looks like its training part.
3. The same input and seed give the same partition. Each group has a random stream of its own, so
   a shorter training part does not move test patients.
"""

from collections.abc import Callable, Sequence

import numpy as np

from wardround_common.errors import ConfigError
from wardround_common.modalities.base import FloatArray, IntArray
from wardround_common.spec.data import DirichletPartition, IidPartition, QuantityPartition

MAX_TRIES = 100
RandomPartition = IidPartition | DirichletPartition | QuantityPartition


def deal(
    partition: RandomPartition, num_sites: int, groups: Sequence[IntArray]
) -> tuple[IntArray, ...]:
    """Choose a site for every subject.

    Args:
        partition: how.
        num_sites: number of sites, at least 1.
        groups: one or more groups of subjects; int64 [k_g], class of each subject. Of the first
            group every site gets at least ``min_subjects`` (1 for iid), of the others at least 1.

    Returns:
        For each group int64 [k_g], the site of each subject in [0, num_sites).

    Raises:
        ConfigError: ``too_few_subjects``, or ``partition_impossible`` after 100 draws.
    """
    minimum = 1 if isinstance(partition, IidPartition) else partition.min_subjects
    floors = [minimum] + [1] * (len(groups) - 1)
    for group, floor in zip(groups, floors, strict=True):
        if len(group) < floor * num_sites:
            raise ConfigError(
                f"simulation.partition: {len(group)} subjects cannot give each of {num_sites} "
                f"sites at least {floor}; name fewer sites or lower min_subjects",
                code="too_few_subjects",
            )
    draw = _drawer(partition, num_sites, groups)
    streams = [np.random.PCG64([partition.seed, stream]) for stream in range(len(groups) + 1)]
    shares, *orders = [np.random.Generator(stream) for stream in streams]
    for _ in range(MAX_TRIES):
        dealt = draw(shares, orders)
        counts = [np.bincount(sites, minlength=num_sites).min() for sites in dealt]
        if all(count >= floor for count, floor in zip(counts, floors, strict=True)):
            return dealt
    raise ConfigError(
        f"simulation.partition: {MAX_TRIES} draws of kind {partition.kind!r} left a site with "
        f"fewer than {minimum} training subjects or without a test subject; raise alpha, "
        "lower min_subjects or name fewer sites",
        code="partition_impossible",
    )


Generator = np.random.Generator
Drawer = Callable[[Generator, Sequence[Generator]], tuple[IntArray, ...]]
"""From a stream for proportions and one for the order of each group to the sites of each group."""


def _drawer(partition: RandomPartition, num_sites: int, groups: Sequence[IntArray]) -> Drawer:
    """One draw of the wanted kind."""
    if isinstance(partition, IidPartition):
        return lambda _, orders: tuple(
            _equal_shares(len(group), num_sites, order)
            for group, order in zip(groups, orders, strict=True)
        )
    if isinstance(partition, QuantityPartition):
        alpha = np.full(num_sites, partition.alpha)

        def quantities(shares: Generator, orders: Sequence[Generator]) -> tuple[IntArray, ...]:
            share = shares.dirichlet(alpha)
            pairs = zip(groups, orders, strict=True)
            return tuple(_by_shares(len(group), share, order) for group, order in pairs)

        return quantities
    return _label_skew(partition, num_sites, groups)


def _label_skew(
    partition: DirichletPartition, num_sites: int, groups: Sequence[IntArray]
) -> Drawer:
    """Each class is dealt by its own Dirichlet draw (Hsu et al. 2019, section 3)."""
    values = np.unique(np.concatenate(groups))
    alpha = np.full(num_sites, partition.alpha)

    def draw(shares: Generator, orders: Sequence[Generator]) -> tuple[IntArray, ...]:
        share_of = shares.dirichlet(alpha, size=len(values))
        dealt: list[IntArray] = []
        for group, order in zip(groups, orders, strict=True):
            sites = np.zeros(len(group), dtype=np.int64)
            for value, share in zip(values, share_of, strict=True):
                members = np.flatnonzero(group == value)
                sites[members] = _by_shares(len(members), share, order)
            dealt.append(sites)
        return tuple(dealt)

    return draw


def _equal_shares(count: int, num_sites: int, rng: Generator) -> IntArray:
    """Sites of ``count`` subjects in random order; sizes differ by at most one."""
    return rng.permutation(np.arange(count, dtype=np.int64) % num_sites)


def _by_shares(count: int, shares: FloatArray, rng: Generator) -> IntArray:
    """Sites of ``count`` subjects in random order, in proportion to ``shares`` [num_sites]."""
    ends = np.rint(np.cumsum(shares) * count).astype(np.int64)
    ends[-1] = count
    sites = np.searchsorted(ends, np.arange(count), side="right").astype(np.int64)
    return rng.permutation(sites)
