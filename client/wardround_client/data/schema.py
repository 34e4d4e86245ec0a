"""Holds raw data against the federation's schema and gives checked examples.

All findings are collected before the data is refused, so that a hospital mends its file once and
not once for every mistake.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wardround_client.data.cells import (
    check_categories,
    check_labels,
    check_numbers,
    check_subjects,
    check_tags,
    check_texts,
)
from wardround_client.data.columns import MISSING, RawData
from wardround_client.data.findings import Finding, Findings, SchemaError
from wardround_client.data.identities import identities
from wardround_client.data.images import resize_all
from wardround_client.data.manifest import read_images
from wardround_common.modalities.base import (
    Examples,
    FloatArray,
    ImageInputs,
    Inputs,
    IntArray,
    TableInputs,
    TextInputs,
    TokenInputs,
)
from wardround_common.spec.data import (
    ColumnSplit,
    DataSpec,
    ImageData,
    Split,
    TabularData,
    TextData,
    TokenData,
)
from wardround_common.spec.federation import TaskSpec

TRAIN, TEST, LEFT_OUT = 0, 1, -1


@dataclass(frozen=True, slots=True)
class Checked:
    """Data that has the declared schema.

    Attributes:
        examples: the usable rows in file order.
        parts: int64 [n], TRAIN or TEST of each row where a column names the part; else None.
        columns: further columns that were asked for (the hospital's name), one cell a row.
        findings: warnings.
        digests: (relative name, SHA-256) of every file that was read.
    """

    examples: Examples
    parts: IntArray | None
    columns: dict[str, tuple[str, ...]]
    findings: tuple[Finding, ...]
    digests: tuple[tuple[str, str], ...]


def columns_needed(data: DataSpec, *, pixels_in_data: bool = False) -> tuple[str, ...]:
    """The columns that the schema declares, in a stable order.

    Args:
        data: the ``[data]`` table.
        pixels_in_data: True for npz, where images need no file column.
    """
    names: list[str] = []
    if isinstance(data, TabularData):
        names += [*data.numeric, *data.categorical]
    elif isinstance(data, TextData):
        names.append(data.text)
    elif isinstance(data, ImageData) and not pixels_in_data:
        names.append(data.file)
    if not isinstance(data, TokenData):
        names.append(data.label)
    if data.subject is not None:
        names.append(data.subject)
    if isinstance(data.split, ColumnSplit):
        names.append(data.split.column)
    return tuple(dict.fromkeys(names))


def check(raw: RawData, data: DataSpec, task: TaskSpec, extra: Sequence[str] = ()) -> Checked:
    """Check everything and encode labels, numbers and categories.

    Args:
        raw: what the reader gave.
        data: the declared schema.
        task: the classes or entity types.
        extra: further columns to keep as text.

    Returns:
        The usable rows.

    Raises:
        SchemaError: with every error found (a DataError; code of the first).
    """
    found = Findings(raw.name)
    _check_columns(
        raw, [*columns_needed(data, pixels_in_data=raw.images is not None), *extra], found
    )
    _check_content(raw, data, found)
    found.raise_errors()
    parts = _parts(raw, data.split, found)
    rows = np.flatnonzero(parts != LEFT_OUT).astype(np.int64)
    if isinstance(data, TabularData) and data.missing == "drop":
        rows = _complete(raw, data, rows, found)
    if not len(rows):
        found.add(Finding("no_rows", f"no usable row of {raw.num_rows} is left", None, 0))
        found.raise_errors()
    subjects = check_subjects(raw, rows, data.subject, found)
    if isinstance(data, TokenData):
        targets = check_tags(raw, rows, task.labels, found)
    else:
        targets = check_labels(
            raw, rows, data.label, found, mapping=data.label_map, labels=task.labels
        )
    inputs, digests = _inputs(raw, rows, data, found)
    named_parts = parts[rows] if isinstance(data.split, ColumnSplit) else None
    if named_parts is not None:
        _check_leakage(subjects, named_parts, data.subject, found)
    found.raise_errors()
    columns = {name: tuple(raw.cells(name, rows)) for name in extra}
    return Checked(
        Examples(inputs, targets, subjects, identities(raw, rows, data.subject)),
        named_parts,
        columns,
        found.warnings,
        (*raw.digests, *digests),
    )


def _check_columns(raw: RawData, names: Sequence[str], found: Findings) -> None:
    """Find the declared columns that the data has not."""
    for name in dict.fromkeys(names):
        if name not in raw.columns:
            found.add(
                Finding(
                    "missing_column",
                    "declared by the federation, not in the data (map it with data.rename); "
                    f"the data has {list(raw.available)}",
                    name,
                    1,
                )
            )


def _check_content(raw: RawData, data: DataSpec, found: Findings) -> None:
    """Find data of another kind than the modality needs."""
    if isinstance(data, TokenData) != (raw.words is not None):
        found.add(
            Finding(
                "wrong_format",
                f'modality {data.modality!r} does not read this format; "tokens" needs "conll"',
                None,
                1,
            )
        )
    elif raw.images is not None and not isinstance(data, ImageData):
        found.add(
            Finding("wrong_format", f"modality {data.modality!r} does not read images", None, 1)
        )


def _parts(raw: RawData, split: Split, found: Findings) -> IntArray:
    """TRAIN, TEST or LEFT_OUT of every row, int64 [num_rows]; all TRAIN without a split column."""
    if not isinstance(split, ColumnSplit):
        return np.zeros(raw.num_rows, dtype=np.int64)
    known = dict.fromkeys(split.test, TEST) | dict.fromkeys(split.train, TRAIN)
    cells = raw.cells(split.column, np.arange(raw.num_rows, dtype=np.int64))
    parts = np.array([known.get(cell, LEFT_OUT) for cell in cells], dtype=np.int64)
    found.rows(
        "left_out_by_split",
        "rows whose part is neither in data.split.train nor in data.split.test are left out",
        split.column,
        np.flatnonzero(parts == LEFT_OUT).tolist(),
        error=False,
    )
    return parts


def _complete(raw: RawData, data: TabularData, rows: IntArray, found: Findings) -> IntArray:
    """The rows without an empty cell in a feature or the label."""
    complete = np.ones(len(rows), dtype=np.bool_)
    for column in (*data.numeric, *data.categorical, data.label):
        known = data.categorical.get(column, ())
        cells = raw.cells(column, rows)
        complete &= [cell not in MISSING or cell in known for cell in cells]
    found.rows(
        "dropped_incomplete",
        'rows with an empty cell are left out (data.missing = "drop")',
        None,
        rows[~complete].tolist(),
        error=False,
    )
    return rows[complete]


def _inputs(
    raw: RawData, rows: IntArray, data: DataSpec, found: Findings
) -> tuple[Inputs, tuple[tuple[str, str], ...]]:
    """The raw inputs of ``rows``, and the digests of image files."""
    if isinstance(data, TabularData):
        numeric = [check_numbers(raw, rows, column, found) for column in data.numeric]
        categorical = [
            check_categories(raw, rows, column, allowed, found)
            for column, allowed in data.categorical.items()
        ]
        numbers: FloatArray = np.stack(numeric, axis=1) if numeric else np.zeros((len(rows), 0))
        codes: IntArray = (
            np.stack(categorical, axis=1)
            if categorical
            else np.zeros((len(rows), 0), dtype=np.int64)
        )
        return TableInputs(numbers, codes), ()
    if isinstance(data, TextData):
        return TextInputs(check_texts(raw, rows, data.text, found)), ()
    if isinstance(data, ImageData):
        if raw.images is not None:
            return ImageInputs(resize_all(raw.images, data.size)[rows]), ()
        pixels, digests = read_images(raw, rows, data.file, data.size, found)
        return ImageInputs(pixels), digests
    assert raw.words is not None
    return TokenInputs(tuple(raw.words[row] for row in rows)), ()


def _check_leakage(
    subjects: IntArray, parts: IntArray, column: str | None, found: Findings
) -> None:
    """Find patients that are in the training and in the test part of a published split."""
    both = np.intersect1d(subjects[parts == TRAIN], subjects[parts == TEST])
    if len(both):
        found.add(
            Finding(
                "subject_in_two_parts",
                "patients with rows in the training and in the test part; "
                "the test would measure memory, not medicine",
                column,
                len(both),
            )
        )


__all__ = ["TEST", "TRAIN", "Checked", "SchemaError", "check", "columns_needed"]
