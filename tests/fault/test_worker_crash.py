"""A site's worker that is killed anywhere gives, once started again, the bytes that it gave before."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _enumerated(*arguments: str) -> dict[str, Any]:
    """In a process of its own: it forks, and must not inherit other tests' threads."""
    folders = [str(ROOT / part) for part in ("server", "client", "common", ".")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.crash_answers", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("questions", ["steps", "runs"])
def test_killed_at_every_point_no_answer_is_computed_twice_and_the_rest_is_the_same(
    questions: str,
) -> None:
    found = _enumerated(questions)
    print(f"{questions}: {found['points'] - len(found['wrong'])} of {found['points']} points")
    assert found["points"] >= 60
    assert len(found["model"]) == 64, "the uninterrupted worker answers everything"
    assert found["wrong"] == []


@pytest.mark.parametrize(
    ("questions", "broken", "outcome"),
    [
        ("steps", "receipt_first", "stored_answer"),
        ("steps", "forgetful", "computed_twice"),
        ("steps", "remainder_last", ""),
        ("runs", "no_tombstone", "computed_twice"),
    ],
)
def test_with_a_rule_of_the_answers_broken_some_point_fails(
    questions: str, broken: str, outcome: str
) -> None:
    """The failing twin: the enumeration does see what the rules prevent."""
    found = _enumerated(questions, "--broken", broken)
    assert found["wrong"]
    assert all(killed == "killed" for _, killed, _ in found["wrong"])
    assert found["wrong"][0][2].endswith(outcome)
