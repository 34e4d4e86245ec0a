"""Questions over Flower's grid: what may be lost is sent again, and an answer counts once."""

import time
from collections.abc import Callable, Mapping

import httpx
import pytest
from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.supercore.task_identity import TaskIdentity

from tests.contract.test_carrier_contract import question
from wardround_common.types import SiteId
from wardround_common.wire.flower import failure_content, make_reply
from wardround_server.rounds.carrier import Answer, FlowerCarrier
from wardround_server.rounds.whereabouts import Presence

A, B = SiteId("a"), SiteId("b")
SUPERLINK = 1
NODE_OF = {A: 11, B: 12}


class Sites:
    """Who is there."""

    may_come = True

    def __init__(self) -> None:
        self.there: dict[SiteId, Presence] = {site: Presence(NODE_OF[site]) for site in (A, B)}

    def look(self) -> Mapping[SiteId, Presence]:
        return self.there


class Grid:
    """Flower's, as far as the carrier uses it: messages wait until a test answers them."""

    def __init__(self) -> None:
        self.sent: dict[str, Message] = {}
        self.replies: list[Message] = []
        self.outage: Exception | None = None

    def push_messages(self, messages: list[Message]) -> list[str]:
        self._fail()
        names = []
        for message in messages:
            name = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = name
            self.sent[name] = message
            names.append(name)
        return names

    def pull_messages(self, names: list[str]) -> list[Message]:
        self._fail()
        found = [m for m in self.replies if m.metadata.reply_to_message_id in names]
        self.replies = []
        return found

    def to(self, site: SiteId) -> list[str]:
        """Names of the messages to a site."""
        return [n for n, m in self.sent.items() if m.metadata.dst_node_id == NODE_OF[site]]

    def answer(self, name: str, *, by: int | None = None, code: str = "answered") -> None:
        """The site's reply; ``code`` tells answers apart."""
        asked = self.sent[name]
        reply = make_reply(asked, failure_content(code))
        reply.metadata.__dict__["_src_node_id"] = by or asked.metadata.dst_node_id
        self.replies.append(reply)

    def error(self, name: str, code: int, by: int = SUPERLINK) -> None:
        """Flower's word that there is no reply."""
        self.answer(name, by=by)
        self.replies[-1] = make_message(self.replies[-1].metadata, error=Error(code, ""))

    def _fail(self) -> None:
        if self.outage is not None:
            raise self.outage


class World:
    """A carrier, and a clock that a test moves."""

    def __init__(self) -> None:
        self.grid, self.sites, self.now = Grid(), Sites(), 0.0
        self.carrier = FlowerCarrier(self.grid, self.sites, lambda: self.now)  # type: ignore[arg-type]

    def ask(self, step: int = 3, deadline_s: float = 100.0) -> None:
        assert self.carrier.send(question(step, sites="ab"), (A, B), deadline_s) == ()

    def poll(self, after_s: float = 0.0) -> list[Answer]:
        self.now += after_s
        return list(self.carrier.poll())


@pytest.fixture
def world() -> World:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 5, SUPERLINK, 7
    return World()


def test_a_message_that_was_sent_before_its_node_came_anew_is_sent_again(world: World) -> None:
    world.ask()
    world.sites.there[A] = Presence(NODE_OF[A], since=time.time() + 1)
    assert world.poll() == []
    assert (len(world.grid.to(A)), len(world.grid.to(B))) == (2, 1)
    world.poll(after_s=5.0)
    assert len(world.grid.to(A)) == 3, "not until it is sent after the node came"


def test_where_no_one_sees_that_a_node_came_anew_its_message_is_lost(world: World) -> None:
    world.ask()
    world.sites.there[A] = Presence(NODE_OF[A], since=0.0)
    for _ in range(20):
        assert world.poll(after_s=4.0) == []
    assert len(world.grid.to(A)) == 1


