"""The audit log: every change of it is found, at its place; what was durable stays."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from wardround_common.audit import log as log_module
from wardround_common.audit.cli import audit
from wardround_common.audit.entries import Entry, parse_entry
from wardround_common.audit.heads import parse_head
from wardround_common.audit.log import AuditLog
from wardround_common.audit.tree import EMPTY_ROOT, Tree
from wardround_common.audit.verify import HEAD, LOG, Bad, verified
from wardround_common.errors import IntegrityError

NUM_ENTRIES = 200


def root_by_definition(entries: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if not entries:
        return sha256(b"").digest()
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    half = 1 << ((len(entries) - 1).bit_length() - 1)
    left, right = root_by_definition(entries[:half]), root_by_definition(entries[half:])
    return sha256(b"\x01" + left + right).digest()


def test_roots_are_those_of_rfc_6962() -> None:
    tree, entries = Tree(), []
    assert tree.root == EMPTY_ROOT
    for number in range(70):
        entries.append(bytes([number]) * (number % 5))
        tree.add(entries[-1])
        assert tree.root == root_by_definition(entries)
    # the example of Certificate Transparency's own tests
    known = Tree()
    for entry in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657"):
        known.add(bytes.fromhex(entry))
    known.add(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
    assert known.root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 200 entries."""
    folder = tmp_path_factory.mktemp("audit")
    log = AuditLog(folder)
    for number in range(NUM_ENTRIES - 1):
        log.append("update_released", run="0123456789abcdef", round=number, bytes_out=10 * number)
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def lines_of(folder: Path) -> list[bytes]:
    return (folder / LOG).read_bytes().splitlines(keepends=True)


def test_a_log_that_nobody_touched_is_good(written: Path) -> None:
    found = verified(written)
    assert found.bad is None
    assert [entry.index for entry in found.entries] == list(range(NUM_ENTRIES))
    assert found.entries[7].fields == {"run": "0123456789abcdef", "round": 6, "bytes_out": 60}


def _flip(lines: list[bytes], at: int) -> int:
    place = len(lines[at]) // 3
    lines[at] = lines[at][:place] + bytes([lines[at][place] ^ 1]) + lines[at][place + 1 :]
    return at


def _delete(lines: list[bytes], at: int) -> int:
    del lines[at]
    return at


def _reorder(lines: list[bytes], at: int) -> int:
    other = at + 1 if at + 1 < len(lines) else at - 1
    lines[at], lines[other] = lines[other], lines[at]
    return min(at, other)


def _truncate(lines: list[bytes], at: int) -> int:
    del lines[at:]
    return at


def _duplicate(lines: list[bytes], at: int) -> int:
    lines.insert(at, lines[at])
    return at + 1


@pytest.mark.parametrize("change", [_flip, _delete, _reorder, _truncate, _duplicate])
def test_each_change_of_each_entry_is_found_at_its_place(
    copy: Path, change: Callable[[list[bytes], int], int]
) -> None:
    good, wrong = lines_of(copy), []
    for at in range(NUM_ENTRIES):
        lines = list(good)
        expected = change(lines, at)
        (copy / LOG).write_bytes(b"".join(lines))
        bad = verified(copy).bad
        if bad is None or bad.index != expected:
            wrong.append((at, bad))
    assert not wrong, f"{len(wrong)} of {NUM_ENTRIES}"


def forged(line: bytes, **fields: int) -> bytes:
    """An entry with other fields, and the digest to match: by somebody who knows how."""
    entry = parse_entry(line.rstrip(b"\n"))
    changed = {**entry.fields, **fields}
    return Entry(entry.index, entry.at, entry.event, changed, entry.before).to_line() + b"\n"


def test_an_entry_that_was_written_anew_does_not_fit_those_behind_it(copy: Path) -> None:
    good = lines_of(copy)
    for at in range(1, NUM_ENTRIES - 1):
        lines = list(good)
        lines[at] = forged(lines[at], bytes_out=1)
        (copy / LOG).write_bytes(b"".join(lines))
        assert verified(copy).bad == Bad(at, "entry_rewritten")


def test_twin_without_roots_in_entries_it_would_not_be_found(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tree, "root", property(lambda tree: b"\0" * 32))
    (copy / LOG).unlink()
    (copy / HEAD).unlink()
    log = AuditLog(copy)
    for number in range(9):
        log.append("update_released", bytes_out=number)
    lines = lines_of(copy)
    lines[4] = forged(lines[4], bytes_out=100)
    (copy / LOG).write_bytes(b"".join(lines))
    assert verified(copy).bad is None


