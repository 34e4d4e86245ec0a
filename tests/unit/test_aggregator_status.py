"""How an aggregator is: told to people, to programs and to Prometheus, from its folder alone."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest

from wardround_common.errors import ConfigError
from wardround_server.aggregator.cli import aggregator
from wardround_server.aggregator.folder import AggregatorFolder, held
from wardround_server.aggregator.metrics import AggregatorMetrics, serve_metrics
from wardround_server.aggregator.records import (
    FlowerAttempt,
    Outcome,
    Progress,
    RunRecord,
    new_run,
)
from wardround_server.aggregator.setup import make_aggregator, spec_of
from wardround_server.aggregator.sites import EnrolledSite
from wardround_server.aggregator.status import SiteState, read_state, write_status

BUSY = ConfigError("busy", code="busy")
PROGRESS = Progress(
    attempt=2,
    step=4,
    kind="train",
    round=2,
    num_rounds=5,
    sites=("a", "b", "c"),
    answered=("a",),
    refused={"b": "update_norm"},
    bytes_down=2_000_000,
    bytes_up=1_500_000,
    seconds={"train": 12.34},
)


@pytest.fixture
def folder(tmp_path: Path) -> AggregatorFolder:
    made = AggregatorFolder(tmp_path / "aggregator")
    make_aggregator(made, spec_of(name="heart", host="localhost"))
    for name in ("a", "b", "c"):
        entry = EnrolledSite(name=name, node_key="k", fingerprint="0", invited=1.0)
        (made.sites / f"{name}.json").write_bytes(entry.to_bytes())
    return made


@pytest.fixture
def run(folder: AggregatorFolder) -> Iterator[RunRecord]:
    """A run under way, in an aggregator that is up."""
    file = folder.path / "federation.toml"
    file.write_text("")
    record = new_run(folder, file, "heart")
    record.write_attempt(FlowerAttempt(7, 2, time.time()))
    record.write_progress(PROGRESS)
    now = time.time()
    sites = [SiteState("a", True, True, now - 30), SiteState("b", True, False, now - 600)]
    with held(folder.up_lock, BUSY), record.driven():
        write_status(folder, {"superlink": True, "superexec": True}, {"superexec": 3}, sites)
        yield record


def metrics(folder: AggregatorFolder) -> list[str]:
    registry = CollectorRegistry()
    registry.register(AggregatorMetrics(folder))
    return generate_latest(registry).decode().splitlines()


def test_people_read_what_runs_who_is_missing_and_why(
    folder: AggregatorFolder, run: RunRecord
) -> None:
    assert read_state(folder).to_text().splitlines() == [
        "heart: up",
        "  superlink  runs",
        "  superexec  runs, restarted 3 times",
        "sites",
        "  a                    online for 30 s",
        "  b                    offline for 10 min",
        "  c                    invited, not registered yet",
        "runs",
        f"  {run.run}  heart: running",
        "    step 4 (train), round 2 of 5; 2.0 MB down, 1.5 MB up",
        "    answered: a",
        "    missing:  c",
        "    refused:  b (update_norm)",
        "    time: train 12.3 s",
    ]


def test_programs_read_the_same(folder: AggregatorFolder, run: RunRecord) -> None:
    done = CliRunner().invoke(
        aggregator, ["status", str(folder.path), "--json"], standalone_mode=False
    )
    assert done.return_value == 0
    found = json.loads(done.output)
    assert found["is_well"]
    assert found["runs"][0]["waited_for"] == ["c"]
    assert found["runs"][0]["refused"] == {"b": "update_norm"}


def test_the_exit_status_is_1_if_something_that_should_run_does_not(
    folder: AggregatorFolder, run: RunRecord
) -> None:
    write_status(folder, {"superlink": False, "superexec": True}, {}, [])
    done = CliRunner().invoke(aggregator, ["status", str(folder.path)], standalone_mode=False)
    assert done.return_value == 1
    assert "superlink  does not answer" in done.output


def test_an_aggregator_that_is_not_up_says_so_whatever_was_written(
    folder: AggregatorFolder,
) -> None:
    write_status(folder, {"superlink": True}, {}, [SiteState("a", True, True, 1.0)])
    state = read_state(folder)
    assert not state.is_well
    assert state.to_text().startswith("heart: not up")
    assert not any(site.online for site in state.sites)


def test_a_failed_run_says_how_to_go_on(folder: AggregatorFolder, run: RunRecord) -> None:
    run.end(Outcome("failed", "quorum_not_met", "c (no answer)", ended=time.time()))
    text = read_state(folder).to_text()
    assert "heart: failed (quorum_not_met)" in text
    assert f"wardround aggregator resume DIR {run.run}" in text
    assert "missing" not in text


def test_a_folder_that_is_none_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(
            aggregator, ["status", str(tmp_path)], standalone_mode=False, catch_exceptions=False
        )
    assert "wardround aggregator init" in str(caught.value)


def test_prometheus_reads_the_same_numbers(folder: AggregatorFolder, run: RunRecord) -> None:
    lines = metrics(folder)
    for line in (
        'wardround_process_up{process="superlink"} 1.0',
        'wardround_process_restarts_total{process="superexec"} 3.0',
        'wardround_site_online{site="a"} 1.0',
        'wardround_site_online{site="c"} 0.0',
        'wardround_runs{state="running"} 1.0',
        f'wardround_run_round{{run="{run.run}"}} 2.0',
        f'wardround_run_missing{{run="{run.run}"}} 1.0',
        f'wardround_run_refused{{run="{run.run}"}} 1.0',
        f'wardround_run_up_bytes{{run="{run.run}"}} 1.5e+06',
        f'wardround_run_seconds{{phase="train",run="{run.run}"}} 12.34',
    ):
        assert line in lines, "\n".join(lines)


def test_metrics_of_a_damaged_folder_are_none_and_no_error(folder: AggregatorFolder) -> None:
    (folder.sites / "a.json").write_text("{")
    assert not [line for line in metrics(folder) if not line.startswith("#")]


def test_an_address_that_is_taken_is_named(folder: AggregatorFolder) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError) as caught:
            serve_metrics(folder, address)
    assert address in str(caught.value)
