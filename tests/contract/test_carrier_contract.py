"""What every carrier promises the engine: one set of tests for the fake and for Flower messages.

1. Every asked site gets the same manifest bytes and array; nobody else gets anything.
2. An answer names its site by connection and its step; a late one names the earlier step.
3. An array has exactly the promised size and dtype, or the answer is a failure with a code.
4. It ends when everybody has answered or failed, or at the deadline.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from tests.malformed import MALFORMED
from tests.streams import StreamWorld
from tests.support import (
    RUN,
    Arrival,
    FakeCarrier,
    FakeSite,
    Fault,
    StubModel,
    federation,
    manifest_of,
    never,
)
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.flower import (
    STYPE,
    failure_content,
    json_of,
    make_reply,
    packed_of,
    to_content,
)
from wardround_common.wire.layout import as_bytes
from wardround_common.wire.step import StepManifest, layout_to_wire
from wardround_server.rounds.carrier import Answer, Carrier, FlowerCarrier, Question
from wardround_server.simulation.local_grid import LocalGrid
from wardround_server.stream.carrier import StreamCarrier

SITES = tuple(SiteId(name) for name in "abc")


def question(step: int = 3, kind: str = "train", sites: Iterable[str] = SITES) -> Question:
    """A question to some sites of the roster."""
    spec = federation()
    layout = StubModel(spec).layout(1)
    state = np.arange(layout.num_values, dtype=np.float32)
    manifest = StepManifest(
        run=RUN,
        step=step,
        kind=kind,  # type: ignore[arg-type]
        round=step,
        sites=spec.federation.sites,
        spec_sha256=spec.digest(),
        backbone_sha256=None,
        state=layout_to_wire(layout),
        state_sha256=sha256_hex(as_bytes(state)),
        reply=layout_to_wire(layout) if kind == "train" else (),
        update_norm=100.0,
        subjects=1000,
        bound=100.0,
        seed=0,
    )
    asked = tuple(SiteId(site) for site in sites)
    return Question(
        step, manifest.kind, step, asked, manifest.to_bytes(), state, manifest.reply_layout
    )


class CarrierContract:
    """Inherited by one class for each carrier."""

    deadline_s = 30.0

    def carrier(self, sites: list[FakeSite], faults: Mapping[str, Fault]) -> Carrier:
        """The carrier under test, with these sites behind it."""
        raise NotImplementedError

    def ask(
        self, faults: Mapping[str, Fault] | None = None, *questions: Question
    ) -> tuple[list[list[Answer]], dict[str, FakeSite]]:
        sites = [FakeSite(name) for name in SITES]
        carrier = self.carrier(sites, faults or {})
        answers = [list(carrier.ask(each, self.deadline_s)) for each in questions or (question(),)]
        return answers, {site.name: site for site in sites}

    def test_every_asked_site_answers_once_with_what_it_sent(self) -> None:
        (answers,), sites = self.ask()
        assert sorted(answer.site for answer in answers) == list(SITES)
        for answer in answers:
            sent = sites[answer.site].reply(sites[answer.site].asked[0])
            assert (answer.step, answer.failure) == (3, None)
            assert answer.update is not None
            np.testing.assert_array_equal(answer.update, np.asarray(sent.data))
            assert answer.receipt == sent.receipt

    def test_every_asked_site_gets_the_same_question(self) -> None:
        _, sites = self.ask()
        wanted = manifest_of(question().manifest)
        assert [site.asked for site in sites.values()] == [[wanted]] * 3

    def test_nobody_else_is_asked(self) -> None:
        (answers,), sites = self.ask(None, question(sites=["b"]))
        assert [answer.site for answer in answers] == ["b"]
        assert [len(sites[name].asked) for name in "abc"] == [0, 1, 0]

    def test_a_step_without_an_array_gives_none(self) -> None:
        (answers,), _ = self.ask(None, question(kind="evaluate"))
        assert [answer.update for answer in answers] == [None] * 3
        assert all(answer.receipt for answer in answers)

    @pytest.mark.parametrize(
        "kind",
        [
            "array one byte short",
            "array half",
            "array with bytes after it",
            "array empty",
            "array of another dtype",
            "array of a thousand times the size",
        ],
    )
    def test_an_array_of_another_size_is_a_failure(self, kind: str) -> None:
        (answers,), _ = self.ask({"b": MALFORMED[kind].fault})
        failures = {answer.site: answer.failure for answer in answers}
        assert failures == {"a": None, "b": "update_bytes", "c": None}
        (bad,) = [answer for answer in answers if answer.site == "b"]
        assert bad.update is None

    def test_an_array_where_none_is_wanted_is_a_failure(self) -> None:
        smuggle: Fault = lambda honest, past: [  # noqa: E731
            Arrival(honest.site, honest.step, honest.receipt, b"\0" * 4)
        ]
        (answers,), _ = self.ask({"b": smuggle}, question(kind="evaluate"))
        assert {a.site: a.failure for a in answers} == {"a": None, "b": "update_bytes", "c": None}

    def test_a_sites_failure_comes_back_as_its_code(self) -> None:
        (answers,), _ = self.ask({"c": MALFORMED["a failure"].fault})
        assert {a.site: a.failure for a in answers}["c"] == "missing_column"

    def test_a_site_that_nobody_knows_fails_and_the_others_answer(self) -> None:
        (answers,), _ = self.ask(None, question(sites=["a", "nowhere"]))
        assert {a.site: a.failure for a in answers} == {"a": None, "nowhere": "site_unknown"}

    def test_a_site_that_does_not_answer_is_not_waited_for_beyond_the_deadline(self) -> None:
        (answers,), _ = self.ask({"b": never})
        assert sorted(answer.site for answer in answers) == ["a", "c"]

    def test_a_late_answer_names_the_earlier_step(self) -> None:
        def late(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
            return [past[-1], honest] if past else []

        (first, second), _ = self.ask({"b": late}, question(3), question(4))
        assert sorted(answer.site for answer in first) == ["a", "c"]
        assert sorted((answer.step, answer.site) for answer in second) == [
            (3, "b"),
            (4, "a"),
            (4, "b"),
            (4, "c"),
        ]
        for answer in second:
            assert json.loads(answer.receipt or b"")["step"] == answer.step

    def test_the_question_is_not_changed_by_the_sites(self) -> None:
        asked = question()
        before = asked.state.copy()
        self.ask(None, asked)
        np.testing.assert_array_equal(asked.state, before)


class TestFakeCarrier(CarrierContract):
    """The one that the engine's tests use."""

    def carrier(self, sites: list[FakeSite], faults: Mapping[str, Fault]) -> Carrier:
        return FakeCarrier(sites, faults, seed=4)