def test_a_history_written_anew_is_found_by_a_head_that_another_party_kept(
    written: Path, tmp_path: Path
) -> None:
    kept = parse_head((written / HEAD).read_bytes())
    log = AuditLog(tmp_path / "new")  # with every entry, root, digest and head to match
    (tmp_path / "new" / "key").write_bytes((written / "key").read_bytes())
    for number in range(NUM_ENTRIES + 10):
        log.append("update_released", run="0123456789abcdef", round=number, bytes_out=1)
    assert verified(tmp_path / "new").bad is None, "by itself it looks well"
    bad = verified(tmp_path / "new", [kept]).bad
    assert bad is not None
    assert bad.code == "history_rewritten"
    assert verified(written, [kept]).bad is None


def test_a_head_of_another_key_or_content_is_refused(written: Path) -> None:
    head = parse_head((written / HEAD).read_bytes())
    for changed in (
        head.model_copy(update={"size": head.size - 1}),
        head.model_copy(update={"key": "ab" * 32}),
        head.model_copy(update={"signature": "00" * 64}),
    ):
        with pytest.raises(IntegrityError) as caught:
            parse_head(changed.to_bytes())
        assert caught.value.code == "head_signature"


def test_a_torn_last_line_is_cut_off_and_said(copy: Path) -> None:
    with (copy / LOG).open("ab") as file:
        file.write(b'{"at":"2026')
    assert verified(copy).has_torn_line
    assert verified(copy).bad is None
    AuditLog(copy).append("run_approved", run="0123456789abcdef")
    found = verified(copy)
    assert found.bad is None
    assert [entry.event for entry in found.entries[-2:]] == ["log_repaired", "run_approved"]


def test_a_damaged_log_is_not_written_to(copy: Path) -> None:
    lines = lines_of(copy)
    _flip(lines, 17)
    (copy / LOG).write_bytes(b"".join(lines))
    with pytest.raises(IntegrityError, match="entry 17 is damaged"):
        AuditLog(copy)
    assert lines_of(copy) == lines


def test_behind_half_an_entry_nothing_follows(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(copy)

    def full(path: Path, line: bytes) -> None:
        with path.open("ab") as file:
            file.write(line[:20])
        raise OSError(28, "no space left")

    def stuck(path: Path, length: int) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(log_module, "append_line", full)
        with pytest.raises(OSError, match="no space"):
            log.append("run_approved", run="0123456789abcdef")
    log.append("run_approved", run="0123456789abcdef")
    assert verified(copy).tree.size == NUM_ENTRIES + 1, "half an entry was cut off"
    with monkeypatch.context() as patched:
        patched.setattr(log_module, "append_line", full)
        patched.setattr("os.truncate", stuck)
        with pytest.raises(OSError, match="input/output"):
            log.append("run_approved", run="0123456789abcdef")
    with pytest.raises(IntegrityError) as caught:
        log.append("run_approved", run="0123456789abcdef")
    assert caught.value.code == "audit_unwritable"


@pytest.mark.parametrize(
    "fields", [{"path": "/data/Meier, Anna.dcm"}, {"x": float("nan")}, {"Key": 1}, {"x": "é"}]
)
def test_text_has_no_way_into_the_log(copy: Path, fields: dict[str, float | str]) -> None:
    before = lines_of(copy)
    with pytest.raises(ValueError, match="not allowed in an audit log"):
        AuditLog(copy).append("step_refused", **fields)
    assert lines_of(copy) == before


def test_verify_show_and_export(copy: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(audit, ["verify", str(copy), "--json"], standalone_mode=False)
    assert json.loads(done.output)["bad"] is None
    assert done.return_value == 0
    out = tmp_path / "log.csv"
    runner.invoke(audit, ["export", str(copy), "--out", str(out)], standalone_mode=False)
    assert len(out.read_text().splitlines()) == NUM_ENTRIES + 1
    parse_head(out.with_suffix(".head.json").read_bytes())
    shown = runner.invoke(
        audit, ["show", str(copy), "--event", "log_opened"], standalone_mode=False
    )
    assert shown.output.count("\n") == 1
    lines = lines_of(copy)
    _delete(lines, 3)
    (copy / LOG).write_bytes(b"".join(lines))
    done = runner.invoke(audit, ["verify", str(copy)], standalone_mode=False)
    assert done.return_value == 1
    assert "entry 3 is bad" in done.output
