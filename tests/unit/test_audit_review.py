"""The page for a privacy officer says what the log says, in words, and nothing that the log does not."""

import re
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from wardround_common.audit.cli import audit
from wardround_common.audit.entries import LogEvent, MembershipEvent, RunEvent, SiteEvent
from wardround_common.audit.log import AuditLog
from wardround_common.audit.review import render_review
from wardround_common.audit.verify import LOG, verified
from wardround_common.audit.wording import EVENTS, KINDS, REFUSALS
from wardround_common.wire.step import StepKind

RUN = "0123456789abcdef"
TIMES, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = AuditLog(tmp_path / "audit")
    log.append("policy_loaded", policy_sha256="a" * 64)
    for step, kind in ((0, "describe"), (1, "train"), (1, "train"), (2, "train")):
        more = {"update_norm": 0.25 * step} if kind == "train" else {}
        log.append("update_released", run=RUN, step=step, kind=kind, bytes_out=1000, **more)
    log.append("step_refused", run=RUN, step=3, kind="train", code="policy_hours")
    log.append("step_refused", run=RUN, step=4, kind="train", code="policy_hours")
    log.append("step_refused", run=RUN, step=5, kind="train", code="of_a_later_version")
    return tmp_path / "audit"


def text_of(page: str) -> str:
    """What a reader sees."""
    body = page[page.index("<body>") :]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_it_says_what_left_what_was_refused_and_what_was_decided(folder: Path) -> None:
    page = render_review(verified(folder), folder)
    seen = text_of(page)
    assert f"1 {TIMES} counts of patients, 2 {TIMES} model updates" in seen, "counted once"
    assert "4,000" in seen
    assert "0.5" in seen
    assert f"2 {REFUSALS['policy_hours']} policy_hours" in seen
    assert f"1 {DASH} of_a_later_version" in seen
    assert EVENTS["policy_loaded"] in seen
    assert "none is missing, changed or moved" in seen
    assert page == render_review(verified(folder), folder)
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_a_damaged_log_is_the_first_thing_that_it_says(folder: Path) -> None:
    lines = (folder / LOG).read_bytes().splitlines(keepends=True)
    (folder / LOG).write_bytes(b"".join([*lines[:3], *lines[4:]]))
    seen = text_of(render_review(verified(folder), folder))
    assert "Entry 3 is bad" in seen
    assert "none is missing" not in seen


def test_it_can_be_of_some_days_only(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "review.html"
    words = ["review", str(folder), "--out", str(out)]
    assert CliRunner().invoke(audit, words).exit_code == 0
    assert "model updates" in out.read_text()
    done = CliRunner().invoke(audit, [*words, "--until", "2020-01-01"])
    assert done.exit_code == 0
    assert text_of(out.read_text()).count("Nothing.") == 2


def test_every_event_and_every_refusal_of_a_policy_has_words() -> None:
    told = set(EVENTS) | {"update_released", "answer_admitted", "step_refused", "answer_refused"}
    told |= {"step_asked", "step_finished"}
    kinds = (LogEvent, SiteEvent, RunEvent, MembershipEvent)
    assert told == {event for kind in kinds for event in get_args(kind)}
    assert set(KINDS) == set(get_args(StepKind))
    source = "".join(
        path.read_text() for path in (ROOT / "client/wardround_client/policy").glob("*.py")
    )
    codes = set(re.findall(r'"((?:policy|egress)_[a-z_]+)"', source))
    assert codes - set(REFUSALS) == {"policy_loaded", "policy_there"}
    assert set(REFUSALS) <= codes