class TickingClock:
    """Every look at it is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class FaultyGrid(LocalGrid):
    """A LocalGrid whose sites' replies go through their faults; unanswered messages stay open."""

    def __init__(self, sites: list[FakeSite], faults: Mapping[str, Fault]) -> None:
        self._sites = {site.name: site for site in sites}
        self._faults = faults
        self._past: dict[str, list[Arrival]] = {}
        self._messages: dict[tuple[str, int], Message] = {}
        self._held: list[Message] = []
        super().__init__(self._unused, [site.name for site in sites])

    def _unused(self, message: Message, context: Context) -> Message:
        raise AssertionError(message, context)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        while self._waiting:
            message = self._waiting.popleft()
            self._held += self._answers(message)
        ready = [m for m in self._held if m.metadata.reply_to_message_id in wanted]
        self._held = [m for m in self._held if m not in ready]
        return ready

    def _answers(self, message: Message) -> list[Message]:
        name = self._site_of[message.metadata.dst_node_id]
        manifest = manifest_of(json_of(message.content))
        state = packed_of(message.content, manifest.state_layout)
        assert state is not None
        assert sha256_hex(as_bytes(state)) == manifest.state_sha256
        honest = self._sites[name].reply(manifest)
        past = self._past.setdefault(name, [])
        self._messages[name, honest.step] = message
        arrivals = self._faults[name](honest, past) if name in self._faults else [honest]
        past.append(honest)
        return [make_reply(self._messages[name, a.step], self.content(a)) for a in arrivals]

    def content(self, arrival: Arrival) -> RecordDict:
        """An arrival as Flower brings it: bytes that crossed a wire are a plain Array."""
        if arrival.failure is not None or arrival.receipt is None:
            return failure_content(arrival.failure or "no_receipt")
        if not isinstance(arrival.data, bytes):
            return to_content(arrival.receipt, arrival.data)
        content = to_content(arrival.receipt, None)
        array = Array(dtype="float32", shape=(1,), stype=STYPE, data=arrival.data)
        content["arrays"] = ArrayRecord({"packed": array})
        return content


def between_processes(message: Message) -> Message:
    """The message as it is after Flower took it apart and a receiver put it together."""
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    received = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(received, Message)
    received.metadata.__dict__["_message_id"] = message.metadata.message_id
    return received


class SerialisingGrid(FaultyGrid):
    """As between processes: whatever is sent goes through Flower's own encoding, both ways."""

    def _answers(self, message: Message) -> list[Message]:
        return [between_processes(reply) for reply in super()._answers(between_processes(message))]


