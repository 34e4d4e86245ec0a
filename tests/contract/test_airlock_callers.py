"""Who asks the airlock and waits, who leaves, who stops what: over a real Unix socket."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
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
from wardround_client.worker.worker import SiteWorker
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


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the collector of cycles: what is not needed any more must be gone by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_callers_that_left_take_no_place(airlock: Airlock, counted: Counted) -> None:
    counted.go.clear()
    asked = airlock.hospital.question()
    thread, answers = in_thread(airlock, asked)
    assert counted.begun.wait(10)
    for _ in range(2 * MAX_CALLS):
        with pytest.raises(AirlockUnavailable):
            airlock.begin(asked, deadline_s=0.02)
    assert airlock.client.status().run == asked.manifest.run
    counted.go.set()
    thread.join(20)
    assert answers[0].failure == ""
    assert all("begins with a head" in str(error) for error in airlock.failures), (
        "at most, a call was over before its first frame came"
    )


@pytest.mark.usefixtures("uncollected")
def test_callers_that_were_told_of_a_failure_take_no_place(
    airlock: Airlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("patient-4711")

    monkeypatch.setattr(SiteWorker, "execute", fail)
    for step in range(2 * MAX_CALLS):
        assert airlock.ask(airlock.hospital.question(step=step)).failure == "internal_error"
    assert airlock.client.status().failures == 2 * MAX_CALLS


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
    airlock: Airlock, asked: Asked, receive: Callable[[], memoryview] | None = None
) -> tuple[threading.Thread, list[Any]]:
    """A question at the worker's desk, in a thread of its own; the answer or its code."""
    outcome: list[Any] = []
    taken = receive or (lambda: asked.array)

    def ask() -> None:
        try:
            size = asked.array.nbytes
            outcome.append(airlock.desk.answer(asked.manifest, size, taken, here()))
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
    airlock.ask(airlock.hospital.question("describe", step=0))  # the model is there from now on
    counted.go.clear()
    received: list[memoryview] = []
    questions = [airlock.hospital.question(run=run * 16) for run in "abcdef"]

    def receive(asked: Asked) -> memoryview:
        received.append(asked.array)
        return asked.array

    asking = [waiting(airlock, asked, partial(receive, asked)) for asked in questions]
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
        eventually(lambda: airlock.client.status().run == "", within_s=1.0)
        assert len(steps) <= before + 2, "the step under way, and one begun before it was counted"
        assert not airlock.client.stop(asked.manifest.run)


def test_a_run_that_only_waits_is_stopped_at_once(airlock: Airlock, counted: Counted) -> None:
    """In the queue, for room for its array, and while its array comes; what is computed goes on."""
    counted.go.clear()
    first, answers = in_thread(airlock, airlock.hospital.question())
    assert counted.begun.wait(10)
    questions = [airlock.hospital.question(run=OTHER_RUN, step=step) for step in range(3)]
    asking = []
    for asked in questions:
        asking.append(waiting(airlock, asked))
        eventually(lambda: num_asked(airlock) == 1 + len(asking))
    assert airlock.client.stop(OTHER_RUN)
    for thread, outcome in asking:
        thread.join(5)
        assert outcome == ["stopped"]
    assert not airlock.client.stop(OTHER_RUN)
    assert airlock.desk._arrays._free == MAX_ARRAYS - 1
    counted.go.set()
    first.join(20)
    assert answers[0].failure == ""
    assert counted.computed == [airlock.hospital.question().manifest.digest()]


def test_a_run_whose_array_is_still_coming_is_stopped_before_it_is_computed(
    airlock: Airlock, counted: Counted
) -> None:
    coming, go = threading.Event(), threading.Event()
    asked = airlock.hospital.question()

    def receive() -> memoryview:
        coming.set()
        assert go.wait(10)
        return asked.array

    thread, outcome = waiting(airlock, asked, receive)
    assert coming.wait(10)
    assert airlock.client.stop(asked.manifest.run)
    go.set()
    thread.join(10)
    assert outcome == ["stopped"]
    assert counted.computed == []
    assert airlock.desk._arrays._free == MAX_ARRAYS


def test_what_was_stopped_in_the_queue_can_be_asked_anew_before_its_turn_would_have_come(
    airlock: Airlock, counted: Counted
) -> None:
    counted.go.clear()
    first, _ = in_thread(airlock, airlock.hospital.question())
    assert counted.begun.wait(10)
    asked = airlock.hospital.question(run=OTHER_RUN)
    stopped, outcome = waiting(airlock, asked)
    eventually(lambda: asked.manifest.digest() in airlock.desk._tasks)
    airlock.client.stop(OTHER_RUN)
    stopped.join(5)
    again, answers = in_thread(airlock, asked)
    eventually(lambda: asked.manifest.digest() in airlock.desk._tasks)
    counted.go.set()
    first.join(20)
    again.join(20)
    assert outcome == ["stopped"]
    assert answers[0].failure == ""
    assert counted.computed.count(asked.manifest.digest()) == 1


def test_a_stored_answer_is_given_at_once_whatever_is_computed(
    airlock: Airlock, counted: Counted
) -> None:
    asked = airlock.hospital.question()
    stored = airlock.ask(asked)
    counted.begun.clear()
    counted.go.clear()
    thread, _ = in_thread(airlock, airlock.hospital.question(run=OTHER_RUN))
    assert counted.begun.wait(10)
    assert airlock.ask(asked, deadline_s=5.0) == stored
    counted.go.set()
    thread.join(20)


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
