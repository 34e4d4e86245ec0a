"""How long a log is kept, and what is left of what was let go.

1. Entries are let go from the beginning of a log, and only when all of them are older than the years that
   are to be kept.
2. Of what was let go its number of entries and the hashes of its subtrees stay, signed: roots and heads of
   all that follows are what they were, so nobody can pass a cut at another place off as this one.
3. Letting go is an entry of the log itself. It happens when a log is opened, and a crash at any moment
   leaves a log that verifies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround_common.audit.entries import Entry, EntryError, parse_entry
from wardround_common.audit.heads import SignedHead, sign_head
from wardround_common.audit.tree import Tree
from wardround_common.canonical import canonical_bytes
from wardround_common.crypto.signing import SigningKey
from wardround_common.durable import replace_file
from wardround_common.errors import ConfigError, IntegrityError
from wardround_common.types import HEX_DIGEST

BASE: Final = "base.json"
DEFAULT_YEARS: Final = 6
"""HIPAA, 45 CFR 164.316(b)(2)(i), asks for six years of documentation."""


class _Base(BaseModel):
    """What is left of the entries that were let go."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    head: SignedHead
    subtrees: list[Annotated[str, Field(pattern=HEX_DIGEST)]] = Field(max_length=64)


@dataclass(frozen=True, slots=True)
class Base:
    """Where a log begins.

    Attributes:
        tree: of all entries that were let go; empty if none was.
        key: public key of who signed that; None if nothing was let go.
    """

    tree: Tree
    key: str | None = None


def read_base(folder: Path) -> Base:
    """Where the log in a folder begins.

    Raises:
        IntegrityError: the file is damaged or its signature is wrong (``audit_base``).
        ConfigError: it cannot be read (``audit_unreadable``).
    """
    path = folder / BASE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Base(Tree())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", code="audit_unreadable"
        ) from None
    try:
        read = _Base.model_validate_json(data)
        read.head.verify()
        tree = Tree.of(read.head.size, [bytes.fromhex(each) for each in read.subtrees])
        if tree.root.hex() == read.head.root:
            return Base(tree, read.head.key)
    except (ValidationError, IntegrityError, ValueError):
        pass
    raise IntegrityError(f"{path} is damaged; restore it from a backup", code="audit_base")


def old_entries(entries: Sequence[Entry], now: datetime, years: int) -> int:
    """How many entries at the beginning may go: all that are older than so many years.

    Args:
        entries: in order.
        now: UTC.
        years: to be kept.
    """
    since = f"{now.year - years:04}{now.isoformat(timespec='milliseconds')[4:]}"
    return next((place for place, each in enumerate(entries) if each.at >= since), len(entries))


def let_go(log: Path, key: SigningKey, number: int) -> None:
    """Let the first entries of a log go: what is left of them is durable before they are not there.

    Args:
        log: the log's file, of which nothing waits to be cut off.
        key: of the log.
        number: of entries.
    """
    tree = read_base(log.parent).tree
    for line in log.read_bytes().split(b"\n")[:number]:
        tree.add(line)
    replace_file(log.parent / BASE, base_of(tree, key))
    cut_off(log)


def base_of(tree: Tree, key: SigningKey) -> bytes:
    """What is left of entries that are let go, as it is written.

    Args:
        tree: theirs.
        key: of the log.
    """
    head = sign_head(key, tree.size, tree.root)
    base = _Base(head=head, subtrees=[each.hex() for each in tree.subtrees])
    return canonical_bytes(base.model_dump(mode="json"))


def cut_off(log: Path) -> None:
    """Remove the entries that were let go from a log's file, if a crash has left them there."""
    num_gone = read_base(log.parent).tree.size
    if num_gone and log.exists():
        lines = log.read_bytes().split(b"\n")
        number = still_there(lines, num_gone)
        if number:
            replace_file(log, b"\n".join(lines[number:]))


def still_there(lines: Sequence[bytes], num_gone: int) -> int:
    """How many lines at the beginning of a log's file are of entries that were let go."""
    try:
        first = parse_entry(lines[0]).index if num_gone and lines else num_gone
    except EntryError:
        return 0
    return max(num_gone - first, 0)
