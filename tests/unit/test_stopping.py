"""What nobody wants any more ends between two steps; where nobody can stop it, nothing is asked."""

import threading
import time
from pathlib import Path

import pytest
from torch.multiprocessing.spawn import spawn

from tests.unit.test_worker import World
from wardround_client.training import local, parallel
from wardround_client.training.stopping import raise_if_stopped, stoppable
from wardround_common.errors import RoundError
from wardround_common.types import SiteId


@pytest.fixture
def stopped() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def test_it_ends_with_a_code_once_it_was_stopped(stopped: threading.Event) -> None:
    going = threading.Event()
    with stoppable(going):
        raise_if_stopped()
        going.set()
        with pytest.raises(RoundError) as caught:
            raise_if_stopped()
    assert caught.value.code == "stopped"
    with stoppable(stopped), stoppable(threading.Event()):
        raise_if_stopped()
    raise_if_stopped()


def test_it_is_stopped_in_its_own_thread_alone(stopped: threading.Event) -> None:
    outcome: list[str] = []

    def other() -> None:
        raise_if_stopped()
        outcome.append("goes on")

    with stoppable(stopped):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert outcome == ["goes on"]


@pytest.mark.parametrize("kind", ["train", "evaluate", "compare"])
def test_every_long_step_of_a_worker_can_be_stopped(
    tmp_path: Path, stopped: threading.Event, kind: str
) -> None:
    world = World(tmp_path)
    manifest = world.manifest(kind)
    worker = world.workers[SiteId("a")]
    with stoppable(stopped), pytest.raises(RoundError):
        worker.execute(manifest, world.state(manifest))
    first, _ = worker.execute(manifest, world.state(manifest))
    assert first.kind == kind, "and it can be asked again"


@pytest.mark.parametrize(("lent", "looks"), [({}, 1), ({"micro_batch": 2}, 4)])
def test_a_large_batch_is_left_between_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lent: dict[str, int], looks: int
) -> None:
    world = World(tmp_path, simulation={"compute": lent})
    looked: list[int] = []
    monkeypatch.setattr(local, "raise_if_stopped", lambda: looked.append(1))
    receipt, _ = world.execute("a", world.manifest("train"))
    assert receipt.num_examples == 8 * receipt.body["num_steps"], "batches of eight"
    assert len(looked) == looks * receipt.body["num_steps"]


def _sleep(rank: int) -> None:
    del rank
    time.sleep(60)


def test_processes_of_several_devices_are_ended(stopped: threading.Event) -> None:
    processes = spawn(_sleep, nprocs=2, join=False)
    started = time.monotonic()
    with stoppable(stopped), pytest.raises(RoundError):
        parallel._join(processes)
    assert time.monotonic() - started < 10
    assert all(not process.is_alive() for process in processes.processes)


def test_looking_costs_nothing_where_nobody_can_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Event, "is_set", lambda event: pytest.fail("it was asked"))
    raise_if_stopped()
