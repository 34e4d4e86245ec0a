"""Sites in worker processes: the same replies in the same order, and nothing lost with a worker."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

from wardround_common.errors import DataError, RoundError
from wardround_common.wire.flower import array_of, json_of, make_reply, to_content
from wardround_common.wire.layout import layout_of
from wardround_server.simulation import worker_grid
from wardround_server.simulation.failures import Failures
from wardround_server.simulation.shared_memory import BlockPool
from wardround_server.simulation.worker_grid import WorkerGrid

SITES = ("a", "b", "c", "d", "e")


def _answer(message: Message, context: Context) -> Message:
    """The question's array times the site's place, and the process that answered."""
    place = SITES.index(str(context.node_config["site"])) + 1
    array = array_of(message.content)
    time.sleep(0.02 / place)  # the later a site is in the roster, the sooner it ends
    content = to_content(str(os.getpid()).encode(), None if array is None else array * place)
    return make_reply(message, content)


@contextmanager
def _grid(app: Any = _answer, num_workers: int = 2, **settings: Any) -> Iterator[WorkerGrid]:
    failures = settings.pop("failures", Failures(lambda site, error: None))
    settings.setdefault("begin", lambda place: None)
    grid = WorkerGrid(app, SITES, num_workers=num_workers, failures=failures, **settings)
    try:
        yield grid
    finally:
        grid.close()


def _ask(grid: WorkerGrid, values: Any, kind: str = "train") -> list[tuple[int, Any]]:
    """Node and array of each reply in the order in which they are handed over, arrays copied."""
    array = None if values is None else np.asarray(values, dtype=np.float32)
    content = to_content(b"question", array)
    questions = [Message(content, node, kind) for node in grid.get_node_ids()]
    open_ids = list(grid.push_messages(questions))
    found = []
    while open_ids:
        (reply,) = grid.pull_messages(open_ids)
        open_ids.remove(reply.metadata.reply_to_message_id)
        got = array_of(reply.content)
        found.append((reply.metadata.src_node_id, None if got is None else got.tolist()))
    return found


@pytest.mark.parametrize("num_workers", [1, 2, 3, 9])
def test_replies_are_those_of_one_process_in_the_order_of_the_roster(num_workers: int) -> None:
    with _grid(num_workers=num_workers) as grid:
        for values in ([1.0, 2.0], [3.0], np.arange(5000.0)):
            expected = [(2 + i, (np.asarray(values) * (i + 1)).tolist()) for i in range(5)]
            assert _ask(grid, values) == expected
        assert _ask(grid, None) == [(2 + i, None) for i in range(5)]


def test_a_site_goes_back_to_the_worker_that_had_it() -> None:
    def where(grid: WorkerGrid) -> list[bytes]:
        content = to_content(b"question", np.ones(3, dtype=np.float32))
        replies = []
        ids = list(grid.push_messages([Message(content, n, "train") for n in grid.get_node_ids()]))
        for _ in ids:
            (reply,) = grid.pull_messages(ids)
            replies.append(json_of(reply.content))
        return replies

    with _grid(num_workers=5) as grid:
        first = where(grid)
        assert len(set(first)) == 5
        assert where(grid) == first == where(grid)


def test_the_first_questions_are_answered_before_the_workers_exist() -> None:
    loaded: list[str] = []

    def load_once(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        if site not in loaded:
            loaded.append(site)
        return make_reply(message, to_content(",".join(loaded).encode(), None))

    with _grid(load_once) as grid:
        _ask(grid, None, "query.describe")
        assert loaded == list(SITES)
        content = to_content(b"question", None)
        ids = list(grid.push_messages([Message(content, 2, "train")]))
        (reply,) = grid.pull_messages(ids)
        assert json_of(reply.content) == b"a,b,c,d,e"  # what was loaded is in the worker


@pytest.mark.parametrize("early", [False, True])
def test_a_reply_stays_as_it_is_until_the_next_is_asked_for(
    early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin gives every block back at once: replies that wait are overwritten."""
    if early:
        monkeypatch.setattr(BlockPool, "take", _first_block)
    with _grid(num_workers=1) as grid:
        expected = [(2 + i, [float(i + 1)]) for i in range(5)]
        content = to_content(b"question", np.ones(1, dtype=np.float32))
        ids = list(grid.push_messages([Message(content, n, "train") for n in grid.get_node_ids()]))
        found = []
        for _ in ids:
            (reply,) = grid.pull_messages(ids)
            time.sleep(0.03)  # the worker is ahead by now
            found.append((reply.metadata.src_node_id, array_of(reply.content).tolist()))
        assert (found == expected) is not early


