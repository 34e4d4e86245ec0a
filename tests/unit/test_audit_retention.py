"""Years of a log are let go from its beginning, provably, and a crash on the way harms nothing."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wardround_common.audit import log as log_module
from wardround_common.audit import retention as retention_module
from wardround_common.audit.heads import SignedHead
from wardround_common.audit.log import AuditLog
from wardround_common.audit.retention import BASE, base_of, old_entries
from wardround_common.audit.tree import Tree
from wardround_common.audit.verify import LOG, Bad, verified
from wardround_common.crypto.signing import signing_key
from wardround_common.errors import IntegrityError

OLD, NEW = 37, 12


class Clock:
    """A log's clock."""

    now = datetime(2020, 3, 1, tzinfo=UTC)

    @classmethod
    def at(cls, year: int) -> None:
        cls.now = datetime(year, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock.at(2020)

    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return Clock.now.astimezone(tz)

    monkeypatch.setattr(log_module, "datetime", Now)


@pytest.fixture
def heads(tmp_path: Path) -> list[SignedHead]:
    """A log of two times, and its heads at each length."""
    log = AuditLog(tmp_path / "log")
    found = [log.head, *(log.append("step_refused", code="x") for _ in range(OLD - 1))]
    Clock.at(2026)
    return found + [log.append("step_refused", code="y") for _ in range(NEW)]


def events(folder: Path) -> list[str]:
    found = verified(folder)
    assert found.bad is None
    return [entry.event for entry in found.entries]


def test_old_entries_go_and_everything_later_still_verifies(
    tmp_path: Path, heads: list[SignedHead]
) -> None:
    folder = tmp_path / "log"
    before = verified(folder).tree.root
    log = AuditLog(folder, keep_years=5)
    assert events(folder) == ["step_refused"] * NEW + ["log_shortened"]
    found = verified(folder, heads)
    assert found.bad is None
    assert (found.num_gone, found.num_unchecked) == (OLD, OLD - 1)
    assert found.entries[0].index == OLD
    assert before == Tree.of(OLD + NEW, found_subtrees(folder)).root
    log.append("step_refused", code="z")
    Clock.at(2033)
    AuditLog(folder, keep_years=5)
    assert events(folder) == ["log_shortened"]
    assert verified(folder, heads).bad is None


def found_subtrees(folder: Path) -> tuple[bytes, ...]:
    """Of the log without the entry that says that it was shortened."""
    tree = retention_module.read_base(folder).tree
    for line in (folder / LOG).read_bytes().splitlines()[:NEW]:
        tree.add(line)
    return tree.subtrees


def test_nothing_goes_that_is_young_enough_and_nothing_behind_it(
    tmp_path: Path, heads: list[SignedHead]
) -> None:
    folder = tmp_path / "log"
    AuditLog(folder, keep_years=7)
    AuditLog(folder)
    assert len(events(folder)) == OLD + NEW == len(heads)
    entries = list(verified(folder).entries)
    entries[3], entries[-1] = entries[-1], entries[3]
    assert old_entries(entries, datetime(2026, 6, 1, tzinfo=UTC), 5) == 3, "no gap"


def test_after_letting_go_a_rewritten_rest_is_found_by_the_heads(
    tmp_path: Path, heads: list[SignedHead]
) -> None:
    folder = tmp_path / "log"
    AuditLog(folder, keep_years=5)
    lines = (folder / LOG).read_bytes().splitlines(keepends=True)
    (folder / LOG).write_bytes(b"".join(lines[:4]))
    found = verified(folder, heads).bad
    assert found == Bad(OLD + 4, "entries_missing")


@pytest.mark.parametrize("what", ["subtree", "size", "key", "removed"])
def test_what_is_left_of_the_old_entries_cannot_be_changed(
    tmp_path: Path, heads: list[SignedHead], what: str
) -> None:
    folder = tmp_path / "log"
    AuditLog(folder, keep_years=5)
    base = folder / BASE
    text = base.read_text()
    if what == "removed":
        base.unlink()
    if what == "subtree":
        first = text.index('"subtrees":["') + len('"subtrees":["')
        base.write_text(text[:first] + ("0" if text[first] != "0" else "1") + text[first + 1 :])
    if what == "size":
        base.write_text(text.replace(f'"size":{OLD}', f'"size":{OLD + 1}'))
    if what == "key":
        tree = retention_module.read_base(folder).tree
        base.write_bytes(base_of(tree, signing_key(tmp_path / "other")))
    found = verified(folder, heads).bad
    assert found is not None
    assert found.code in {"audit_base", "entry_order"}
    with pytest.raises(IntegrityError):
        AuditLog(folder)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_killed_anywhere_on_the_way_the_log_verifies_and_the_next_start_ends_it(
    tmp_path: Path, heads: list[SignedHead], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder, calls = tmp_path / "log", 0

    class KilledError(BaseException):
        pass

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KilledError
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(retention_module, "replace_file", counted(retention_module.replace_file))
        patch.setattr(log_module, "append_line", counted(log_module.append_line))
        patch.setattr(log_module.os, "replace", counted(log_module.os.replace))
        with pytest.raises(KilledError):
            AuditLog(folder, keep_years=5)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert verified(copy, heads).bad is None
    AuditLog(folder, keep_years=5)
    found = verified(folder, heads)
    assert found.bad is None
    assert found.num_gone == OLD
    assert found.entries[0].index == OLD
    assert (folder / LOG).read_bytes().count(b"\n") == len(found.entries), "nothing is left over"
