"""An upgrade in lockstep, rehearsed: the next version goes on with everything that the last one left."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.consortium import Consortium, Process
from wardround_common import __version__
from wardround_common.audit.verify import verified
from wardround_server.aggregator.records import RunRecord

pytestmark = pytest.mark.slow

NEXT = "99.1.0"
_ROOT = Path(__file__).parents[2]
_PARTS = ("client", "common", "server")


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path to import the next version from: the same code under another number."""
    folder = tmp_path_factory.mktemp("next")
    for part in _PARTS:
        shutil.copytree(_ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "common" / "wardround_common" / "__init__.py"
    text, count = re.subn(re.escape(f'"{__version__}"'), f'"{NEXT}"', file.read_text())
    assert count == 1
    file.write_text(text)
    return os.pathsep.join(str(folder / part) for part in _PARTS)


def again(*processes: Process | None) -> None:
    """End processes in order and start them, from what is installed now."""
    for process in processes:
        assert process is not None
        process.end()
        process.start()


def ends_well(consortium: Consortium, record: RunRecord, sha256: str) -> None:
    assert consortium.finish(record) == "done", consortium.logs()
    assert record.outcome is not None
    assert record.outcome.model_sha256 == sha256


def test_everybody_upgrades_between_two_runs_and_nobody_enrols_again(
    tmp_path: Path, next_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Consortium(tmp_path / "all", rounds={"count": 2}) as consortium:
        expected = consortium.simulated_sha256()
        ends_well(consortium, consortium.begin(), expected)
        going_on = consortium.begin()
        consortium.until(lambda: going_on.progress is not None, "it has begun")
        consortium.call("stop", str(consortium.folder.path), going_on.run)
        consortium.finish(going_on)
        before = {
            site.name: (site.folder / "worker-state" / "audit" / "log.jsonl").read_bytes()
            for site in consortium.sites.values()
        }

        monkeypatch.setenv("PYTHONPATH", next_version)
        early = consortium.sites["a"]
        again(early.worker, early.node)
        consortium.until(consortium.all_online, "all are online")
        mixed = consortium.begin()
        assert consortium.finish(mixed) == "failed"
        assert mixed.outcome is not None
        assert "a (other_version)" in mixed.outcome.message

        again(consortium.up, consortium.sites["b"].worker, consortium.sites["b"].node)
        consortium.until(consortium.all_online, "all are online")
        ends_well(consortium, consortium.begin(), expected)
        for site in consortium.sites.values():
            audit = site.folder / "worker-state" / "audit"
            assert verified(audit).bad is None
            assert (audit / "log.jsonl").read_bytes().startswith(before[site.name])
        membership = [entry.event for entry in verified(consortium.folder.audit).entries]
        assert membership.count("site_enrolled") == len(consortium.sites)
        assert membership.count("site_key_pinned") == len(consortium.sites)