def _first_block(pool: BlockPool, num_bytes: int) -> Any:
    from wardround_server.simulation.shared_memory import SharedBlock

    if 1 not in pool._blocks:
        pool._blocks[1] = SharedBlock(num_bytes)
    return 1, pool._blocks[1]


def test_an_update_that_lies_in_shared_memory_is_sent_as_it_lies() -> None:
    """Every second site answers with another array than the placed one, which is then copied."""
    places: list[Any] = []
    copies: list[int] = []

    def answer(message: Message, context: Context) -> Message:
        site = SITES.index(str(context.node_config["site"]))
        (place,), layout = places, layout_of({"x": torch.zeros(3)})
        placed = place(layout)
        placed[:] = site
        array = placed if site % 2 == 0 else placed + 0.0
        return make_reply(message, to_content(f"{len(copies)}".encode(), array))

    def begin(place: Any) -> None:
        places.append(place)
        copyto = np.copyto
        np.copyto = lambda *arrays: (copies.append(1), copyto(*arrays))

    with _grid(answer, num_workers=1, begin=begin) as grid:
        for _ in range(3):
            assert _ask(grid, [1.0]) == [(2 + i, [float(i)] * 3) for i in range(5)]
        content = to_content(b"question", np.ones(1, dtype=np.float32))
        (asked,) = grid.push_messages([Message(content, 2, "train")])
        (reply,) = grid.pull_messages([asked])
        assert json_of(reply.content) == b"6", "two sites of five, three times"


def test_a_worker_far_ahead_never_holds_up_whose_turn_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow_first(message: Message, context: Context) -> Message:
        if context.node_config["site"] == "a":
            time.sleep(0.1)
        return _answer(message, context)

    monkeypatch.setattr(worker_grid, "_AHEAD_BYTES", 0)
    with _grid(slow_first, num_workers=2) as grid:
        for _ in range(3):
            assert [node for node, _ in _ask(grid, [1.0])] == [2, 3, 4, 5, 6]
            assert all(worker.num_ahead <= 2 for worker in grid._workers)


def test_what_fails_in_a_worker_is_told_here_in_full() -> None:
    failures = Failures(lambda site, error: told.append((site, error)))
    told: list[tuple[str, Exception]] = []

    def fail(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        error = DataError(f"{site}.csv: row 3", code="row") if site == "a" else KeyError("x")
        failures.note(site, error)
        return make_reply(message, to_content(b"done", None))

    with _grid(fail, failures=failures) as grid:
        _ask(grid, None)
    by_site = dict(told)
    assert set(by_site) == set(SITES)
    assert isinstance(by_site["a"], DataError)
    assert (str(by_site["a"]), by_site["a"].code) == ("a.csv: row 3", "row")
    assert str(by_site["b"]) == "KeyError: 'x'"
    assert failures.first is not None


def test_a_worker_that_is_killed_ends_the_run_with_advice() -> None:
    def die(message: Message, context: Context) -> Message:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with _grid(die) as grid, pytest.raises(RoundError, match="--resume") as raised:
        _ask(grid, [1.0])
    assert raised.value.code == "worker_ended"


def test_workers_end_with_the_grid() -> None:
    with _grid() as grid:
        _ask(grid, [1.0])
        processes = [worker.process for worker in grid._workers]
        assert all(process.is_alive() for process in processes)
    assert [process.exitcode for process in processes] == [0, 0]
