"""The answers that a site has given: what makes asking again harmless.

The rules:

1. An answer is durable before its first byte is released. After a crash of anybody, anywhere, the
   same question gets the same stored bytes: nothing is computed twice and released twice.
2. A question is named by the digest of its manifest, which binds run, step, model and limits.
3. An answer is read back whole or not at all: its receipt carries the digest of its array, and a
   damaged one is an :class:`IntegrityError`, never an answer.
4. Of each run the answers to its last two steps are kept, and of the site's last eight runs. A
   question whose answer may have been deleted is refused, never computed again.
"""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from wardround_common.durable import fsync_folder, make_folder, replace_file
from wardround_common.errors import IntegrityError, WireError
from wardround_common.wire.layout import Buffer
from wardround_common.wire.step import MAX_RECEIPT_BYTES, Receipt, StepManifest, parse

KEPT_STEPS: Final = 2
KEPT_RUNS: Final = 8
_RECEIPT, _ARRAY, _LAST = ".receipt", ".array", ".last"


@dataclass(frozen=True, slots=True)
class Stored:
    """A durable answer.

    Attributes:
        receipt: its canonical bytes.
        array: the file of its packed array; None where it has none.
        array_bytes: size of that file, in bytes.
    """

    receipt: bytes
    array: Path | None
    array_bytes: int

    @contextmanager
    def opened(self) -> Iterator[BinaryIO | None]:
        """The array, open for reading; once open it can be read whatever is deleted meanwhile.

        Raises:
            WireError: it was deleted, since a later step has been answered.
        """
        if self.array is None:
            yield None
            return
        try:
            file = self.array.open("rb")
        except FileNotFoundError:
            raise _forgotten() from None
        with file:
            yield file


class Answers:
    """Answers on disk.

    Args:
        folder: holds a folder a run; made if absent, for this user alone. One process at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()  # what is deleted is not half seen
        make_folder(folder)

    def open_run(self, run: str) -> Path:
        """The folder of a run, durable; for a new run the oldest beyond the limit are forgotten."""
        folder = self._folder / run
        if not folder.exists():
            folder.mkdir(mode=0o700)
            fsync_folder(self._folder)
            with self._lock:
                self._forget_runs(run)
        return folder

    def find(self, manifest: StepManifest) -> Stored | None:
        """The answer that was given to this very question; None if there was none.

        Raises:
            IntegrityError: it is there, and damaged.
            WireError: it may have been given and deleted: later steps have been answered.
        """
        with self._lock:
            return self._find(manifest)

    def _find(self, manifest: StepManifest) -> Stored | None:
        if manifest.step <= self._last_forgotten(manifest.run):
            raise _forgotten()
        path = self._path(manifest, _RECEIPT)
        if not path.exists():
            return None
        data = path.read_bytes()
        receipt = parse(Receipt, data, max_bytes=MAX_RECEIPT_BYTES)
        if receipt.manifest_sha256 != manifest.digest():
            raise IntegrityError(f"{path} answers another question", code="stored_answer")
        if receipt.update_sha256 is None:
            return Stored(data, None, 0)
        array = self._path(manifest, _ARRAY)
        if _digest_of(array) != receipt.update_sha256:
            raise IntegrityError(
                f"{array} is damaged; restore it, or leave this run", code="stored_answer"
            )
        return Stored(data, array, array.stat().st_size)

    def keep(self, manifest: StepManifest, receipt: bytes, array: Buffer | None) -> Stored:
        """Make an answer durable: its array first, so that no receipt names bytes that are not.

        Args:
            manifest: the question.
            receipt: canonical bytes.
            array: the packed bytes; None for none.
        """
        self.open_run(manifest.run)
        path, size = None, 0
        if array is not None:
            path, size = self._path(manifest, _ARRAY), memoryview(array).nbytes
            replace_file(path, memoryview(array))
        replace_file(self._path(manifest, _RECEIPT), receipt)
        with self._lock:
            self._forget_steps(manifest)
        return Stored(receipt, path, size)

    def _last_forgotten(self, run: str) -> int:
        """The last step of a run whose answer may have been deleted; -1 for none."""
        newest = max(_steps(self._folder / run), default=-1)
        tombstone = self._folder / f"{run}{_LAST}"
        buried = int(tombstone.read_bytes()) if tombstone.exists() else -1
        return max(newest - KEPT_STEPS, buried)

    def _forget_steps(self, manifest: StepManifest) -> None:
        """Delete the answers that nobody can ask for any more: two steps later, they were used."""
        files = [path for path in (self._folder / manifest.run).iterdir() if path.is_file()]
        for path in sorted(files, key=lambda path: path.suffix == _ARRAY):  # receipts first
            step = path.name.partition("-")[0]
            if not step.isdigit() or int(step) <= manifest.step - KEPT_STEPS:
                path.unlink(missing_ok=True)

    def _forget_runs(self, but: str) -> None:
        """Delete the oldest runs; that they were answered, and how far, is remembered."""
        others = [path for path in self._folder.iterdir() if path.is_dir() and path.name != but]
        others.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in others[: max(0, len(others) - (KEPT_RUNS - 1))]:
            steps = list(_steps(path))
            if steps:
                last = max(*steps, self._last_forgotten(path.name))
                replace_file(self._folder / f"{path.name}{_LAST}", str(last).encode())
            shutil.rmtree(path, ignore_errors=True)

    def _path(self, manifest: StepManifest, suffix: str) -> Path:
        return self._folder / manifest.run / f"{manifest.step}-{manifest.digest()}{suffix}"


def _steps(folder: Path) -> Iterator[int]:
    """Numbers of the steps that have an answer in a run's folder."""
    for path in folder.glob(f"*{_RECEIPT}"):
        step = path.name.partition("-")[0]
        if step.isdigit():  # else it is half written
            yield int(step)


def _digest_of(path: Path) -> str | None:
    """SHA-256 of a file, read in pieces; None if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _forgotten() -> WireError:
    return WireError("later steps of this run have been answered", code="answer_forgotten")
