"""A run's folder: it ends once, is driven by one, is found by name, goes on when it is reopened."""

from pathlib import Path

import pytest

from wardround_common.errors import ConfigError, RoundError
from wardround_server.aggregator.folder import FOLDERS, AggregatorFolder
from wardround_server.aggregator.records import (
    FlowerAttempt,
    Outcome,
    Progress,
    RunRecord,
    all_runs,
    find_run,
    new_run,
)
from wardround_server.aggregator.waiting import require_up, stop_run


@pytest.fixture
def folder(tmp_path: Path) -> AggregatorFolder:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    (tmp_path / "federation.toml").write_text("rounds = 3\n")
    return AggregatorFolder(tmp_path)


def run(folder: AggregatorFolder, name: str = "heart") -> RunRecord:
    return new_run(folder, folder.path / "federation.toml", name)


def test_a_run_keeps_the_file_as_it_was_when_it_was_asked_for(folder: AggregatorFolder) -> None:
    record = run(folder)
    (folder.path / "federation.toml").write_text("rounds = 5\n")
    assert record.federation.read_text() == "rounds = 3\n"
    assert (record.attempt, record.progress, record.outcome) == (None, None, None)
    assert [each.run for each in all_runs(folder)] == [record.run]


def test_what_is_half_made_is_no_run(folder: AggregatorFolder) -> None:
    (folder.runs / ".0123456789abcdef").mkdir()
    (folder.runs / "notes").mkdir()
    assert all_runs(folder) == []


def test_the_first_word_on_how_it_ended_is_the_last(folder: AggregatorFolder) -> None:
    record = run(folder)
    assert record.end(Outcome("stopped"))
    assert not record.end(Outcome("done", model_sha256="1" * 64))
    assert record.outcome == Outcome("stopped")
    assert [path.name for path in record.path.glob(".*")] == []


def test_two_processes_never_drive_one_run(folder: AggregatorFolder) -> None:
    record = run(folder)
    assert not record.is_driven
    with record.driven():
        assert record.is_driven
        with pytest.raises(ConfigError) as caught, RunRecord(record.path).driven():
            pass
    assert caught.value.code == "run_busy"
    assert not record.is_driven


def test_only_a_run_that_is_not_done_is_reopened(folder: AggregatorFolder) -> None:
    record = run(folder)
    record.write_attempt(FlowerAttempt(9, 4, 1.0, 0, 6))
    record.end(Outcome("failed", "no_progress"))
    record.reopen()
    assert record.outcome is None
    assert record.attempt == FlowerAttempt(0, 4, 1.0, 0, 0)
    record.end(Outcome("done"))
    with pytest.raises(RoundError):
        record.reopen()


def test_a_run_is_found_by_name_or_beginning_if_that_is_one(folder: AggregatorFolder) -> None:
    first, second = run(folder, "heart"), run(folder, "reports")
    assert find_run(folder, "reports") == second
    assert find_run(folder, first.run[:12]) == first
    for unknown in ("kidneys", ""):
        with pytest.raises(ConfigError) as caught:
            find_run(folder, unknown)
        assert first.run in str(caught.value)


def test_progress_is_read_back_and_says_who_is_missing(folder: AggregatorFolder) -> None:
    record = run(folder)
    progress = Progress(1, 2, "train", 1, 3, ("a", "b", "c"), ("a",), {"b": "norm"})
    record.write_progress(progress)
    assert record.progress == progress
    assert progress.waited_for == ("c",)


def test_a_run_that_has_ended_is_not_stopped_again(folder: AggregatorFolder) -> None:
    record = run(folder)
    stop_run(record)
    assert record.outcome is not None
    assert record.outcome.state == "stopped"
    with pytest.raises(ConfigError) as caught:
        stop_run(record)
    assert caught.value.code == "run_ended"


def test_nobody_waits_for_an_aggregator_that_is_not_up(folder: AggregatorFolder) -> None:
    with pytest.raises(ConfigError) as caught:
        require_up(folder)
    assert "wardround aggregator up" in str(caught.value)
