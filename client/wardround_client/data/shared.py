"""Which rows of shared data each simulated site holds.

The plan for all sites is made at once and the same way, whichever site asks.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from wardround_client.data.findings import Finding
from wardround_client.data.partition import deal
from wardround_client.data.schema import TEST, TRAIN, Checked
from wardround_client.data.split import Parts, take_validation, train_and_test
from wardround_client.data.subjects import example_classes, tabulate
from wardround_common.errors import ConfigError
from wardround_common.modalities.base import IntArray
from wardround_common.spec.data import ColumnPartition, DataTable
from wardround_common.spec.site import SharedPart


def whole(checked: Checked, data: DataTable) -> Parts:
    """The parts of a site that holds all rows."""
    classes = example_classes(checked.examples)
    rows = np.arange(len(checked.examples), dtype=np.int64)
    train, test = train_and_test(rows, checked.examples, classes, data, checked.parts)
    train, validation = take_validation(train, checked.examples, classes, data)
    return Parts(train, validation, test)


def share_out(checked: Checked, data: DataTable, shared: SharedPart) -> tuple[Parts, ...]:
    """The parts of every site, in roster order.

    With a published split, ``shared.subset`` keeps the first training rows before they are dealt
    out. With a random split the training rows are known only after dealing and splitting; then the
    first of them, in file order over all sites, are kept. The test parts are never cut.

    Raises:
        ConfigError: the partition is impossible, or a site gets no row (``empty_site``).
    """
    examples, classes = checked.examples, example_classes(checked.examples)
    rows = np.arange(len(examples), dtype=np.int64)
    if checked.parts is not None:
        rows = _first(rows, checked.parts == TRAIN, shared.subset)
    owners = _owners(checked, classes, rows, shared)
    cuts = [
        train_and_test(rows[owners == place], examples, classes, data, checked.parts)
        for place in range(len(shared.sites))
    ]
    if checked.parts is None and shared.subset is not None:
        everything = np.sort(np.concatenate([train for train, _ in cuts]))
        kept = everything[: shared.subset]
        cuts = [(train[np.isin(train, kept)], test) for train, test in cuts]
    parts: list[Parts] = []
    for name, (train, test) in zip(shared.sites, cuts, strict=True):
        if not len(train):
            raise ConfigError(
                f"simulation.partition: site {name!r} gets no training row; "
                "correct the partition's values or raise simulation.subset",
                code="empty_site",
            )
        trained, validation = take_validation(train, examples, classes, data)
        parts.append(Parts(trained, validation, test))
    return tuple(parts)


def _first(rows: IntArray, training: np.ndarray, subset: int | None) -> IntArray:
    """All test rows and the first ``subset`` training rows, ascending."""
    if subset is None:
        return rows
    return np.sort(np.concatenate([rows[training][:subset], rows[~training]]))


def _owners(checked: Checked, classes: IntArray, rows: IntArray, shared: SharedPart) -> IntArray:
    """The site of each of ``rows``: place in the roster, -1 for none."""
    partition = shared.partition
    if isinstance(partition, ColumnPartition):
        return _named_owners(checked.columns[partition.column], rows, partition, shared.sites)
    subjects = checked.examples.subjects
    selections = [rows]
    if checked.parts is not None:
        selections = [rows[checked.parts[rows] == part] for part in (TRAIN, TEST)]
    selections = [selection for selection in selections if len(selection)]
    tables = [tabulate(subjects[selection], classes[selection]) for selection in selections]
    dealt = deal(partition, len(shared.sites), [table.classes for table in tables])
    owners = np.full(len(checked.examples), -1, dtype=np.int64)
    for selection, table, sites in zip(selections, tables, dealt, strict=True):
        owners[selection] = sites[table.codes]
    return owners[rows]


def _named_owners(
    cells: Sequence[str], rows: IntArray, partition: ColumnPartition, sites: Sequence[str]
) -> IntArray:
    """Owners by the value of a column."""
    unknown = sorted(set(sites) - set(partition.values))
    if unknown:
        raise ConfigError(
            f"simulation.partition.values has no entry for site {unknown[0]!r}",
            code="site_without_values",
        )
    owner: Mapping[str, int] = {
        value: place for place, site in enumerate(sites) for value in partition.values[site]
    }
    return np.array([owner.get(cells[int(row)], -1) for row in rows], dtype=np.int64)


def sharing_warnings(checked: Checked, shared: SharedPart) -> tuple[Finding, ...]:
    """Warnings about a partition by column: rows of no site, patients of several."""
    partition = shared.partition
    if not isinstance(partition, ColumnPartition):
        return ()
    rows = np.arange(len(checked.examples), dtype=np.int64)
    owners = _named_owners(checked.columns[partition.column], rows, partition, shared.sites)
    found: list[Finding] = []
    homeless = np.flatnonzero(owners < 0)
    if len(homeless):
        message = "rows whose hospital is in no site's simulation.partition.values are left out"
        found.append(
            Finding("row_of_no_site", message, partition.column, len(homeless), error=False)
        )
    owned = owners >= 0
    pairs = np.unique(np.stack([checked.examples.subjects[owned], owners[owned]]), axis=1)
    _, sites_each = np.unique(pairs[0], return_counts=True)
    several = int((sites_each > 1).sum())
    if several:
        message = "patients with rows at several sites; real sites could not know this"
        found.append(
            Finding("subject_at_two_sites", message, partition.column, several, error=False)
        )
    return tuple(found)
