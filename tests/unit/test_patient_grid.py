"""What the ServerApp's grid makes of replies: lost, slow, too large, or of no form."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Message
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.retry import RetryState

from wardround_server.aggregator.flower.grid import PatientGrid

UNKNOWN, MESSAGE_UNAVAILABLE = 0, 3
LIMIT = 1000


class SuperLink:
    """The Runtime API: replies that a test puts there, and the parts that have come."""

    def __init__(self) -> None:
        self.replies: list[tuple[str, str]] = []
        self.parts: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.trouble: Exception | None = None
        self.retries = SimpleNamespace(wait_gen_factory=None, on_backoff=None)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802  flwr's
        if self.trouble is not None:  # as flwr's client does: it tries again by itself
            state = RetryState(print, (), {}, 1, 0.0)
            state.exception, self.trouble = self.trouble, None
            self.retries.on_backoff(state)
        response = PullAppMessagesResponse()
        for question, reply in self.replies:
            if question in request.message_ids:
                head = response.messages_list.add().metadata
                head.message_id, head.reply_to_message_id, head.src_node_id = reply, question, 7
                response.message_object_trees.add(object_id=reply)
        self.replies = []
        return response

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802  flwr's
        self.fetched.append(request.object_id)
        content = self.parts.get(request.object_id, b"")
        return PullObjectResponse(
            object_found=True, object_available=bool(content), object_content=content
        )

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802  flwr's
        """Nothing to do."""


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(superlink: SuperLink) -> PatientGrid:
    flowers: Any = SimpleNamespace(
        _retry_invoker=superlink.retries,
        _runtime_client=superlink,
        node=Node(node_id=1),
        run=SimpleNamespace(run_id=5),
    )
    return PatientGrid(flowers, LIMIT)


def codes(messages: Any) -> dict[str, int]:
    found: list[Message] = list(messages)
    return {m.metadata.reply_to_message_id: m.error.code for m in found}


@pytest.mark.parametrize("error", [httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout])
def test_what_was_not_there_when_an_answer_was_lost_is_reported_as_lost(
    superlink: SuperLink, grid: PatientGrid, error: type[httpx.TransportError]
) -> None:
    superlink.trouble = error("cut")
    superlink.replies = [("q1", "r1")]
    assert codes(grid.pull_messages(["q1", "q2"])) == {"q2": MESSAGE_UNAVAILABLE}
    assert codes(grid.pull_messages(["q1", "q2"])) == {}, "once, and not for ever"


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout])
def test_where_nobody_heard_the_question_nothing_was_lost(
    superlink: SuperLink, grid: PatientGrid, error: type[httpx.TransportError]
) -> None:
    superlink.trouble = error("away")
    assert codes(grid.pull_messages(["q1", "q2"])) == {}


def test_a_reply_whose_parts_are_on_their_way_holds_nobody_up(
    superlink: SuperLink, grid: PatientGrid
) -> None:
    superlink.replies = [("q1", "r1"), ("q2", "r2")]
    superlink.parts["r2"] = b"no message"
    assert codes(grid.pull_messages(["q1", "q2"])) == {"q2": UNKNOWN}
    superlink.parts["r1"] = b"no message either"
    assert codes(grid.pull_messages(["q1"])) == {"q1": UNKNOWN}


def test_one_reply_at_a_time_is_in_memory(superlink: SuperLink, grid: PatientGrid) -> None:
    superlink.replies = [("q1", "r1"), ("q2", "r2")]
    superlink.parts |= {"r1": b"no message", "r2": b"no message either"}
    wanted = ["q1", "q2"]
    (first,) = codes(grid.pull_messages(wanted))
    assert superlink.fetched == ["r1"]
    wanted.remove(first)
    assert codes(grid.pull_messages(wanted)) == {"q2": UNKNOWN}
    assert superlink.fetched == ["r1", "r2"]


def test_a_reply_that_is_larger_than_any_answer_is_an_error(
    superlink: SuperLink, grid: PatientGrid
) -> None:
    superlink.replies = [("q1", "r1")]
    superlink.parts["r1"] = b"x" * (LIMIT + 1)
    assert codes(grid.pull_messages(["q1"])) == {"q1": UNKNOWN}


def test_a_reply_that_does_not_become_whole_is_lost(
    superlink: SuperLink, grid: PatientGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardround_server.aggregator.flower.grid._WHOLE_WITHIN_S", 0.0)
    superlink.replies = [("q1", "r1")]
    assert codes(grid.pull_messages(["q1"])) == {"q1": MESSAGE_UNAVAILABLE}


def test_a_reply_that_nobody_wants_any_more_is_not_fetched(
    superlink: SuperLink, grid: PatientGrid
) -> None:
    superlink.replies = [("q1", "r1")]
    list(grid.pull_messages(["q1"]))
    superlink.fetched.clear()
    list(grid.pull_messages(["q2"]))
    assert superlink.fetched == []
