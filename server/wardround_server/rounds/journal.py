"""The journal of a run: what makes a crash harmless.

The rules:

1. A record is appended and fsynced before what it records is acknowledged or used. Where nobody
   is acknowledged to and everything can be computed again (a simulation), records and objects may
   wait in memory for the next *settling*: a crash then costs the time since the last one.
2. Objects (states, updates) are named by their SHA-256 and written before the record that names
   them; a record never points at bytes that are not durable.
3. Each record carries the digest of the one before it. A torn last line (the crash) is cut off; a
   damaged line anywhere else is an :class:`IntegrityError`, never skipped.
4. An array that arrives from elsewhere may be written in ``spool`` while it comes; it becomes an
   object by its name, never by a copy. What an earlier process left there half-way is deleted.
5. Updates are deleted once their aggregate is durable: the aggregator keeps no hospital's update
   longer than its round.
"""

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from wardround_common.canonical import canonical_bytes
from wardround_common.durable import adopt_file, append_line, fsync_folder, replace_file
from wardround_common.errors import IntegrityError
from wardround_common.types import Digest, is_digest, sha256_hex

Record = dict[str, object]
_START = Digest("0" * 64)
_SETTLED = "settled"


class Journal:
    """An append-only chain of records and a store of objects in one folder.

    Args:
        folder: made if absent. One process at a time. :attr:`spool` in it is made by who uses it.
        settle_every_s: 0 makes every record and object durable at once; more lets them wait in
            memory until :meth:`settle` finds that so many seconds have passed.
        clock: seconds.
        before_flush: makes durable what records rely on beside the objects.

    Raises:
        IntegrityError: the stored chain is damaged anywhere but in its last, torn line.
    """

    def __init__(
        self,
        folder: Path,
        settle_every_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        before_flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._settle_every_s = settle_every_s
        self._clock = clock
        self._before_flush = before_flush
        self._settled_at = clock()
        self._waiting: list[Record] = []
        self._waiting_objects: dict[Digest, bytes | memoryview] = {}
        self._kept: set[str] | None = None
        self._objects = folder / "objects"
        self._log = folder / "journal.jsonl"
        self.spool = folder / "spool"
        if not self._objects.exists():
            self._objects.mkdir(parents=True)
            fsync_folder(folder.parent)
            fsync_folder(folder)
        if self.spool.exists():
            shutil.rmtree(self.spool)
        self._head = _START
        self._records: list[Record] = []
        self._of_step: defaultdict[int, list[Record]] = defaultdict(list)
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
        """Records of one kind whose fields have these values, oldest first.

        Those of one ``step`` are found at once, however long the journal is.
        """
        step = fields.get("step")
        records = self._of_step[step] if isinstance(step, int) else self._records
        for record in tuple(records):
            if record["kind"] == kind and all(record.get(k) == v for k, v in fields.items()):
                yield record

    def append(self, kind: str, **fields: object) -> None:
        """Append one record and make it durable, or let it wait; see the class.

        Args:
            kind: a verb in the past, such as ``step_finished``.
            fields: JSON values.
        """
        record: Record = json.loads(canonical_bytes({"kind": kind, **fields}))
        self._remember(record)
        if self._settle_every_s:
            self._waiting.append(record)
        else:
            self._write(record)

    def store(self, data: bytes | memoryview) -> Digest:
        """Make an object durable, or let it wait, and return its name.

        Args:
            data: must not change while it waits; it is not copied.
        """
        digest = sha256_hex(data)
        self.store_as(digest, data)
        return digest

    def store_as(self, digest: Digest, data: bytes | memoryview) -> None:
        """:meth:`store` where the digest of the data is known already."""
        if not (self._objects / digest).exists():
            self._waiting_objects[digest] = data
        if self._kept is not None:
            self._kept.add(digest)
        if not self._settle_every_s:
            self.flush()

    def adopt(self, digest: Digest, path: Path) -> None:
        """Make a file an object: durable at once, without copying a byte.

        Args:
            digest: SHA-256 of what the file holds.
            path: in :attr:`spool`, all its bytes on disk; gone afterwards.
        """
        if (self._objects / digest).exists():
            path.unlink()
        else:
            adopt_file(path, self._objects / digest)
        if self._kept is not None:
            self._kept.add(digest)

    def settle(self) -> None:
        """Make everything durable if it is time."""
        if self._clock() - self._settled_at >= self._settle_every_s:
            self.flush()

    def flush(self) -> None:
        """Make everything durable now: objects first, so that no record points at nothing."""
        self._before_flush()
        for digest, data in self._waiting_objects.items():
            replace_file(self._objects / digest, data)
        self._waiting_objects.clear()
        if self._waiting:
            self._write({"kind": _SETTLED, "records": self._waiting})
            self._waiting.clear()
            self._sweep()
        self._settled_at = self._clock()

    def load(self, digest: str) -> bytes:
        """The bytes of a stored object.

        Raises:
            IntegrityError: it is gone, or its bytes are not those it is named after.
        """
        if not is_digest(digest):
            raise IntegrityError("not an object name", code="journal_object")
        if digest in self._waiting_objects:
            return bytes(self._waiting_objects[Digest(digest)])
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
        """Delete every stored object but these and those stored from now on."""
        self._kept = set(digests)
        for digest in set(self._waiting_objects) - digests:
            del self._waiting_objects[digest]
        if not self._waiting:  # else durable records still name what waiting ones have done with
            self._sweep()

    def _sweep(self) -> None:
        if self._kept is None:
            return
        for path in sorted(self._objects.iterdir()):
            if path.name not in self._kept:
                path.unlink()
        self._kept = None

    def _write(self, record: Record) -> None:
        line = canonical_bytes({**record, "prev": self._head})
        append_line(self._log, line)
        self._head = sha256_hex(line)

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
            together = record.get("records")
            for each in together if isinstance(together, list) else [record]:
                self._remember(each)

    def _remember(self, record: Record) -> None:
        self._records.append(record)
        step = record.get("step")
        if isinstance(step, int):
            self._of_step[step].append(record)

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
