"""Checks of single columns: labels, numbers, categories, texts, tags, and who the subject is."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from wardround_client.data.columns import MISSING, RawData
from wardround_client.data.findings import Findings
from wardround_common.modalities.base import FloatArray, IntArray


def check_labels(
    raw: RawData,
    rows: IntArray,
    column: str,
    found: Findings,
    *,
    mapping: Mapping[str, str],
    labels: Sequence[str],
) -> tuple[IntArray, ...]:
    """Labels as class indices.

    Args:
        raw: the data.
        rows: int64 [n], the rows to read.
        column: the label column.
        found: receives ``missing_label`` and ``unknown_label``.
        mapping: raw value -> class name; empty when raw values are class names.
        labels: class names in model order.

    Returns:
        n arrays int64 [1]; class 0 stands in where an error was found.
    """
    index = {label: place for place, label in enumerate(labels)}
    known = {value: index[label] for value, label in mapping.items()} if mapping else index
    cells = raw.cells(column, rows)
    missing = [place for place, cell in enumerate(cells) if cell in MISSING and cell not in known]
    unknown = [
        place for place, cell in enumerate(cells) if cell not in known and cell not in MISSING
    ]
    found.rows("missing_label", "rows without a label", column, rows[missing].tolist())
    found.rows(
        "unknown_label",
        f"labels outside {'data.label_map' if mapping else 'task.labels'} ({sorted(known)})",
        column,
        rows[unknown].tolist(),
        value=cells[unknown[0]] if unknown else None,
    )
    return tuple(np.array([known.get(cell, 0)], dtype=np.int64) for cell in cells)


def check_numbers(raw: RawData, rows: IntArray, column: str, found: Findings) -> FloatArray:
    """A numeric column as float64 [n], NaN where the cell is empty.

    Finds ``not_a_number`` and ``not_finite`` (also a written "nan": an empty cell means missing).
    """
    cells = raw.cells(column, rows)
    values = np.full(len(cells), math.nan)
    wrong: list[int] = []
    infinite: list[int] = []
    for place, cell in enumerate(cells):
        if cell in MISSING:
            continue
        value = _number(cell)
        if value is None:
            wrong.append(place)
        elif not math.isfinite(value):
            infinite.append(place)
        else:
            values[place] = value
    found.rows(
        "not_a_number",
        "cells that are not numbers (decimal point, no unit, empty for missing)",
        column,
        rows[wrong].tolist(),
        value=cells[wrong[0]] if wrong else None,
    )
    found.rows(
        "not_finite",
        "infinite or NaN cells; leave missing cells empty",
        column,
        rows[infinite].tolist(),
        value=cells[infinite[0]] if infinite else None,
    )
    return values


def _number(cell: str) -> float | None:
    """The number that a cell says, None if it says none."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def check_categories(
    raw: RawData, rows: IntArray, column: str, allowed: Sequence[str], found: Findings
) -> IntArray:
    """A categorical column as int64 [n]: place in ``allowed``, -1 where the cell is empty.

    Finds ``unknown_category``.
    """
    index = {value: place for place, value in enumerate(allowed)}
    cells = raw.cells(column, rows)
    unknown = [
        place for place, cell in enumerate(cells) if cell not in index and cell not in MISSING
    ]
    found.rows(
        "unknown_category",
        f"values outside data.categorical ({list(allowed)})",
        column,
        rows[unknown].tolist(),
        value=cells[unknown[0]] if unknown else None,
    )
    return np.array([index.get(cell, -1) for cell in cells], dtype=np.int64)


def check_texts(raw: RawData, rows: IntArray, column: str, found: Findings) -> tuple[str, ...]:
    """The texts; finds ``empty_text``."""
    texts = raw.cells(column, rows)
    empty = [place for place, text in enumerate(texts) if not text]
    found.rows(
        "empty_text", "texts without a word; leave these rows out", column, rows[empty].tolist()
    )
    return tuple(texts)


def check_tags(
    raw: RawData, rows: IntArray, labels: Sequence[str], found: Findings
) -> tuple[IntArray, ...]:
    """Tags as indices, one int64 [num_words] a sentence; finds ``unknown_tag``."""
    assert raw.tags is not None
    index = {label: place for place, label in enumerate(labels)}
    unknown: dict[int, str] = {}
    targets: list[IntArray] = []
    for row in rows.tolist():
        tags = raw.tags[row]
        for tag in tags:
            if tag not in index:
                unknown.setdefault(row, tag)
        targets.append(np.array([index.get(tag, 0) for tag in tags], dtype=np.int64))
    found.rows(
        "unknown_tag",
        f"sentences with tags outside task.types ({list(labels)})",
        None,
        list(unknown),
        value=next(iter(unknown.values()), None),
    )
    return tuple(targets)


def check_subjects(raw: RawData, rows: IntArray, column: str | None, found: Findings) -> IntArray:
    """A code for each row's patient, int64 [n]; finds ``missing_subject``.

    Without a column each row is a subject of its own.
    """
    if column is None:
        return np.arange(len(rows), dtype=np.int64)
    cells = raw.cells(column, rows)
    missing = [place for place, cell in enumerate(cells) if cell in MISSING]
    found.rows(
        "missing_subject",
        "rows without a patient identifier: such a row could be in two parts of the split",
        column,
        rows[missing].tolist(),
    )
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(cell, len(codes)) for cell in cells], dtype=np.int64)
