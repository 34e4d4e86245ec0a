"""Is a log what it was? Entry by entry, by its own head, and by heads that others have kept."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wardround_common.audit.entries import Entry, EntryError, parse_entry
from wardround_common.audit.heads import SignedHead, parse_head
from wardround_common.audit.retention import read_base, still_there
from wardround_common.audit.tree import Tree
from wardround_common.errors import ConfigError, IntegrityError, WardroundError

LOG: Final = "log.jsonl"
HEAD: Final = "head.json"


@dataclass(frozen=True, slots=True)
class Bad:
    """What is wrong first.

    Attributes:
        index: of the entry; the number of entries if those that follow are missing.
        code: ``entry_form``, ``entry_changed``, ``entry_order``, ``entry_rewritten``,
            ``entries_missing``, ``history_rewritten``, ``head_form``, ``head_signature`` or
            ``audit_base``.
    """

    index: int
    code: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What a log came to.

    Attributes:
        entries: the good ones, up to the first bad one.
        tree: theirs, and of those that were let go before them.
        num_gone: entries that were let go; the first one that is there has this index.
        num_unchecked: heads of others that are of entries that were let go: nothing can be said by them.
        bad: what is wrong first; None if nothing is.
        has_torn_line: the last line has no end: a crash, which nobody was told of.
    """

    entries: tuple[Entry, ...]
    tree: Tree
    bad: Bad | None
    has_torn_line: bool = False
    num_gone: int = 0
    num_unchecked: int = 0


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
    try:
        base = read_base(folder)
    except IntegrityError as error:
        return Verified((), Tree(), Bad(0, error.code), has_torn_line=bool(rest))
    tree, entries, bad = base.tree, [], None
    num_gone = tree.size
    lines = lines[still_there(lines, num_gone) :]
    roots: list[bytes] = [tree.root]
    for index, line in enumerate(lines, start=num_gone):
        found = _entry(index, line, tree)
        if isinstance(found, Bad):
            bad = found
            break
        entries.append(found)
        tree.add(line)
        roots.append(tree.root)
    if bad is not None and bad.index - num_gone < len(entries):
        entries = entries[: max(bad.index - num_gone, 0)]
    others = list(heads)
    kept: list[SignedHead | Bad] = [*_own_head(folder, base.key), *others]
    found_bad = [bad] if bad is not None else []
    found_bad += [wrong for head in kept if (wrong := _by_head(head, roots, num_gone)) is not None]
    first = min(found_bad, key=lambda each: each.index, default=None)
    return Verified(
        tuple(entries),
        tree,
        first,
        has_torn_line=bool(rest),
        num_gone=num_gone,
        num_unchecked=sum(head.size < num_gone for head in others),
    )


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


def _own_head(folder: Path, base_key: str | None) -> Iterator[SignedHead | Bad]:
    """The log's own head; bad if another key has signed what was let go."""
    data = _read(folder / HEAD)
    if not data:
        return
    try:
        head = parse_head(data)
        yield head if base_key in {None, head.key} else Bad(0, "audit_base")
    except WardroundError as error:
        yield Bad(0, error.code)


def _by_head(head: SignedHead | Bad, roots: list[bytes], num_gone: int) -> Bad | None:
    """What is wrong by a head; nothing by one of entries that were let go since."""
    if isinstance(head, Bad):
        return head
    place = head.size - num_gone
    if place >= len(roots):
        return Bad(num_gone + len(roots) - 1, "entries_missing")
    if place >= 0 and roots[place].hex() != head.root:
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