class TestFlowerCarrier(CarrierContract):
    """Flower messages within one process."""

    grid: Callable[..., FaultyGrid] = FaultyGrid

    @pytest.fixture(autouse=True)
    def _no_sleep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wardround_server.rounds.carrier.time.sleep", lambda seconds: None)

    def carrier(self, sites: list[FakeSite], faults: Mapping[str, Fault]) -> FlowerCarrier:
        grid = type(self).grid(sites, faults)
        nodes = {SiteId(node.name): node.node_id for node in grid.get_nodes()}
        return FlowerCarrier(grid, nodes, clock=TickingClock())

    def test_within_one_process_the_array_itself_is_handed_over(self) -> None:
        sent: list[Any] = []

        def keep(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
            sent.append(honest.data)
            return [honest]

        (answers,), _ = self.ask({"a": keep})
        (answer,) = [a for a in answers if a.site == "a"]
        assert answer.update is sent[0]

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c.__delitem__("wardround"),
            lambda c: c.__setitem__("more", ConfigRecord({"x": 1})),
            lambda c: c.__setitem__("wardround", ConfigRecord({"bytes": "text"})),
            lambda c: c.__setitem__("wardround", ConfigRecord({})),
            lambda c: c.__setitem__("wardround", ConfigRecord({"failure": 3})),
            lambda c: c.__setitem__("wardround", ConfigRecord({"failure": "Mr Example, 54"})),
            lambda c: c.__setitem__("wardround", ConfigRecord({"failure": "x" * 41})),
            lambda c: c.__setitem__("wardround", ConfigRecord({"failure": "\u00e9"})),
            lambda c: c.__setitem__("more", ArrayRecord({})),
            lambda c: c.__setitem__(
                "arrays", ArrayRecord({"packed": Array.from_numpy_ndarray(np.zeros(8))})
            ),
            lambda c: c.__setitem__("arrays", ArrayRecord({})),
        ],
    )
    def test_content_of_another_form_is_a_failure_without_its_text(self, change: Any) -> None:
        class Bent(FaultyGrid):
            def content(self, arrival: Arrival) -> RecordDict:
                content = super().content(arrival)
                if arrival.site == "b":
                    change(content)
                return content

        sites = [FakeSite(name) for name in SITES]
        grid = Bent(sites, {})
        nodes = {SiteId(node.name): node.node_id for node in grid.get_nodes()}
        answers = list(FlowerCarrier(grid, nodes, clock=TickingClock()).ask(question(), 30.0))
        assert {a.site: a.failure for a in answers} == {"a": None, "b": "message_form", "c": None}

    def test_an_error_of_flower_is_a_failure(self) -> None:
        class Failing(FaultyGrid):
            def _answers(self, message: Message) -> list[Message]:
                return [Message(Error(0, "Traceback: /data/patients.csv"), reply_to=message)]

        grid = Failing([FakeSite(name) for name in SITES], {})
        nodes = {SiteId(node.name): node.node_id for node in grid.get_nodes()}
        answers = list(FlowerCarrier(grid, nodes, clock=TickingClock()).ask(question(), 30.0))
        assert [a.failure for a in answers] == ["site_unreachable"] * 3

    def test_one_node_cannot_answer_for_another(self) -> None:
        class Impostor(FaultyGrid):
            def _answers(self, message: Message) -> list[Message]:
                replies = super()._answers(message)
                name = self._site_of[message.metadata.dst_node_id]
                if name == "b":  # from the node of a, to the message for b, before b's own
                    (honest,) = replies
                    forged = make_reply(message, honest.content)
                    node = next(n for n, s in self._site_of.items() if s == "a")
                    forged.metadata.__dict__["_src_node_id"] = node
                    forged.content["wardround"] = ConfigRecord({"failure": "forged"})
                    return [forged, make_reply(message, super().content(self._past["b"][-1]))]
                return replies

        grid = Impostor([FakeSite(name) for name in SITES], {})
        nodes = {SiteId(node.name): node.node_id for node in grid.get_nodes()}
        answers = list(FlowerCarrier(grid, nodes, clock=TickingClock()).ask(question(), 30.0))
        assert {a.site: a.failure for a in answers} == {"a": None, "b": None, "c": None}


class TestFlowerCarrierBetweenProcesses(TestFlowerCarrier):
    """Flower messages whose arrays went through Flower's encoding."""

    grid = SerialisingGrid

    def test_within_one_process_the_array_itself_is_handed_over(self) -> None:
        """Not between processes."""


class TestStreamCarrier(CarrierContract):
    """Tensor streams over loopback, TLS and all."""

    deadline_s = 2.0

    @pytest.fixture(autouse=True)
    def _worlds(self, tmp_path: Path) -> Iterator[None]:
        self._folder, self._opened = tmp_path, list[StreamWorld]()
        yield
        for world in self._opened:
            world.close()

    def carrier(self, sites: list[FakeSite], faults: Mapping[str, Fault]) -> StreamCarrier:
        world = StreamWorld(self._folder / "spool", sites, faults)
        self._opened.append(world)
        return world.carrier

    def test_nothing_is_left_in_the_spool(self) -> None:
        self.ask({"b": MALFORMED["array half"].fault})
        assert list((self._folder / "spool").iterdir()) == []
