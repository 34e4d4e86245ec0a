"""The journal of a run: what makes a crash harmless.

The rules:

1. A record is appended and fsynced before what it records is acknowledged or used.
2. Objects (states, updates) are named by their SHA-256 and written before the record that names
   them; a record never points at bytes that are not durable.
3. Each record carries the digest of the one before it. A torn last line (the crash) is cut off; a
   damaged line anywhere else is an :class:`IntegrityError`, never skipped.
4. Updates are deleted once their aggregate is durable: the aggregator keeps no hospital's update
   longer than its round.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from wardround_common.canonical import canonical_bytes
from wardround_common.durable import append_line, fsync_folder, write_file
from wardround_common.errors import IntegrityError
from wardround_common.types import Digest, is_digest, sha256_hex

Record = dict[str, object]
_START = Digest("0" * 64)


class Journal:
    """An append-only chain of records and a store of objects in one folder.

    Args:
        folder: made if absent. One process at a time.

    Raises:
        IntegrityError: the stored chain is damaged anywhere but in its last, torn line.
    """

    def __init__(self, folder: Path) -> None:
        self._objects = folder / "objects"
        self._log = folder / "journal.jsonl"
        if not self._objects.exists():
            self._objects.mkdir(parents=True)
            fsync_folder(folder.parent)
            fsync_folder(folder)
        self._head = _START
        self._records: list[Record] = []
        self._read()
        # A crash may have come between a rename and the fsync of its folder.
        fsync_folder(self._objects)
        fsync_folder(folder)

    @property
    def records(self) -> tuple[Record, ...]:
        """All records, oldest first."""
        return tuple(self._records)

    @property
    def head(self) -> Digest:
        """Digest of the last record: names the whole history."""
        return self._head

    def find(self, kind: str, **fields: object) -> Iterator[Record]:
        """Records of one kind whose fields have these values, oldest first."""
        for record in self._records:
            if record["kind"] == kind and all(record.get(k) == v for k, v in fields.items()):
                yield record

    def append(self, kind: str, **fields: object) -> None:
        """Append one record and make it durable.

        Args:
            kind: a verb in the past, such as ``step_finished``.
            fields: JSON values.
        """
        record: Record = {"kind": kind, "prev": self._head, **fields}
        line = canonical_bytes(record)
        append_line(self._log, line)
        self._head = sha256_hex(line)
        self._records.append(json.loads(line))

    def store(self, data: bytes | memoryview) -> Digest:
        """Make an object durable and return its name."""
        digest = sha256_hex(data)
        path = self._objects / digest
        if not path.exists():
            write_file(path, data)
        return digest

    def load(self, digest: str) -> bytes:
        """The bytes of a stored object.

        Raises:
            IntegrityError: it is gone, or its bytes are not those it is named after.
        """
        if not is_digest(digest):
            raise IntegrityError("not an object name", code="journal_object")
        try:
            data = (self._objects / digest).read_bytes()
        except OSError as error:
            raise IntegrityError(
                f"{self._objects / digest} cannot be read; restore the run folder from a backup "
                "or start a new run",
                code="journal_object",
            ) from error
        if sha256_hex(data) != digest:
            raise IntegrityError(f"{self._objects / digest} is damaged", code="journal_object")
        return data

    def keep_only(self, digests: set[str]) -> None:
        """Delete every stored object but these."""
        for path in sorted(self._objects.iterdir()):
            if path.name not in digests:
                path.unlink()

    def _read(self) -> None:
        if not self._log.exists():
            return
        data = self._log.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        if torn:
            self._cut(len(data) - len(torn))
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            record = _parse(line)
            if record is None or record.get("prev") != self._head:
                raise IntegrityError(
                    f"{self._log} line {number} is damaged; restore the file from a backup",
                    code="journal_chain",
                )
            self._head = sha256_hex(line)
            self._records.append(record)

    def _cut(self, size: int) -> None:
        with self._log.open("r+b") as file:
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())


def _parse(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
        canonical = canonical_bytes(value) == line
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) and canonical and "kind" in value else None
