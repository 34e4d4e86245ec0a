"""An audit log on disk.

The rules:

1. An entry is durable before what it speaks of happens: the call that appends it has fsynced it.
2. Nothing is ever changed, and nothing removed but what is older than the years to be kept (see
   :mod:`wardround_common.audit.retention`); a torn last line, which nobody was told of, is cut off when the
   log is opened, and an entry says so.
3. A log that is damaged is not written to: :class:`IntegrityError`, and whoever needs it stops.
4. Beside it lies its newest signed head. After a power cut that may be an older one, never a wrong one.
"""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from wardround_common.audit.entries import Entry, Event, Value
from wardround_common.audit.heads import SignedHead, sign_head
from wardround_common.audit.retention import cut_off, let_go, old_entries
from wardround_common.audit.tree import Tree
from wardround_common.audit.verify import HEAD, LOG, Verified, verified
from wardround_common.crypto.signing import SigningKey, signing_key
from wardround_common.durable import append_line, make_folder
from wardround_common.errors import IntegrityError

_KEY: Final = "key"


class AuditLog:
    """One log, of one process at a time.

    Args:
        folder: made if absent, for its owner alone.
        key: signs its heads; a key of its own, made in the folder, if absent.
        keep_years: entries older than that are let go when the log is opened; None keeps all.

    Attributes:
        key: the one that signs.

    Raises:
        IntegrityError: the log there is damaged (``audit_damaged``); it names the first bad entry.
    """

    def __init__(
        self, folder: Path, key: SigningKey | None = None, keep_years: int | None = None
    ) -> None:
        make_folder(folder)
        self._path = folder / LOG
        self._head_path = folder / HEAD
        self._lock = threading.Lock()
        self._refused = False
        self.key = key or signing_key(folder / _KEY)
        torn = _cut_torn_line(self._path)
        cut_off(self._path)
        found = verified(folder)
        if found.bad is not None:
            raise IntegrityError(
                f"{self._path}: entry {found.bad.index} is damaged ({found.bad.code}); keep the file "
                "as evidence, restore the log from a backup, and start again",
                code="audit_damaged",
            )
        self._tree: Tree = found.tree
        self._num_bytes = self._path.stat().st_size if self._path.exists() else 0
        if not found.tree.size:
            self.append("log_opened", key=self.key.public)
        if torn:
            self.append("log_repaired", bytes_cut=torn)
        if keep_years is not None:
            self._let_go(found, keep_years)

    @property
    def head(self) -> SignedHead:
        """The newest head."""
        with self._lock:
            return sign_head(self.key, self._tree.size, self._tree.root)

    def append(self, event: Event, **fields: Value) -> SignedHead:
        """Write an entry; it is durable when this returns.

        Args:
            event: what happens now, or has happened.
            **fields: numbers, truth values and short codes.

        Returns:
            The head with this entry.

        Raises:
            OSError: the disk refused; the entry is not there.
            IntegrityError: it refused before, and left half an entry (``audit_unwritable``).
            ValueError: a field is not allowed.
        """
        with self._lock:
            if self._refused:
                raise IntegrityError(
                    f"{self._path} could not be written; see to the disk and start again",
                    code="audit_unwritable",
                )
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            before = self._tree.root.hex()
            line = Entry(self._tree.size, at, event, fields, before).to_line()
            self._put(line)
            self._tree.add(line)
            head = sign_head(self.key, self._tree.size, self._tree.root)
            self._put_head(head)
            return head

    def _let_go(self, found: Verified, years: int) -> None:
        """Let go what is too old, and say so in an entry before."""
        num_old = old_entries(found.entries, datetime.now(UTC), years)
        if not num_old:
            return
        self.append("log_shortened", entries_gone=num_old, years_kept=years)
        let_go(self._path, self.key, num_old)
        self._num_bytes = self._path.stat().st_size

    def _put(self, line: bytes) -> None:
        """Write a line, or cut off what there is of it: behind a torn line nothing may follow."""
        self._refused = True
        try:
            append_line(self._path, line)
        except OSError:
            if self._path.exists():
                os.truncate(self._path, self._num_bytes)
                self._refused = False
            raise
        self._num_bytes += len(line) + 1
        self._refused = False

    def _put_head(self, head: SignedHead) -> None:
        """Beside the log, whole or not at all; not fsynced, since the entry is."""
        temporary = self._head_path.with_name(f".{HEAD}.tmp")
        temporary.write_bytes(head.to_bytes())
        os.replace(temporary, self._head_path)  # noqa: PTH105  one name for the crash tests to hook


def _cut_torn_line(path: Path) -> int:
    """Cut off a last line without an end; how many bytes it had."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    whole = data.rfind(b"\n") + 1
    torn = len(data) - whole
    if torn:
        with path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
    return torn
