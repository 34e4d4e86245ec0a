"""Which runs go on: turns, ServerApps that die, attempts without progress, runs that end."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from wardround_server.aggregator.dispatch import MAX_WITHOUT_PROGRESS, Dispatcher
from wardround_server.aggregator.flower.control import FlowerRun, NodeState
from wardround_server.aggregator.folder import FOLDERS, AggregatorFolder
from wardround_server.aggregator.records import Outcome, RunRecord, all_runs, new_run


class SuperLink:
    """A Control API that remembers what it was asked for."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[int] = []
        self.states: dict[int, FlowerRun] = {}

    def is_healthy(self) -> bool:
        return True

    def start_run(self, run: str) -> int:
        self.started.append(run)
        self.states[len(self.started)] = FlowerRun.WAITING
        return len(self.started)

    def stop_run(self, run_id: int) -> None:
        self.stopped.append(run_id)

    def runs(self, run_ids: Iterable[int]) -> dict[int, FlowerRun]:
        return {run_id: self.states.get(run_id, FlowerRun.UNKNOWN) for run_id in run_ids}

    def nodes(self) -> Sequence[NodeState]:
        return ()

    def register(self, name: str, public_key: bytes) -> int:
        raise NotImplementedError

    def unregister(self, node_id: int) -> None:
        raise NotImplementedError


class World:
    """An aggregator's folder, a clock, a dispatcher."""

    def __init__(self, path: Path, at_once: int = 1) -> None:
        self.folder = AggregatorFolder(path)
        for name in FOLDERS:
            (path / name).mkdir()
        (path / "federation.toml").write_text("")
        self.superlink = SuperLink()
        self.now = 0.0
        self.dispatcher = Dispatcher(self.superlink, at_once, lambda: self.now)
        self._driving = ExitStack()

    def ask(self) -> RunRecord:
        return new_run(self.folder, self.folder.path / "federation.toml", "tiny")

    def look(self, after_s: float = 0.0) -> None:
        self.now += after_s
        self.dispatcher.look(all_runs(self.folder))

    def drive(self, record: RunRecord) -> None:
        """A ServerApp takes the run's folder."""
        self._driving.enter_context(record.driven())

    def die(self) -> None:
        """All ServerApps let go of theirs."""
        self._driving.close()

    def progress(self, record: RunRecord) -> None:
        journal = record.path / "journal" / "journal.jsonl"
        journal.parent.mkdir(exist_ok=True)
        with journal.open("a") as file:
            file.write("{}\n")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.die()


def test_runs_go_on_in_turn_and_the_next_begins_when_one_ends(world: World) -> None:
    first, second = world.ask(), world.ask()
    order = [each.run for each in all_runs(world.folder)]
    assert set(order) == {first.run, second.run}
    world.look()
    assert world.superlink.started == order[:1]
    RunRecord(world.folder.runs / order[0]).end(Outcome("done"))
    world.look()
    assert world.superlink.started == order


def test_a_run_that_is_driven_is_left_alone(world: World) -> None:
    record = world.ask()
    world.look()
    world.drive(record)
    world.superlink.states[1] = FlowerRun.FINISHED  # Flower's word may come before the folder's
    for _ in range(5):
        world.look(after_s=60.0)
    assert world.superlink.started == [record.run]


def test_a_serverapp_that_died_is_noticed_by_the_folder_that_nobody_holds(world: World) -> None:
    record = world.ask()
    world.look()
    world.superlink.states[1] = FlowerRun.RUNNING
    world.drive(record)
    world.look()
    world.progress(record)
    world.die()
    world.look()
    assert world.superlink.stopped == [1]
    assert world.superlink.started == [record.run] * 2
    assert record.attempt is not None
    assert (record.attempt.run_id, record.attempt.attempt) == (2, 2)


def test_a_serverapp_that_is_on_its_way_is_waited_for_and_then_given_up(world: World) -> None:
    record = world.ask()
    world.look()
    world.look(after_s=500.0)  # Flower has not begun it: other runs may be before it
    world.superlink.states[1] = FlowerRun.RUNNING
    world.look(after_s=1.0)
    world.look(after_s=15.0)
    assert world.superlink.started == [record.run]
    world.look(after_s=10.0)
    world.look(after_s=2.0)
    assert world.superlink.started == [record.run] * 2


def test_attempts_without_progress_are_followed_by_longer_pauses_and_then_by_a_failure(
    world: World,
) -> None:
    record = world.ask()
    for attempt in range(1, MAX_WITHOUT_PROGRESS + 1):
        world.look()
        assert len(world.superlink.started) == attempt
        world.superlink.states[attempt] = FlowerRun.FINISHED
        world.look()
        assert len(world.superlink.started) == attempt, "a pause comes first"
        world.look(after_s=60.0)
    assert record.outcome is not None
    assert (record.outcome.state, record.outcome.code) == ("failed", "no_progress")
    assert "wardround aggregator resume" in record.outcome.message


def test_an_attempt_that_got_on_is_not_counted(world: World) -> None:
    record = world.ask()
    for attempt in range(1, 3 * MAX_WITHOUT_PROGRESS):
        world.look(after_s=60.0)
        world.progress(record)
        world.superlink.states[attempt] = FlowerRun.FINISHED
        world.look()
    assert record.outcome is None


def test_a_stopped_run_is_stopped_in_flower_until_its_serverapp_is_gone(world: World) -> None:
    record = world.ask()
    world.look()
    world.drive(record)
    world.look()
    record.end(Outcome("stopped"))
    world.look()
    world.look()
    assert world.superlink.stopped == [1, 1]
    world.die()
    world.look()
    world.look()
    assert world.superlink.stopped == [1, 1, 1], "once more, and not for ever"


def test_a_run_that_is_done_ends_by_itself_before_flower_is_told(world: World) -> None:
    record = world.ask()
    world.look()
    world.drive(record)
    record.end(Outcome("done"))
    world.look()
    assert world.superlink.stopped == []
    world.die()
    world.look()
    assert world.superlink.stopped == [1]


def test_a_resumed_run_begins_anew_with_as_many_attempts_as_at_first(world: World) -> None:
    record = world.ask()
    world.look()
    record.end(Outcome("failed", "quorum_not_met"))
    world.look()
    record.reopen()
    world.look()
    assert world.superlink.started == [record.run] * 2
    assert record.attempt is not None
    assert (record.attempt.attempt, record.attempt.without_progress) == (2, 0)


def test_a_restarted_supervisor_starts_no_second_serverapp(world: World) -> None:
    record = world.ask()
    world.look()
    world.superlink.states[1] = FlowerRun.RUNNING
    world.drive(record)
    again = Dispatcher(world.superlink, 1, lambda: world.now)
    again.look(all_runs(world.folder))
    assert world.superlink.started == [record.run]
