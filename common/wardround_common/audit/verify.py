"""Is a log what it was? Entry by entry, by its own head, and by heads that others have kept."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wardround_common.audit.entries import Entry, EntryError, parse_entry
from wardround_common.audit.heads import SignedHead, parse_head
from wardround_common.audit.tree import Tree
from wardround_common.errors import ConfigError, WardroundError

LOG: Final = "log.jsonl"
HEAD: Final = "head.json"


@dataclass(frozen=True, slots=True)
class Bad:
    """What is wrong first.

    Attributes:
        index: of the entry; the number of entries if those that follow are missing.
        code: ``entry_form``, ``entry_changed``, ``entry_order``, ``entry_rewritten``,
            ``entries_missing``, ``history_rewritten``, ``head_form`` or ``head_signature``.
    """

    index: int
    code: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What a log came to.

    Attributes:
        entries: the good ones, up to the first bad one.
        tree: theirs.
        bad: what is wrong first; None if nothing is.
        has_torn_line: the last line has no end: a crash, which nobody was told of.
    """

    entries: tuple[Entry, ...]
    tree: Tree
    bad: Bad | None
    has_torn_line: bool = False


def verified(folder: Path, heads: Iterable[SignedHead] = ()) -> Verified:
    """Verify a log.

    Args:
        folder: of the log.
        heads: of this log, as others have kept them; signatures were checked.

    Raises:
        ConfigError: its files cannot be read (``audit_unreadable``).
    """
    data = _read(folder / LOG)
    *lines, rest = data.split(b"\n")
    tree, entries, bad = Tree(), [], None
    roots: list[bytes] = [tree.root]
    for index, line in enumerate(lines):
        found = _entry(index, line, tree)
        if isinstance(found, Bad):
            bad = found
            break
        entries.append(found)
        tree.add(line)
        roots.append(tree.root)
    if bad is not None and bad.index < len(entries):
        entries = entries[: bad.index]
    kept: list[SignedHead | Bad] = [*_own_head(folder), *heads]
    found_bad = [bad] if bad is not None else []
    found_bad += [wrong for head in kept if (wrong := _by_head(head, roots)) is not None]
    first = min(found_bad, key=lambda each: each.index, default=None)
    return Verified(tuple(entries), tree, first, has_torn_line=bool(rest))


def _entry(index: int, line: bytes, tree: Tree) -> Entry | Bad:
    """The entry, or what is wrong with it or, if that shows only now, with the one before."""
    try:
        entry = parse_entry(line)
    except EntryError as error:
        return Bad(index, error.code)
    if entry.index != index:
        return Bad(index, "entry_order")
    if entry.before != tree.root.hex():
        return Bad(max(index - 1, 0), "entry_rewritten")
    return entry


def _own_head(folder: Path) -> Iterator[SignedHead | Bad]:
    data = _read(folder / HEAD)
    if not data:
        return
    try:
        yield parse_head(data)
    except WardroundError as error:
        yield Bad(0, error.code)


def _by_head(head: SignedHead | Bad, roots: list[bytes]) -> Bad | None:
    if isinstance(head, Bad):
        return head
    if head.size >= len(roots):
        return Bad(len(roots) - 1, "entries_missing")
    if roots[head.size].hex() != head.root:
        return Bad(max(head.size - 1, 0), "history_rewritten")
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", code="audit_unreadable"
        ) from None
