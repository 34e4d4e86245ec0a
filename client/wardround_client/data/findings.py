"""What was found when data was held against the federation's schema.

A finding is an *error* (the data cannot be used as declared) or a *warning* (it can, and somebody
should know). All findings are for the hospital's own eyes: a message may quote one value. What may
leave the site is the error's ``public_message``, which has the code alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wardround_common.errors import DataError

_QUOTED = 60
"""A quoted value is cut at so many characters."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        code: stable lower-case code such as ``missing_column``.
        message: what is wrong and what to do, for the local operator.
        column: the column it is about, if one.
        count: how many rows, subjects or columns.
        first_row: the first row, from 1 without the header; None where rows do not apply.
        error: False for a warning.
    """

    code: str
    message: str
    column: str | None
    count: int
    first_row: int | None = None
    error: bool = True

    def __str__(self) -> str:
        where = "" if self.column is None else f"column {self.column!r}: "
        row = "" if self.first_row is None else f" (first in row {self.first_row})"
        return f"{where}{self.message}: {self.count}{row}"


class SchemaError(DataError):
    """The data does not have the declared schema.

    Args:
        name: the file's name.
        findings: all errors, at least one; the first gives the code.
    """

    def __init__(self, name: str, findings: Sequence[Finding]) -> None:
        lines = "".join(f"\n  [{finding.code}] {finding}" for finding in findings)
        super().__init__(f"{name}: the data is not as declared:{lines}", code=findings[0].code)
        self.findings = tuple(findings)


class Findings:
    """Collects findings about one file.

    Args:
        name: the file's name, for the message.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: list[Finding] = []

    def rows(
        self,
        code: str,
        message: str,
        column: str | None,
        rows: Sequence[int],
        *,
        value: str | None = None,
        error: bool = True,
    ) -> None:
        """Add a finding about ``rows`` (row indices from 0 in the file), if there are any.

        Args:
            code: stable code.
            message: what is wrong and what to do.
            column: the column.
            rows: affected rows, ascending.
            value: the first row's value, quoted (cut) in the message.
            error: False for a warning.
        """
        if not len(rows):
            return
        quoted = "" if value is None else f"; the first is {value[:_QUOTED]!r}"
        first = int(rows[0]) + 1
        self._found.append(Finding(code, message + quoted, column, len(rows), first, error))

    def add(self, finding: Finding) -> None:
        """Add a finding that is not about single rows."""
        self._found.append(finding)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are no errors."""
        return tuple(finding for finding in self._found if not finding.error)

    def raise_errors(self) -> None:
        """Stop here if an error was found.

        Raises:
            SchemaError: with every error so far.
        """
        errors = [finding for finding in self._found if finding.error]
        if errors:
            raise SchemaError(self._name, errors)
