"""What every reader produces: named columns of text, and images or tagged words where there are.

Cells are kept as text, whatever the format, so that one schema check serves all formats and equal
values mean the same in every one. A missing cell is the empty string.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wardround_common.errors import DataError

Pixels = npt.NDArray[np.uint8]
MISSING = frozenset({"", "?"})
"""Cells that mean "no value"; JSON and Parquet nulls are read as the empty one."""


@dataclass(frozen=True, slots=True)
class RawData:
    """The unchecked content of a site's data.

    Attributes:
        name: the file's or folder's name, for messages.
        folder: the folder that paths inside the data are relative to.
        num_rows: rows, images or sentences.
        columns: column -> one cell a row, in file order.
        available: every column the data has, also those that were not asked for.
        images: uint8 [n, H, W, C] with C 1 or 3, where the data holds pixels itself.
        words: the sentences' words, for tagged text.
        tags: the sentences' tags in IOB2, one a word.
        digests: (relative name, SHA-256) of every file that was read.
    """

    name: str
    folder: Path
    num_rows: int
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    available: tuple[str, ...] = ()
    images: Pixels | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    tags: tuple[tuple[str, ...], ...] | None = None
    digests: tuple[tuple[str, str], ...] = ()

    def cells(self, column: str, rows: npt.NDArray[np.int64]) -> list[str]:
        """The cells of ``column`` at ``rows`` without surrounding white space."""
        values = self.columns[column]
        return [values[row].strip() for row in rows]


def cell_text(value: object) -> str:
    """The text of one typed cell.

    Numbers are written in their shortest exact form (``1``, ``1.0``, ``nan``), booleans as
    ``true`` and ``false``, dates as ISO 8601, a missing value as the empty string.

    Raises:
        TypeError: a list, a table, bytes: nothing that a cell of text can say.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return repr(float(value))
    if isinstance(value, Decimal | date | datetime | time):
        return str(value) if isinstance(value, Decimal) else value.isoformat()
    raise TypeError(type(value).__name__)


def text_column(name: str, column: str, values: Iterable[object]) -> tuple[str, ...]:
    """A whole column as text.

    Args:
        name: the file, for the message.
        column: the column, for the message.
        values: the typed cells.

    Raises:
        DataError: ``unsupported_cell``, a cell is neither text, number, boolean nor date.
    """
    texts: list[str] = []
    for row, value in enumerate(values, start=1):
        try:
            texts.append(cell_text(value))
        except TypeError as error:
            raise DataError(
                f"{name}: column {column!r}, row {row}: a {error} cannot be a cell; "
                "write text, a number, true/false or a date",
                code="unsupported_cell",
            ) from error
    return tuple(texts)


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 text, with or without a byte order mark.

    Raises:
        DataError: ``not_utf8``, with the position of the first bad byte.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}: line {line}: not UTF-8 text; save the file as UTF-8", code="not_utf8"
        ) from error


def unique_names(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Column names as they stand in a header, refused when one occurs twice.

    Raises:
        DataError: ``duplicate_column``.
    """
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise DataError(
            f"{name}: column {twice[0]!r} is named twice in the header; rename one of them",
            code="duplicate_column",
        )
    return tuple(names)
