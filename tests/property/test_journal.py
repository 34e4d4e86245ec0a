"""The journal: whatever is acknowledged comes back, and damage is named, never skipped."""

import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.errors import IntegrityError
from wardround_common.types import sha256_hex
from wardround_server.rounds.journal import Journal

fields = st.dictionaries(
    st.sampled_from(["step", "site", "code", "seconds", "sites"]),
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.lists(st.integers(0, 9), max_size=3),
    max_size=4,
)
actions = st.lists(
    st.tuples(st.just("append"), fields)
    | st.tuples(st.just("store"), st.binary(max_size=40))
    | st.tuples(st.just("reopen"), st.none()),
    max_size=12,
)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _filled(folder: Path, lines: int = 5) -> Journal:
    journal = Journal(folder)
    for number in range(lines):
        journal.append("counted", step=number, note="ä\n\x00")
    return journal


@settings(max_examples=80, deadline=None)
@given(actions)
def test_everything_acknowledged_comes_back(done: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "journal"
        journal = Journal(folder)
        appended: list[dict[str, Any]] = []
        stored: dict[str, bytes] = {}
        for action, value in [*done, ("reopen", None)]:
            if action == "append":
                journal.append("noted", **value)
                appended.append(value)
            elif action == "store":
                stored[journal.store(value)] = value
            else:
                head = journal.head
                journal = Journal(folder)
                assert journal.head == head
            assert [
                {k: v for k, v in record.items() if k not in {"kind", "prev"}}
                for record in journal.records
            ] == appended
            for digest, data in stored.items():
                assert journal.load(digest) == data
                assert sha256_hex(data) == digest


@settings(max_examples=80, deadline=None)
@given(cut=st.integers(0, 10_000), lines=st.integers(1, 5))
def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(cut: int, lines: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _filled(folder, lines)
        log = folder / "journal.jsonl"
        whole = log.read_bytes()
        kept = whole[: cut % (len(whole) + 1)]
        log.write_bytes(kept)
        journal = Journal(folder)
        assert [r["step"] for r in journal.records] == list(range(kept.count(b"\n")))
        journal.append("counted", step=99)
        assert [r["step"] for r in Journal(folder).records][-1] == 99


@settings(max_examples=120, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_named_with_its_line_or_found_by_the_next(place: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _filled(folder)
        log = folder / "journal.jsonl"
        data = bytearray(log.read_bytes())
        place %= len(data)
        line = data.count(b"\n", 0, place) + 1
        data[place] ^= 1 << bit
        log.write_bytes(data)
        last_line = data.count(b"\n", 0, len(data) - 1) + 1
        try:
            journal = Journal(folder)
        except IntegrityError as error:
            assert error.code == "journal_chain"  # noqa: PT017
            named = int(str(error).split(" line ")[1].split()[0])
            assert named in {line, line + 1}
        else:
            # Only the last line has no successor that vouches for it: it may be cut (its newline
            # is gone) or differ in a value that is well-formed.
            assert line >= last_line - 1
            assert [r["step"] for r in journal.records[: line - 1]] == list(range(line - 1))


def test_a_damaged_middle_line_is_never_skipped(tmp_path: Path) -> None:
    _filled(tmp_path)
    log = tmp_path / "journal.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for case, damaged, named in [
        ("gone", lines[:2] + lines[3:], 3),
        ("changed", [*lines[:2], lines[2].replace(b'"step":2', b'"step":7'), *lines[3:]], 4),
        ("twice", [*lines[:2], lines[1], *lines[2:]], 3),
        ("swapped", [lines[0], lines[2], lines[1], *lines[3:]], 2),
        ("torn", [*lines[:2], lines[2][:9] + b"\n", *lines[3:]], 3),
        ("empty", [*lines[:2], b"\n", *lines[2:]], 3),
        ("zeros", [*lines[:2], b"\0" * 30 + b"\n", *lines[3:]], 3),
        ("deep", [*lines[:2], b"[" * 50_000 + b"\n", *lines[3:]], 3),
        ("respaced", [*lines[:2], lines[2].replace(b":", b": "), *lines[3:]], 3),
    ]:
        log.write_bytes(b"".join(damaged))
        with pytest.raises(IntegrityError, match=f"line {named} is damaged") as caught:
            Journal(tmp_path)
        assert caught.value.code == "journal_chain", case
        assert log.read_bytes() == b"".join(damaged), "evidence is left as it was found"


def test_a_torn_last_line_is_cut_off_on_the_disk_too(tmp_path: Path) -> None:
    journal = _filled(tmp_path, 3)
    log = tmp_path / "journal.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"kind":"answer_adm')
    reopened = Journal(tmp_path)
    assert reopened.head == journal.head
    assert log.read_bytes() == whole


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_damage_to_an_object_is_found_when_it_is_read(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path)
    digest = journal.store(b"the state of round 3")
    path = tmp_path / "objects" / digest
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": b"the state of round 4", "cut": b"the st", "empty": b""}[damage])
    with pytest.raises(IntegrityError) as caught:
        journal.load(digest)
    assert caught.value.code == "journal_object"


@pytest.mark.parametrize("name", ["", "../journal.jsonl", "A" * 64, "None"])
def test_only_a_digest_names_an_object(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match="not an object name"):
        _filled(tmp_path).load(name)


def test_only_named_objects_are_kept_and_leftovers_of_a_crash_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    kept, gone = journal.store(b"state"), journal.store(b"update")
    leftover = tmp_path / "objects" / f".{gone}.123.tmp"
    leftover.write_bytes(b"upd")
    journal.keep_only({str(kept)})
    assert [path.name for path in (tmp_path / "objects").iterdir()] == [kept]


def test_records_are_found_by_kind_and_fields(tmp_path: Path) -> None:
    journal = _filled(tmp_path, 3)
    journal.append("other", step=1)
    assert [r["step"] for r in journal.find("counted")] == [0, 1, 2]
    assert len(list(journal.find("counted", step=1))) == 1
    assert list(journal.find("counted", step=9)) == []


def test_each_record_names_the_one_before(tmp_path: Path) -> None:
    journal = _filled(tmp_path, 3)
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines()
    assert json.loads(lines[0])["prev"] == "0" * 64
    for before, after in itertools.pairwise(lines):
        assert json.loads(after)["prev"] == sha256_hex(before)
    assert journal.head == sha256_hex(lines[-1])
