"""Tensor streams through everything that networks and processes do: same bytes, or a named failure."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.test_carrier_contract import question
from tests.fault.fault_proxy import Fault, FaultProxy
from tests.streams import PAUSES, NoMessages, StreamWorld, authority, eventually
from tests.support import (
    RUN,
    FakeCarrier,
    FakeSite,
    StubModel,
    fake_sites,
    federation,
    manifest_of,
    run_engine,
)
from wardround_client.node import stream
from wardround_client.node.stream import Pauses, StreamSessions
from wardround_common.stream.limits import CHUNK_BYTES, WINDOW_BYTES
from wardround_common.types import SiteId, TensorSpec, sha256_hex
from wardround_common.wire.layout import Layout, as_bytes
from wardround_common.wire.step import layout_to_wire
from wardround_server.rounds.carrier import Answer
from wardround_server.rounds.journal import Journal
from wardround_server.stream import server
from wardround_server.stream.carrier import Patience
from wardround_server.stream.session import SiteSession

CHUNKS = 8
ON_THE_WAY_BYTES = WINDOW_BYTES + 4 * CHUNK_BYTES
"""What may go twice when a connection is lost: windows, kernel buffers, records under encryption."""
Make = Callable[..., StreamWorld]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    opened: list[Any] = []

    def made(names: str = "a", plan: Any = None, **more: Any) -> StreamWorld:
        world = StreamWorld(tmp_path / "spool", [FakeSite(name) for name in names], **more)
        opened.append(world)
        if plan is not None:
            proxy = FaultProxy(world.port, plan)
            opened.append(proxy)
            world.address["a"] = proxy.address
            world.proxy = proxy  # type: ignore[attr-defined]
        return world

    yield made
    for each in opened:
        each.close()


def large(step: int = 3, sites: str = "a") -> Any:
    """A question whose arrays have several chunks, down and up."""
    plain = question(step, sites=sites)
    layout = Layout((TensorSpec("w", "float32", (CHUNKS * CHUNK_BYTES // 4 - 5,)),))
    state = np.arange(layout.num_values, dtype=np.float32)
    manifest = manifest_of(plain.manifest).model_copy(
        update={
            "state": layout_to_wire(layout),
            "reply": layout_to_wire(layout),
            "state_sha256": sha256_hex(as_bytes(state)),
        }
    )
    return replace(plain, manifest=manifest.to_bytes(), state=state, reply=layout)


def the_answer(world: StreamWorld, deadline_s: float = 10.0) -> Answer:
    (answer,) = list(world.carrier.ask(large(), deadline_s))
    return answer


def once(kind: Any, chunk: int, direction: Any = "up") -> Callable[[int], Fault]:
    """A plan: the first connection has a fault in the middle of a chunk, the others none."""
    fault = Fault(kind, chunk * CHUNK_BYTES + CHUNK_BYTES // 2, direction)
    return lambda number: fault if number == 0 else Fault()


def went_on(world: StreamWorld, direction: str) -> bool:
    """Whether nothing went twice but what was on its way when a connection was lost."""
    passed = world.proxy.num_bytes[direction]  # type: ignore[attr-defined]
    return bool(passed < CHUNKS * CHUNK_BYTES + ON_THE_WAY_BYTES)


def assert_honest(world: StreamWorld, answer: Answer) -> None:
    sent = world.airlocks["a"].site.reply(world.airlocks["a"].site.asked[0])
    assert answer.failure is None
    assert answer.receipt == sent.receipt
    np.testing.assert_array_equal(np.asarray(answer.update), np.asarray(sent.data))
    assert len(world.airlocks["a"].computed) == 1


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kind", ["cut", "reset", "truncate", "drop", "duplicate", "reorder"])
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_connection_lost_at_any_chunk_costs_only_what_was_on_its_way(
    make: Make, direction: Any, kind: Any, chunk: int
) -> None:
    world = make(plan=once(kind, chunk, direction))
    assert_honest(world, the_answer(world))
    assert world.carrier.ways == {"a": "stream"}
    assert world.proxy.num_connections == 2  # type: ignore[attr-defined]
    assert went_on(world, direction)


def test_twin_a_transfer_that_begins_anew_costs_what_came_before(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = SiteSession.attach

    def forgetful(session: SiteSession, *words: Any) -> Any:
        if session._asked is not None and session._asked.spool is not None:
            session._asked.spool.drop()
            session._asked.spool = None
        return attach(session, *words)

    monkeypatch.setattr(SiteSession, "attach", forgetful)
    world = make(plan=once("cut", CHUNKS - 1))
    assert_honest(world, the_answer(world))
    assert not went_on(world, "up")


@pytest.mark.parametrize("chunk", [0, CHUNKS // 2, CHUNKS - 1])
def test_what_an_old_connection_brings_after_a_newer_one_does_not_count(
    make: Make, chunk: int
) -> None:
    world = make(plan=once("late", chunk))
    assert_honest(world, the_answer(world))
    assert world.proxy.num_connections == 2  # type: ignore[attr-defined]


def test_every_connection_is_cut_after_a_chunk_and_the_answer_still_arrives(make: Make) -> None:
    world = make(
        plan=lambda number: Fault("cut", int(1.2 * CHUNK_BYTES), ("up", "down")[number % 2])
    )
    assert_honest(world, the_answer(world, 20.0))


def test_a_slow_line_is_only_slow(make: Make) -> None:
    world = make(plan=lambda number: Fault("delay", delay_s=0.001))
    assert_honest(world, the_answer(world))


def test_a_connection_that_is_open_at_one_end_only_is_noticed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"grpc.keepalive_time_ms": 1000, "grpc.http2.ping_timeout_ms": 500}
    allowed = {"grpc.http2.min_ping_interval_without_data_ms": 500}
    for module, name, more in (
        (stream, "CHANNEL_OPTIONS", quick),
        (server, "SERVER_OPTIONS", quick | allowed),
    ):
        options = dict(getattr(module, name)) | more
        monkeypatch.setattr(module, name, list(options.items()))
    world = make(plan=lambda n: Fault("half_open", 2 * CHUNK_BYTES) if n == 0 else Fault())
    assert_honest(world, the_answer(world))


def test_a_worker_lost_in_mid_answer_is_read_again(make: Make) -> None:
    world = make()
    airlock = world.airlocks["a"]

    def die(number: int) -> None:
        if number == 2:
            airlock.before = lambda number: None
            airlock.down.set()
            threading.Timer(0.2, airlock.down.clear).start()

    airlock.before = die
    assert_honest(world, the_answer(world))


class Messages(NoMessages):
    """The other way, which works."""

    def __init__(self) -> None:
        super().__init__()
        self.carrier = FakeCarrier([FakeSite(name) for name in "abc"])
        self.waiting: list[Answer] = []

    def send(self, question: Any, sites: Any, deadline_s: float) -> tuple[Answer, ...]:
        super().send(question, sites, deadline_s)
        self.waiting += self.carrier.ask(replace(question, sites=tuple(sites)), deadline_s)
        return ()

    def poll(self) -> list[Answer]:
        answers, self.waiting = self.waiting, []
        return answers


def test_a_site_that_never_opens_a_session_is_asked_by_message(make: Make) -> None:
    world = make("abc", messages=Messages(), absent="b", patience=Patience(open_s=0.5))
    answers = list(world.carrier.ask(question(), 10.0))
    assert {answer.site: answer.failure for answer in answers} == dict.fromkeys("abc")
    assert world.messages.sent == [(3, ("b",))]
    assert world.carrier.ways == {"a": "stream", "b": "messages", "c": "stream"}


def test_a_session_that_does_not_come_back_goes_by_message_and_later_by_stream(make: Make) -> None:
    world = make("a", messages=Messages(), plan=lambda number: Fault())
    world.carrier._patience = Patience(open_s=2.0, lost_s=0.3, again_s=0.0)
    airlock, proxy = world.airlocks["a"], world.proxy  # type: ignore[attr-defined]
    airlock.hold = threading.Event()

    def cut() -> None:
        eventually(lambda: airlock.computed)
        proxy.close()

    cutter = threading.Thread(target=cut)
    cutter.start()
    (answer,) = world.carrier.ask(question(3, sites="a"), 10.0)
    cutter.join()
    assert answer.failure is None
    assert world.messages.sent == [(3, ("a",))]
    assert world.carrier.ways == {"a": "messages"}
    airlock.hold.set()
    world.address.clear()  # the line is mended
    list(world.carrier.ask(question(4, sites="a"), 10.0))
    eventually(lambda: world.server.session(SiteId("a")).is_open)
    (again,) = world.carrier.ask(question(5, sites="a"), 10.0)
    assert (again.step, world.carrier.ways) == (5, {"a": "stream"})


def test_a_site_in_the_middle_of_reconnecting_is_waited_for(make: Make) -> None:
    world = make("a", plan=lambda number: Fault(), pauses=Pauses(first=0.4))
    list(world.carrier.ask(question(3, sites="a"), 10.0))
    world.proxy.cut()  # type: ignore[attr-defined]
    eventually(lambda: not world.server.session(SiteId("a")).is_open)
    (answer,) = world.carrier.ask(question(4, sites="a"), 10.0)
    assert (answer.failure, world.messages.sent) == (None, [])


def test_a_node_that_was_killed_is_invited_again_and_trains_nothing_twice(make: Make) -> None:
    world = make("a", patience=Patience(open_s=2.0, lost_s=5.0, again_s=0.0))
    airlock = world.airlocks["a"]
    airlock.hold = threading.Event()
    invites: list[Any] = []
    invite = world.carrier._invite
    world.carrier._invite = lambda each: (invites.append(each), invite(each))[1]  # type: ignore[func-returns-value]

    def kill() -> None:
        eventually(lambda: airlock.computed)
        world.nodes["a"].close()
        airlock.hold.set()
        world.nodes[SiteId("a")] = StreamSessions("a", authority().site("a"), airlock, PAUSES)
        world.nodes["a"].on_session(invites[0]["a"].to_bytes())

    killer = threading.Thread(target=kill)
    killer.start()
    (answer,) = world.carrier.ask(large(), 10.0)
    killer.join()
    assert_honest(world, answer)


@pytest.mark.parametrize("over", [False, True])
def test_a_refused_session_ends_and_stops_the_worker_only_if_its_run_is_over(
    make: Make, over: bool
) -> None:
    """The tokens of an aggregator that was started again are new ones; its run goes on."""
    world = make()
    airlock = world.airlocks["a"]
    node = StreamSessions("a", authority().site("a"), airlock, PAUSES, lambda run: over)
    stale = world.server.invite(SiteId("a")).model_copy(update={"token": "0" * 32})
    node.on_session(stale.to_bytes())
    session = node._sessions[RUN]
    for thread in session._threads:
        thread.join(5)
    assert not session.is_alive
    assert airlock.stopped == ([RUN] if over else [])


def test_a_site_whose_line_is_down_for_a_round_is_named_and_the_round_abandoned(
    tmp_path: Path,
) -> None:
    """Rather that than a round over the others alone."""
    spec = federation(rounds={"quorum_sites": 3})
    patience = Patience(open_s=5.0, lost_s=0.3, again_s=0.0)
    world = StreamWorld(tmp_path / "journal" / "spool", fake_sites(spec), patience=patience)
    proxy, site, ask = FaultProxy(world.port), SiteId("a"), world.carrier.ask
    world.address["a"] = proxy.address

    def asked(question: Any, deadline_s: float) -> Iterator[Answer]:
        if (question.kind, question.round) == ("train", 2):
            proxy.close()
        if (question.kind, question.round) == ("train", 3):
            world.address.clear()  # the line is mended
            world.carrier._invite_again([site])
            eventually(lambda: world.server.session(site).is_open)
        yield from ask(question, deadline_s)

    world.carrier.ask = asked  # type: ignore[method-assign]
    try:
        found = run_engine(spec, world.carrier, tmp_path / "journal")
    finally:
        world.close()
        proxy.close()
    steps = [step for step in found.steps if step.manifest.kind == "train"]
    assert [step.abandoned for step in steps] == [False, True, False]
    assert [step.refused for step in steps] == [[], [("a", "site_unknown")], []]
    assert found.model_round == 3


def test_the_end_of_the_run_stops_the_worker_and_the_sessions(make: Make) -> None:
    world = make("ab")
    world.airlocks["b"].hold = threading.Event()
    asked = world.carrier.ask(question(sites="ab"), 10.0)
    assert next(asked).site == "a"
    world.carrier.close()
    eventually(lambda: all(each.stopped for each in world.airlocks.values()))
    eventually(lambda: not any(node.open_runs for node in world.nodes.values()))
    world.airlocks["b"].hold.set()


def test_of_questions_that_wait_only_the_newest_is_answered(make: Make) -> None:
    world = make("a")
    airlock = world.airlocks["a"]
    airlock.hold = threading.Event()
    for step in (3, 4, 5):
        list(world.carrier.ask(question(step, sites="a"), 0.5))
    airlock.hold.set()
    answers = list(world.carrier.ask(question(6, sites="a"), 10.0))
    assert [(each.step, each.failure) for each in answers] == [(3, None), (6, None)]
    assert len(airlock.computed) == 2


@pytest.mark.parametrize("coding", ["fp32", "int8"])
def test_a_whole_run_by_stream_has_the_model_of_the_other_carrier(
    tmp_path: Path, make: Make, coding: str
) -> None:
    spec = federation(exchange={"update": {"coding": coding}})
    expected = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path / "other")
    world = StreamWorld(tmp_path / "journal" / "spool", fake_sites(spec))
    try:
        found = run_engine(spec, world.carrier, tmp_path / "journal", model=StubModel(spec))
    finally:
        world.close()
    assert found.state.digest() == expected.state.digest()
    assert list((tmp_path / "journal" / "spool").iterdir()) == []


def test_an_update_is_written_once_and_becomes_the_journals_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, stored, adopted = federation(), [], []
    store, adopt = Journal.store_as, Journal.adopt
    monkeypatch.setattr(
        Journal, "store_as", lambda self, d, data: (stored.append(d), store(self, d, data))
    )
    monkeypatch.setattr(
        Journal, "adopt", lambda self, d, path: (adopted.append(d), adopt(self, d, path))
    )
    world = StreamWorld(tmp_path / "journal" / "spool", fake_sites(spec))
    try:
        run_engine(spec, world.carrier, tmp_path / "journal")
    finally:
        world.close()
    assert len(adopted) == 3 * spec.rounds.count
    assert not set(stored) & set(adopted)


def test_a_run_through_a_line_that_is_cut_all_the_time_has_the_same_model(tmp_path: Path) -> None:
    spec = federation()
    expected = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path / "other")
    world = StreamWorld(tmp_path / "journal" / "spool", fake_sites(spec))
    proxy = FaultProxy(world.port)
    world.address["a"] = proxy.address
    done = threading.Event()

    def cutter() -> None:
        while not done.wait(0.15):
            proxy.cut()

    thread = threading.Thread(target=cutter)
    thread.start()
    started = time.monotonic()
    try:
        found = run_engine(spec, world.carrier, tmp_path / "journal")
    finally:
        done.set()
        thread.join()
        world.close()
        proxy.close()
    assert found.state.digest() == expected.state.digest()
    assert [r for step in found.steps for r in step.refused] == []
    assert time.monotonic() - started < 20