@pytest.mark.parametrize("code", [3, 4, 5])
def test_what_flower_has_lost_is_sent_again_after_a_moment(world: World, code: int) -> None:
    world.ask()
    (first,) = world.grid.to(A)
    world.grid.error(first, code)
    assert world.poll() == []
    assert world.grid.to(A) == [first]
    world.poll(after_s=1.1)
    assert len(world.grid.to(A)) == 2
    world.grid.answer(world.grid.to(A)[1])
    assert [answer.site for answer in world.poll()] == [A]


def test_an_app_that_crashes_again_and_again_is_a_failure(world: World) -> None:
    world.ask()
    for _ in range(2):
        world.grid.error(world.grid.to(A)[-1], 8)
        assert world.poll() == []
        world.poll(after_s=1.1)
    world.grid.error(world.grid.to(A)[-1], 8)
    (answer,) = world.poll()
    assert (answer.site, answer.failure) == (A, "site_unreachable")
    assert len(world.grid.to(A)) == 3


def test_a_site_that_was_asked_twice_answers_once(world: World) -> None:
    world.ask()
    world.sites.there[A] = Presence(NODE_OF[A], since=time.time() + 1)
    world.poll()
    first, second = world.grid.to(A)
    world.grid.answer(second)
    assert len(world.poll()) == 1
    world.grid.answer(first)
    world.grid.answer(second)
    assert world.poll(after_s=5.0) == []
    assert len(world.grid.to(A)) == 2, "nor is it asked again"


def test_who_is_not_there_is_asked_when_it_comes_and_not_after_the_deadline(
    world: World,
) -> None:
    away = world.sites.there.pop(A)
    world.ask(deadline_s=10.0)
    world.poll(after_s=5.0)
    assert world.grid.to(A) == []
    world.sites.there[A] = away
    world.poll()
    assert len(world.grid.to(A)) == 1

    del world.sites.there[B]
    world.ask(step=4, deadline_s=10.0)
    world.sites.there[B] = Presence(NODE_OF[B])
    before = len(world.grid.to(B))
    world.poll(after_s=11.0)
    assert len(world.grid.to(B)) == before


@pytest.mark.parametrize(
    "outage",
    [
        lambda: httpx.ConnectError("away"),
        lambda: httpx.ReadTimeout("slow"),
        lambda: httpx.HTTPStatusError(
            "x", request=httpx.Request("POST", "https://x"), response=httpx.Response(503)
        ),
    ],
)
def test_a_superlink_that_restarts_is_waited_for(
    world: World, outage: Callable[[], Exception]
) -> None:
    world.grid.outage = outage()
    world.ask()
    assert world.poll(after_s=2.0) == []
    world.grid.outage = None
    world.poll(after_s=2.0)
    world.grid.answer(world.grid.to(A)[0])
    world.grid.outage = outage()
    assert world.poll() == []
    world.grid.outage = None
    assert [answer.site for answer in world.poll()] == [A]


def test_a_refusal_that_does_not_pass_is_an_error(world: World) -> None:
    request = httpx.Request("POST", "https://x")
    world.grid.outage = httpx.HTTPStatusError("x", request=request, response=httpx.Response(401))
    with pytest.raises(httpx.HTTPStatusError):
        world.ask()


def test_another_nodes_word_neither_counts_nor_uses_up_the_sites(world: World) -> None:
    world.ask()
    (name,) = world.grid.to(A)
    world.grid.answer(name, by=NODE_OF[B], code="forged")
    world.grid.error(name, 5, by=NODE_OF[B])
    assert world.poll() == []
    world.grid.answer(name)
    (answer,) = world.poll(after_s=2.0)
    assert (answer.site, answer.failure) == (A, "answered")


def test_a_late_answer_names_its_own_step(world: World) -> None:
    world.ask(step=3)
    (late,) = world.grid.to(A)
    world.ask(step=4)
    world.grid.answer(late)
    (answer,) = world.poll()
    assert (answer.site, answer.step) == (A, 3)
    world.grid.answer(world.grid.to(A)[1])
    (answer,) = world.poll()
    assert (answer.site, answer.step) == (A, 4)
