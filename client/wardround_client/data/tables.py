"""Tables from CSV, JSON lines and Parquet.

Only the columns that are asked for are kept: a name or an address that the federation does not
need is never held in memory longer than it takes to skip it.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from wardround_client.data.columns import decode_text, text_column, unique_names
from wardround_common.errors import DataError

Table = tuple[int, dict[str, tuple[str, ...]], tuple[str, ...]]
"""Number of rows, the kept columns, and the names of all columns."""
TableReader = Callable[[bytes, str, frozenset[str]], Table]


def read_csv(data: bytes, name: str, keep: frozenset[str]) -> Table:
    """Comma-separated values with a header; quoting as in RFC 4180; blank lines are skipped.

    Args:
        data: the file's content, UTF-8.
        name: the file's name, for messages.
        keep: columns to keep, as the file names them.

    Raises:
        DataError: ``not_utf8``, ``empty_file``, ``duplicate_column``, or ``csv_malformed`` with
            the line.
    """
    reader = csv.reader(io.StringIO(decode_text(data, name), newline=""), strict=True)
    rows = _csv_rows(reader, name)
    header = unique_names(name, [cell.strip() for cell in next(rows, [])])
    if not any(header):
        raise DataError(f"{name}: no header line; the file is empty", code="empty_file")
    places = [(place, column) for place, column in enumerate(header) if column in keep]
    kept: dict[str, list[str]] = {column: [] for _, column in places}
    num_rows = 0
    for row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{name}: line {reader.line_num}: {len(row)} cells under {len(header)} columns"
                f"{_semicolon_hint(header)}",
                code="csv_malformed",
            )
        num_rows += 1
        for place, column in places:
            kept[column].append(row[place])
    return num_rows, {column: tuple(cells) for column, cells in kept.items()}, header


def _csv_rows(reader: Iterator[list[str]], name: str) -> Iterator[list[str]]:
    """The rows that are not blank; a parser's complaint becomes a DataError."""
    try:
        for row in reader:
            if row:
                yield row
    except csv.Error as error:
        line = getattr(reader, "line_num", 0)
        raise DataError(f"{name}: line {line}: {error}", code="csv_malformed") from error


def _semicolon_hint(header: tuple[str, ...]) -> str:
    """What to do when the file looks separated by semicolons."""
    lonely = len(header) == 1 and ";" in header[0]
    return "; the cells seem to be separated by ';': save with commas" if lonely else ""


def read_jsonl(data: bytes, name: str, keep: frozenset[str]) -> Table:
    """One JSON object a line; a key that a line lacks is a missing cell; blank lines are skipped.

    Args:
        data: the file's content, UTF-8.
        name: the file's name, for messages.
        keep: keys to keep.

    Raises:
        DataError: ``not_utf8``, ``jsonl_malformed`` with the line, or ``unsupported_cell``.
    """
    records: list[dict[str, object]] = []
    available: dict[str, None] = {}
    for number, line in enumerate(decode_text(data, name).split("\n"), start=1):
        if not line.strip():
            continue
        record = _json_object(line, name, number)
        available |= dict.fromkeys(record)
        records.append({key: record[key] for key in keep & record.keys()})
    columns = {
        column: text_column(name, column, (record.get(column) for record in records))
        for column in available
        if column in keep
    }
    return len(records), columns, tuple(available)


def _json_object(line: str, name: str, number: int) -> dict[str, object]:
    """One line's object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: line {number}: not JSON", code="jsonl_malformed") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{name}: line {number}: a JSON object is needed, one a line", code="jsonl_malformed"
        )
    return record


def read_parquet(data: bytes, name: str, keep: frozenset[str]) -> Table:
    """An Apache Parquet file; columns that are not kept are not even decoded.

    Args:
        data: the file's content.
        name: the file's name, for messages.
        keep: columns to keep.

    Raises:
        DataError: ``parquet_malformed``, ``duplicate_column``, or ``unsupported_cell``.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        available = unique_names(name, list(file.schema_arrow.names))
        wanted = [column for column in available if column in keep]
        table = file.read(columns=wanted)
        num_rows = int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: not a readable Parquet file; it may be cut short", code="parquet_malformed"
        ) from error
    columns = {
        column: text_column(name, column, table.column(column).to_pylist()) for column in wanted
    }
    return num_rows, columns, available


TABLE_READERS: dict[str, TableReader] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}
