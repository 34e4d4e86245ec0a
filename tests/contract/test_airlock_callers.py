"""Who asks the airlock and waits, who leaves, who stops what: over a real Unix socket."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.airlocks import Airlock, Asked, Counted, Got, Hospital, here
from tests.streams import eventually
from wardround_client.airlock.client import AirlockClient, AirlockUnavailable
from wardround_client.airlock.limits import MAX_CALLS
from wardround_client.training import local
from wardround_client.worker.answers import Stored
from wardround_client.worker.caller import Caller, CallerLeftError, Places
from wardround_client.worker.desk import MAX_ARRAYS
from wardround_common.errors import WardroundError
from wardround_common.rpc.frames import pieces

OTHER_RUN = "fedcba9876543210"


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


@pytest.fixture
def airlock(hospital: Hospital) -> Iterator[Airlock]:
    with hospital.airlock() as airlock:
        yield airlock


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted = Counted(monkeypatch)
    yield counted
    counted.go.set()


def in_thread(airlock: Airlock, asked: Asked) -> tuple[threading.Thread, list[Got]]:
    """Ask in a thread of its own."""
    answers: list[Got] = []
    thread = threading.Thread(target=lambda: answers.append(airlock.ask(asked)), daemon=True)
    thread.start()
    return thread, answers


def test_work_goes_on_when_the_caller_is_lost_and_the_next_one_gets_it(
    hospital: Hospital, counted: Counted
) -> None:
    asked = hospital.question()
    with hospital.airlock() as airlock:
        counted.go.clear()
        lost = AirlockClient(hospital.socket)
        thread = threading.Thread(target=_ask_and_be_lost, args=(lost, asked))
        thread.start()
        assert counted.begun.wait(10)
        lost.close()
        thread.join(10)
        counted.go.set()
        answer = airlock.ask(asked)
        assert answer.failure == ""
        assert airlock.failures == []
    assert counted.computed == [asked.manifest.digest()]


def _ask_and_be_lost(client: AirlockClient, asked: Asked) -> None:
    with pytest.raises((AirlockUnavailable, ValueError)):
        client.execute(asked.document, pieces(asked.array), asked.array.nbytes, deadline_s=20.0)


def test_two_who_ask_the_same_at_the_same_time_get_one_answer(
    airlock: Airlock, counted: Counted
) -> None:
    asked = airlock.hospital.question()
    counted.go.clear()
    asking = [in_thread(airlock, asked) for _ in range(4)]
    assert counted.begun.wait(10)
    counted.go.set()
    for thread, _ in asking:
        thread.join(20)
    (first, *others) = [answers[0] for _, answers in asking]
    assert first.failure == ""
    assert all(other == first for other in others)
    assert len(counted.computed) == 1


def test_callers_that_left_take_no_place(airlock: Airlock, counted: Counted) -> None:
    counted.go.clear()
    asked = airlock.hospital.question()
    thread, answers = in_thread(airlock, asked)
    assert counted.begun.wait(10)
    for _ in range(2 * MAX_CALLS):
        with pytest.raises(AirlockUnavailable):
            airlock.begin(asked, deadline_s=0.02)
    eventually(lambda: airlock.client.status().run != "")
    counted.go.set()
    thread.join(20)
    assert answers[0].failure == ""
    assert airlock.failures == []


def test_questions_are_computed_in_the_order_in_which_they_arrived(
    airlock: Airlock, counted: Counted
) -> None:
    counted.go.clear()
    questions = [
        airlock.hospital.question(run=run * 16, round_=round_)
        for run, round_ in (("a", 1), ("b", 1), ("a", 2), ("c", 1))
    ]
    threads = []
    for asked in questions:
        threads.append(waiting(airlock, asked)[0])
        eventually(lambda: num_asked(airlock) == len(threads))
    counted.go.set()
    for thread in threads:
        thread.join(20)
    assert counted.computed == [asked.manifest.digest() for asked in questions]


def waiting(
    airlock: Airlock, asked: Asked, received: list[Asked] | None = None
) -> tuple[threading.Thread, list[Any]]:
    """A question that has passed its check, in a thread of its own; the answer or its code."""
    outcome: list[Any] = []

    def receive() -> memoryview:
        if received is not None:
            received.append(asked)
        return asked.array

    def ask() -> None:
        try:
            outcome.append(airlock.desk.answer(asked.manifest, receive, here()))
        except WardroundError as error:
            outcome.append(error.code)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, outcome


def num_asked(airlock: Airlock) -> int:
    """Questions that are computed, or wait for that, or for room for their array."""
    return len(airlock.desk._tasks) + len(airlock.desk._arrays._waiting)


@pytest.mark.parametrize("places", [MAX_ARRAYS, 4])
def test_arrays_are_received_only_while_there_is_room_for_them(
    airlock: Airlock, counted: Counted, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    monkeypatch.setattr(airlock.desk, "_arrays", Places(places))
    counted.go.clear()
    received: list[Asked] = []
    asking = [
        waiting(airlock, airlock.hospital.question(run=run * 16), received) for run in "abcdef"
    ]
    eventually(lambda: num_asked(airlock) == len(asking))
    assert len(received) == places
    counted.go.set()
    for thread, outcome in asking:
        thread.join(20)
        assert isinstance(outcome[0], Stored)
    assert len(received) == len(asking)


def test_a_newcomer_does_not_overtake_who_waits() -> None:
    places = Places(1)
    places.take(here())
    thread = threading.Thread(target=lambda: places.take(here()), daemon=True)
    thread.start()
    eventually(lambda: len(places._waiting) == 1)
    with places._changed:  # nobody else moves before the newcomer has tried
        places.give_back()
        with pytest.raises(CallerLeftError):
            places.take(Caller(lambda leave: False))
    thread.join(5)
    assert not thread.is_alive()


# -- stopping ---------------------------------------------------------------------------------------


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[int]]:
    """Training that would go on for ever; set once it has begun, and how many steps it took."""
    begun, steps = threading.Event(), []
    real = local.raise_if_stopped

    def watched() -> None:
        real()
        begun.set()
        steps.append(1)
        time.sleep(0.001)

    monkeypatch.setattr(local, "raise_if_stopped", watched)
    return begun, steps


@pytest.fixture
def endless(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "endless", training={"local_epochs": 10_000})


def test_stopping_a_run_ends_its_training_within_a_step(
    endless: Hospital, stepping: tuple[threading.Event, list[int]]
) -> None:
    begun, steps = stepping
    with endless.airlock() as airlock:
        asked = endless.question()
        thread, answers = in_thread(airlock, asked)
        assert begun.wait(10)
        assert not airlock.client.stop(OTHER_RUN)
        status = airlock.client.status()
        assert (status.run, status.kind, status.round) == (asked.manifest.run, "train", 1)
        assert thread.is_alive()
        assert airlock.client.stop(asked.manifest.run)
        before = len(steps)
        thread.join(10)
        assert answers[0].failure == "stopped"
        assert len(steps) <= before + 1
        assert airlock.client.status().run == ""
        assert not airlock.client.stop(asked.manifest.run)


def test_a_run_that_only_waits_is_stopped_too(airlock: Airlock, counted: Counted) -> None:
    counted.go.clear()
    first, answers = in_thread(airlock, airlock.hospital.question())
    assert counted.begun.wait(10)
    asked = airlock.hospital.question(run=OTHER_RUN)
    second, outcome = waiting(airlock, asked)
    eventually(lambda: asked.manifest.digest() in airlock.desk._tasks)
    assert airlock.client.stop(OTHER_RUN)
    counted.go.set()
    first.join(20)
    second.join(20)
    assert answers[0].failure == ""
    assert outcome == ["stopped"]
    assert asked.manifest.digest() not in counted.computed


def test_losing_the_connection_stops_nothing(
    tmp_path: Path, stepping: tuple[threading.Event, list[int]]
) -> None:
    """The failing twin of stopping."""
    begun, steps = stepping
    hospital = Hospital(tmp_path / "long", training={"local_epochs": 100})
    with hospital.airlock() as airlock:
        asked = hospital.question()
        lost = AirlockClient(hospital.socket)
        thread = threading.Thread(target=_ask_and_be_lost, args=(lost, asked))
        thread.start()
        assert begun.wait(10)
        lost.close()
        thread.join(10)
        before = len(steps)
        eventually(lambda: airlock.client.status().run == "", within_s=20.0)
        assert len(steps) > before
        assert airlock.client.status().steps_answered == 1
        assert airlock.ask(asked).failure == ""


def test_a_stopped_question_can_be_asked_again(
    endless: Hospital, stepping: tuple[threading.Event, list[int]]
) -> None:
    begun, _ = stepping
    with endless.airlock() as airlock:
        thread, _ = in_thread(airlock, endless.question())
        assert begun.wait(10)
        airlock.client.stop(endless.question().manifest.run)
        thread.join(10)
        assert airlock.ask(endless.question("describe", step=4)).failure == ""
