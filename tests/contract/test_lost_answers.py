"""An answer of the SuperLink is lost on its way, and with it a message that Flower hands over once.

Against a real SuperLink: the node or the ServerApp notices, the question is asked again, and the round
gets its answer.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import PushObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse

from tests.contract.node_site import Site
from tests.contract.real_superlink import RealSuperLink
from tests.contract.test_carrier_contract import question
from wardround_client.node import fleet
from wardround_client.node.fleet_api import GoneError
from wardround_common.errors import RoundError
from wardround_common.types import SiteId
from wardround_common.wire.flower import failure_content, make_reply
from wardround_server.aggregator.flower.grid import PatientGrid
from wardround_server.rounds.carrier import Answer, FlowerCarrier
from wardround_server.rounds.whereabouts import OnlineNodes

_WITHIN_S, _TWIN_S = 15.0, 2.5
A = SiteId("a")


class LosesOne:
    """An HTTP client's ``send`` that loses the first answer that hands a message over."""

    def __init__(self, client: httpx.Client, answer: Any) -> None:
        self._send, self._answer = client.send, answer
        self.lost = threading.Event()
        client.send = self  # type: ignore[method-assign]

    def __call__(self, request: httpx.Request, **more: Any) -> httpx.Response:
        answer = self._send(request, **more)
        if request.url.path.endswith("/pull-messages") and not self.lost.is_set():
            answer.read()
            if self._answer.FromString(answer.content).messages_list:
                self.lost.set()
                raise httpx.ReadError("the line is cut", request=request)
        return answer


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSuperLink]:
    with RealSuperLink(tmp_path_factory.mktemp("superlink")) as running:
        yield running


class World:
    """A site that answers, and a carrier that asks it, over one SuperLink."""

    def __init__(self, superlink: RealSuperLink, folder: Path) -> None:
        self._superlink = superlink
        folder = folder / "a"
        folder.mkdir()
        self.site = Site(superlink, folder)
        self.life = self.site.opened()
        superlink.start_run()
        self.flowers = superlink.grid()
        self.grid = PatientGrid(self.flowers, 1 << 20)
        self.carrier = FlowerCarrier(self.grid, OnlineNodes(self.grid, ["a"], every_s=0.1))
        self.answered = 0

    def answers(self, within_s: float) -> list[Answer]:
        serving = threading.Thread(target=self._serve, daemon=True)
        serving.start()
        found = list(self.carrier.ask(question(sites="a"), within_s))
        self.site.stops[-1].set()
        serving.join()
        return found

    def close(self) -> None:
        self.site.end()
        self._superlink.unregister(self.site.node_id)
        with contextlib.suppress(httpx.HTTPStatusError):
            self._superlink.stop_run(self.flowers.run.run_id)
        self.flowers.close()

    def _serve(self) -> None:
        with contextlib.suppress(GoneError):
            while True:
                try:
                    message = self.life.pull()
                except RoundError:
                    continue
                if message is None:
                    time.sleep(0.02)
                    continue
                reply = make_reply(message.message, failure_content("answered"))
                self.life.push(message, reply, 0.1)
                self.answered += 1


@pytest.fixture
def world(superlink: RealSuperLink, tmp_path: Path) -> Iterator[World]:
    made = World(superlink, tmp_path)
    yield made
    made.close()


def test_a_question_that_was_lost_on_its_way_to_the_node_is_asked_again(world: World) -> None:
    loses = LosesOne(world.life._api.client._client, PullMessagesResponse)
    (answer,) = world.answers(_WITHIN_S)
    assert loses.lost.is_set()
    assert (answer.site, answer.failure) == (A, "answered")


def test_where_the_node_does_not_come_anew_the_question_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "is_unheard", lambda error: False)
    loses = LosesOne(world.life._api.client._client, PullMessagesResponse)
    assert world.answers(_TWIN_S) == []
    assert loses.lost.is_set()


def test_an_answer_that_was_lost_on_its_way_to_the_serverapp_is_asked_for_again(
    world: World,
) -> None:
    loses = LosesOne(world.flowers._runtime_client._client, PullAppMessagesResponse)
    (answer,) = world.answers(_WITHIN_S)
    assert loses.lost.is_set()
    assert (answer.site, answer.failure) == (A, "answered")
    assert world.answered == 2, "by the site, from what it has stored"


class LosesBegun:
    """A node's ``send`` that loses the first answer that says which parts of a reply are wanted.

    By then the ServerApp has begun to take the reply, so that the SuperLink does not say it again.
    """

    def __init__(self, world: World) -> None:
        client = world.life._api.client._client
        self._send, self._grid = client.send, world.grid
        self.lost = threading.Event()
        client.send = self  # type: ignore[method-assign]

    def __call__(self, request: httpx.Request, **more: Any) -> httpx.Response:
        answer = self._send(request, **more)
        if request.url.path.endswith("/push-messages") and not self.lost.is_set():
            self.lost.set()
            while not self._grid._arriving:
                time.sleep(0.01)
            raise httpx.ReadError("the line is cut", request=request)
        return answer


def test_a_reply_that_was_cut_off_before_its_parts_is_asked_for_again(world: World) -> None:
    loses = LosesBegun(world)
    (answer,) = world.answers(_WITHIN_S)
    assert loses.lost.is_set()
    assert (answer.site, answer.failure) == (A, "answered")
    assert world.answered == 2, "by the site, from what it has stored"


def test_where_the_node_does_not_come_anew_everybody_waits_for_the_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.life, "_leave", lambda node_id: True)
    monkeypatch.setattr(world.life, "_activate", lambda: None)
    loses = LosesBegun(world)
    assert world.answers(_TWIN_S) == []
    assert loses.lost.is_set()


class LosesRoot:
    """The ServerApp's client, which believes to have sent the first message whole."""

    def __init__(self, client: Any) -> None:
        self._push = client.PushObject
        self.lost = threading.Event()
        client.PushObject = self

    def __call__(self, request: Any) -> Any:
        if request.object_content.startswith(b"Message") and not self.lost.is_set():
            self.lost.set()
            return PushObjectResponse(stored=True)
        return self._push(request)


def test_a_message_that_does_not_become_whole_is_given_up_and_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_PART_S", 0.5)
    loses = LosesRoot(world.flowers._runtime_client)
    (answer,) = world.answers(_WITHIN_S)
    assert loses.lost.is_set()
    assert (answer.site, answer.failure) == (A, "answered")


def test_who_waits_for_it_for_long_keeps_everything_else_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_PART_S", 60.0)
    loses = LosesRoot(world.flowers._runtime_client)
    assert world.answers(_TWIN_S) == []
    assert loses.lost.is_set()
