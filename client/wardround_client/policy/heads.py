"""Heads of the aggregator's log, as they came with its questions: its history as this site saw it."""

import re
import threading
from pathlib import Path
from typing import Final

from wardround_client.policy.rules import PolicyError
from wardround_common.audit.heads import SignedHead, parse_head
from wardround_common.durable import make_folder, replace_file
from wardround_common.errors import ConfigError, IntegrityError
from wardround_common.wire.step import StepManifest

RUN: Final = re.compile(r"[0-9a-f]{16}")


class AggregatorHeads:
    """The heads of each run whose questions were answered, one file each: ``RUN/ENTRIES.json``.

    Args:
        folder: made if absent.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, dict[int, SignedHead]] = {}

    def check(self, manifest: StepManifest) -> None:
        """Let a question pass whose head is one that was seen, or is ahead of all that were.

        Raises:
            PolicyError: it has none by the key that signed the question (``policy_head``), or it is
                behind what was seen, or as long as one that was and different (``policy_history``).
        """
        head = manifest.head
        if head is None or head.key != manifest.coordinator or not _is_signed(head):
            raise PolicyError("no head of the aggregator's log came along", code="policy_head")
        with self._lock:
            seen = self._of(manifest.run)
        newest = max(seen, default=-1)
        if head.size <= newest and seen.get(head.size) != head:
            raise PolicyError(
                f"run {manifest.run}: the aggregator shows a log of {head.size} entries that is not "
                f"the one it has shown up to entry {newest}; ask the coordinator what was restored",
                code="policy_history",
            )

    def keep(self, manifest: StepManifest) -> None:
        """Keep the head of a question that is answered now."""
        head = manifest.head
        with self._lock:
            seen = self._of(manifest.run)
            if head is not None and head.size not in seen:
                folder = self._folder / manifest.run
                make_folder(folder)
                replace_file(folder / f"{head.size}.json", head.to_bytes())
                seen[head.size] = head

    def _of(self, run: str) -> dict[int, SignedHead]:
        if run not in self._known:
            self._known[run] = heads_of(self._folder, run)
        return self._known[run]


def heads_of(folder: Path, run: str) -> dict[int, SignedHead]:
    """Length of the aggregator's log of a run -> its head, as this site was shown them.

    Raises:
        IntegrityError: a file is damaged.
    """
    files = (path for path in (folder / run).glob("*.json") if path.stem.isdigit())
    heads = [parse_head(path.read_bytes()) for path in files]
    return {head.size: head for head in heads}


def newest_head(folder: Path, run: str) -> SignedHead:
    """The newest head of a run's log that the aggregator has shown to this site.

    Raises:
        ConfigError: no question of that run was answered (``no_head``).
        IntegrityError: a file is damaged.
    """
    heads = heads_of(folder, run) if RUN.fullmatch(run) else {}
    if not heads:
        known = ", ".join(sorted(path.name for path in folder.iterdir())) or "none"
        raise ConfigError(
            f"{run}: no question of this run was answered here; runs: {known}", code="no_head"
        )
    return heads[max(heads)]


def _is_signed(head: SignedHead) -> bool:
    try:
        head.verify()
    except IntegrityError:
        return False
    return True
