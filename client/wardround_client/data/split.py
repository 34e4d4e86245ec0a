"""Training, validation and test part of one site.

1. Whole patients are dealt out: no subject is in two parts.
2. The same rows and seed give the same parts, on every machine.
3. A class with a single subject stays in training; as long as a site has two subjects, both
   sides of a cut have one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround_client.data.findings import Finding
from wardround_client.data.subjects import tabulate
from wardround_common.modalities.base import Examples, IntArray
from wardround_common.spec.data import DataTable, SubjectSplit
from wardround_common.types import Digest

_TEST_STREAM, _VALIDATION_STREAM = 0, 1


@dataclass(frozen=True, slots=True)
class SiteExamples:
    """All that a site trains and measures on.

    Attributes:
        train: what training reads.
        validation: held out of training for federated validation; may be empty.
        test: held out for the report; may be empty.
        findings: warnings about the data.
        data_sha256: digest of the files' bytes and of which part of them this is.
    """

    train: Examples
    validation: Examples
    test: Examples
    findings: tuple[Finding, ...]
    data_sha256: Digest


@dataclass(frozen=True, slots=True)
class Parts:
    """Row indices of the three parts: int64, ascending, pairwise disjoint."""

    train: IntArray
    validation: IntArray
    test: IntArray


def hold_out(
    classes: IntArray, fraction: float, *, stratify: bool, seed: int, stream: int = _TEST_STREAM
) -> npt.NDArray[np.bool_]:
    """Choose the subjects to hold out.

    Args:
        classes: int64 [k], class of each subject.
        fraction: share to hold out, in [0, 1].
        stratify: keep the share of each class (largest remainder), at least one of each class
            staying behind.
        seed: seed of the choice.
        stream: separates choices under one seed.

    Returns:
        bool [k], True for held out; with 0 < fraction < 1 and k >= 2 at least one, at most k - 1.
    """
    held = np.zeros(len(classes), dtype=np.bool_)
    if fraction <= 0.0 or len(classes) < 2:
        return held
    rng = np.random.Generator(np.random.PCG64([seed, stream]))
    total = min(max(round(fraction * len(classes)), 1), len(classes) - 1)
    groups = [np.arange(len(classes))]
    if stratify:
        groups = [np.flatnonzero(classes == value) for value in np.unique(classes)]
    sizes = np.array([len(group) for group in groups])
    quotas = _quotas(sizes, fraction, total)
    for group, quota in zip(groups, quotas.tolist(), strict=True):
        held[rng.permutation(group)[:quota]] = True
    if not held.any():  # every class has one subject: stratifying is impossible
        held[rng.permutation(len(classes))[:total]] = True
    return held


def _quotas(sizes: IntArray, fraction: float, total: int) -> IntArray:
    """How many of each group to hold out: largest remainder, at most all but one."""
    exact = sizes * fraction
    limits = sizes - 1
    quotas: IntArray = np.minimum(np.floor(exact).astype(np.int64), limits)
    for group in np.argsort(-(exact - np.floor(exact)), kind="stable").tolist():
        if quotas.sum() >= total:
            break
        quotas[group] += int(quotas[group] < limits[group])
    return quotas


def train_and_test(
    rows: IntArray, examples: Examples, classes: IntArray, data: DataTable, parts: IntArray | None
) -> tuple[IntArray, IntArray]:
    """Cut a site's rows into training (validation included) and test.

    Args:
        rows: int64 [m], ascending: the site's rows.
        examples: the examples that ``rows`` index.
        classes: int64 [n], class of each example.
        data: the ``[data]`` table.
        parts: int64 [n] of a published split (0 training, 1 test), or None for a random one.
    """
    if parts is not None:
        return rows[parts[rows] == 0], rows[parts[rows] == 1]
    assert isinstance(data.split, SubjectSplit)
    table = tabulate(examples.subjects[rows], classes[rows])
    held = hold_out(
        table.classes, data.split.test_fraction, stratify=data.split.stratify, seed=data.split.seed
    )
    in_test = held[table.codes]
    return rows[~in_test], rows[in_test]


def take_validation(
    rows: IntArray, examples: Examples, classes: IntArray, data: DataTable
) -> tuple[IntArray, IntArray]:
    """Cut training rows into what is trained on and what validates.

    Args:
        rows: int64 [m], ascending: the site's training rows.
        examples: the examples that ``rows`` index.
        classes: int64 [n], class of each example.
        data: the ``[data]`` table.
    """
    table = tabulate(examples.subjects[rows], classes[rows])
    random = data.split if isinstance(data.split, SubjectSplit) else SubjectSplit()
    held = hold_out(
        table.classes,
        data.validation_fraction,
        stratify=random.stratify,
        seed=random.seed,
        stream=_VALIDATION_STREAM,
    )
    held_rows = held[table.codes]
    return rows[~held_rows], rows[held_rows]
