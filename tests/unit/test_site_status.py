"""How a site's processes are, told to people and to programs; and where its failures are written."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.unit.spec_files import SITE
from wardround_client import status as status_module
from wardround_client.cli import site
from wardround_client.status import NODE_FILE, SiteStatus, site_status
from wardround_client.worker.failures import MAX_BYTES, Failures
from wardround_common.errors import DataError

WORKER: dict[str, Any] = {
    "site": "cleveland",
    "version": "0.1.0",
    "federations": ["1" * 64],
    "run": "0123456789abcdef",
    "kind": "train",
    "round": 3,
    "seconds": 12.4,
    "steps_answered": 7,
    "bytes_in": 1_500_000,
    "bytes_out": 250_000,
    "failures": 0,
    "last_failure": "",
}
NODE: dict[str, Any] = {"online": True, "messages": 4, "bytes_in": 0, "bytes_out": 2_000_000}


@pytest.mark.parametrize(
    ("worker", "has_node", "node", "is_well"),
    [
        (WORKER, False, None, True),
        (WORKER, True, NODE, True),
        (None, True, NODE, False),
        (WORKER, True, None, False),
        (WORKER, True, NODE | {"online": False}, False),
    ],
)
def test_a_site_is_well_if_all_that_should_run_runs(
    worker: dict[str, Any] | None, has_node: bool, node: dict[str, Any] | None, is_well: bool
) -> None:
    status = SiteStatus("cleveland", worker, has_node, node)
    assert status.is_well == is_well
    assert json.loads(status.to_json())["is_well"] == is_well


def test_people_read_what_is_computed_and_for_how_long() -> None:
    text = SiteStatus("cleveland", WORKER | {"failures": 2, "last_failure": "no_data"}, True, NODE)
    assert text.to_text().splitlines() == [
        "site    cleveland",
        "worker  version 0.1.0, 1 federation(s)",
        "        train, round 3, for 12 s, run 0123456789abcdef",
        "        7 steps answered, 1.5 MB in, 0.2 MB out",
        "        2 failures, the last: no_data",
        "node    the aggregator answers",
        "        4 messages, 0.0 MB in, 2.0 MB out",
    ]
    away = SiteStatus("cleveland", None, True, None).to_text()
    assert "worker  does not answer" in away
    assert "node    does not run" in away


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(status_module, "_worker", lambda *_: WORKER)
    path = tmp_path / "site.toml"
    path.write_text(f'{SITE}[node]\naggregator = "localhost:443"\n')
    (tmp_path / "node-state").mkdir()
    return path


@pytest.mark.parametrize(
    ("content", "age_s", "runs"),
    [
        (json.dumps(NODE), 0.0, True),
        (json.dumps(NODE), 60.0, False),
        ('{"online": tr', 0.0, False),
        ("[]", 0.0, False),
        (None, 0.0, False),
    ],
)
def test_a_node_runs_if_it_has_written_lately(
    file: Path, content: str | None, age_s: float, runs: bool
) -> None:
    written = file.parent / "node-state" / NODE_FILE
    if content is not None:
        written.write_text(content)
        os.utime(written, (time.time() - age_s,) * 2)
    found = site_status(file)
    assert found.has_node
    assert found.node == (NODE if runs else None)


def test_the_exit_status_tells_whether_the_site_is_well(file: Path) -> None:
    runner = CliRunner()
    away = runner.invoke(site, ["status", str(file)], standalone_mode=False)
    assert away.return_value == 1
    (file.parent / "node-state" / NODE_FILE).write_text(json.dumps(NODE))
    well = runner.invoke(site, ["status", str(file), "--json"], standalone_mode=False)
    assert well.return_value == 0
    assert json.loads(well.output)["node"] == NODE


def test_the_options_of_the_worker_are_frozen() -> None:
    options = {name for each in site.commands["worker"].params for name in each.opts}
    assert options == {"site_file", "--socket", "--allow-network"}


# -- failures ----------------------------------------------------------------------------------------


def test_an_expected_failure_is_a_line_and_a_bug_has_its_traceback(tmp_path: Path) -> None:
    failures = Failures(tmp_path / "failures.txt")
    failures.note(DataError("row 7: no label", code="no_label"))
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 // 0
    failures.note(caught.value)
    first, *rest = (tmp_path / "failures.txt").read_text().splitlines()
    assert first.endswith(" DataError [no_label] row 7: no label")
    assert "_ = 1 // 0" in "\n".join(rest)


def test_the_newest_failures_are_kept_within_a_megabyte(tmp_path: Path) -> None:
    failures = Failures(tmp_path / "failures.txt")
    for number in range(30):
        failures.note(DataError(f"{number} " + "x" * (MAX_BYTES // 10), code="c"))
    failures.note(DataError("y" * 10 * MAX_BYTES, code="c"))
    failures.note(DataError("the last", code="c"))
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["failures.txt", "failures.txt.1"]
    assert sum(path.stat().st_size for path in files) <= 2 * MAX_BYTES
    assert "the last" in files[0].read_text()


def test_a_disk_that_refuses_to_take_them_stops_nothing(tmp_path: Path) -> None:
    failures = Failures(tmp_path / "absent" / "failures.txt")
    failures.note(DataError("row 7", code="no_label"))
    assert list(tmp_path.iterdir()) == []
