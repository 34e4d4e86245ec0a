"""The systemd units: what each role needs is set, systemd accepts them, and their score is as written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kits import DEPLOY, ROOT, shell_commands, unaccepted, unit_problems, unit_settings

UNITS = {
    "worker": DEPLOY / "site" / "wardround-worker.service",
    "node": DEPLOY / "site" / "wardround-node.service",
    "aggregator": DEPLOY / "centre" / "wardround-aggregator.service",
}
MOST_EXPOSED = 20
"""In tenths of the score of `systemd-analyze security`; without any protection it is 96."""
ANALYSE = shutil.which("systemd-analyze") or ""
needs_systemd = pytest.mark.skipif(not ANALYSE, reason="systemd-analyze is not installed")


@pytest.mark.parametrize("role", UNITS)
def test_a_unit_has_every_protection_of_its_role(role: str) -> None:
    assert unit_problems(UNITS[role].read_text(), role) == []


@pytest.mark.parametrize(
    ("role", "line", "instead", "problem"),
    [
        ("worker", "PrivateNetwork=yes", "PrivateNetwork=no", "PrivateNetwork"),
        ("worker", "=AF_UNIX\n", "=AF_UNIX AF_INET\n", "RestrictAddressFamilies"),
        ("node", "User=wardround-node", "User=wardround-worker", "User"),
        ("node", "Groups=wardround-airlock", "Groups=wardround-data", "SupplementaryGroups"),
        ("node", "-/srv/patients", "", "InaccessiblePaths"),
        ("node", "NoNewPrivileges=yes\n", "", "NoNewPrivileges"),
        ("aggregator", "ProtectSystem=strict", "ProtectSystem=full", "ProtectSystem"),
        ("aggregator", "Set=CAP_NET_BIND_SERVICE", "Set=~", "CapabilityBoundingSet"),
        ("aggregator", "SystemCallFilter=@system-service\n", "", "SystemCallFilter"),
        ("aggregator", "ProtectHome=yes", "ProtectHome=yes\nProtectHome=no", "ProtectHome"),
    ],
)
def test_a_unit_that_lost_a_protection_is_found_out(
    role: str, line: str, instead: str, problem: str
) -> None:
    text = UNITS[role].read_text()
    assert line in text
    assert unit_problems(text.replace(line, instead), role) == [problem]


@pytest.mark.parametrize("role", UNITS)
def test_the_command_of_a_unit_is_one(role: str) -> None:
    text = UNITS[role].read_text()
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    commands = list(shell_commands(line for line in comments if line.startswith("wardround ")))
    commands += list(shell_commands(unit_settings(text)["ExecStart"]))
    assert commands
    assert [unaccepted(words) for words in commands] == [None] * len(commands)
    assert unaccepted(["site", "node", "site.toml", "--share-data"]) is not None
    assert unaccepted(["site", "peek", "site.toml"]) is not None


@pytest.mark.parametrize("role", UNITS)
@needs_systemd
def test_systemd_accepts_a_unit_and_would_not_accept_any(role: str, tmp_path: Path) -> None:
    text = UNITS[role].read_text().replace("/opt/wardround/bin/wardround", sys.executable)
    assert _verified(tmp_path, text) == ""
    assert "Unknown key" in _verified(tmp_path, text.replace("PrivateTmp", "PrivateTemp"))


@pytest.mark.parametrize("role", UNITS)
@needs_systemd
def test_the_score_of_a_unit_is_low_and_the_paper_has_it(role: str, tmp_path: Path) -> None:
    done, score = _scored(UNITS[role], MOST_EXPOSED)
    assert done == 0, score
    version = _output(ANALYSE, "--version").split()[1]
    paper = (ROOT / "docs" / "deployment.md").read_text()
    if f"systemd {version}," in paper:
        assert f"| `{UNITS[role].name}` | {score} |" in paper
    bare = tmp_path / UNITS[role].name
    bare.write_text(f"[Service]\nExecStart={sys.executable}\n")
    assert _scored(bare, MOST_EXPOSED)[0] != 0


def _verified(folder: Path, text: str) -> str:
    unit = folder / "wardround-tried.service"
    unit.write_text(text)
    return _output(ANALYSE, "verify", "--man=no", str(unit))


def _scored(unit: Path, most: int) -> tuple[int, str]:
    words = [ANALYSE, "security", "--offline=true", f"--threshold={most}", "--no-pager", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return done.returncode, found[1]


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
