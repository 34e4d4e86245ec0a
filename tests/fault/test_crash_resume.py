"""A run that is killed anywhere ends, once resumed, in the uninterrupted run's model."""

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
        [sys.executable, "-m", "tests.fault.crash_points", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate"],
        ["waiting"],
        ["waiting", "--torn"],
        ["coded"],
        ["engine"],
        ["engine", "--torn"],
        pytest.param(["simulate", "--torn"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_killed_at_every_point_and_resumed_the_model_is_the_same(arguments: list[str]) -> None:
    found = _enumerated(*arguments)
    print(f"{arguments}: {found['points'] - len(found['wrong'])} of {found['points']} points")
    assert found["points"] >= (60 if arguments[0] in {"simulate", "engine"} else 15)
    assert len(found["model"]) == 64, "the uninterrupted run ends in a model"
    assert found["wrong"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["engine", "--broken", "no_rename"],
        ["engine", "--broken", "record_first"],
        ["engine", "--broken", "tidy_all"],
        ["engine", "--torn", "--broken", "no_cut"],
        ["waiting", "--broken", "not_together"],
        ["coded", "--broken", "remainders"],
    ],
    ids=lambda arguments: arguments[-1],
)
def test_with_a_rule_of_the_journal_broken_some_point_fails(arguments: list[str]) -> None:
    """The failing twin: the enumeration does see what the rules prevent."""
    found = _enumerated(*arguments)
    assert found["wrong"] != []
    assert all(killed == "killed" for _, killed, _ in found["wrong"])
