"""A site's worker that is killed anywhere gives, once started again, the bytes that it gave before."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """In a process of its own: it forks, and must not inherit other tests' threads."""
    folders = [str(ROOT / part) for part in ("server", "client", "common", ".")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.crash_answers"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cases: dict[str, Any] = json.loads(done.stdout)
    return cases


@pytest.mark.parametrize("questions", ["steps", "runs"])
def test_killed_at_every_point_no_answer_is_computed_twice_and_the_rest_is_the_same(
    found: dict[str, Any], questions: str
) -> None:
    case = found[questions]
    print(f"{questions}: {case['points'] - len(case['wrong'])} of {case['points']} points")
    assert case["points"] >= 60
    assert len(case["model"]) == 64, "the uninterrupted worker answers everything"
    assert case["wrong"] == []


@pytest.mark.parametrize(
    ("broken", "outcome"),
    [
        ("steps receipt_first", ".*stored_answer"),
        ("steps forgetful", ".*computed_twice"),
        ("steps remainder_last", "[0-9a-f]{64}"),  # other bytes
        ("steps log_late", ".*left_unlogged"),
        ("runs no_tombstone", ".*computed_twice"),
    ],
)
def test_with_a_rule_of_the_answers_broken_some_point_fails(
    found: dict[str, Any], broken: str, outcome: str
) -> None:
    """The failing twin: the enumeration does see what the rules prevent."""
    wrong = found[broken]["wrong"]
    assert wrong
    assert all(killed == "killed" for _, killed, _ in wrong)
    assert re.fullmatch(outcome, wrong[0][2])
