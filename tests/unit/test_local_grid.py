"""Flower's grid within one process, and finding the roster's nodes in it."""

from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from wardround_common.errors import RoundError
from wardround_server.app import roster_nodes, server_app
from wardround_server.simulation.local_grid import LocalGrid


class Echo:
    """An app that answers with the name of the site that it was called for."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        self.called.append(site)
        return Message(RecordDict({"site": ConfigRecord({"name": site})}), reply_to=message)


def _message(node: int, kind: str = "train") -> Message:
    return Message(RecordDict(), node, kind)


def _names(replies: Iterable[Message]) -> list[str]:
    return [str(reply.content.config_records["site"]["name"]) for reply in replies]


def test_sites_compute_one_at_a_time_and_only_when_replies_are_pulled() -> None:
    app = Echo()
    grid = LocalGrid(app, ["a", "b"])
    ids = list(grid.push_messages([_message(node) for node in grid.get_node_ids()]))
    assert app.called == []
    assert _names(grid.pull_messages(ids)) == ["a"]
    assert app.called == ["a"]
    assert _names(grid.pull_messages(ids)) == ["b"]
    assert list(grid.pull_messages(ids)) == []


def test_only_wanted_replies_are_handed_over_and_others_wait() -> None:
    grid = LocalGrid(Echo(), ["a", "b"])
    first, second = grid.push_messages([_message(node) for node in grid.get_node_ids()])
    (reply,) = grid.pull_messages([second])
    assert _names([reply]) == ["b"]
    assert reply.metadata.reply_to_message_id == second
    assert _names(grid.pull_messages([first])) == ["a"]


def test_send_and_receive_returns_every_reply() -> None:
    grid = LocalGrid(Echo(), ["a", "b", "c"])
    replies = grid.send_and_receive([_message(node) for node in grid.get_node_ids()], timeout=1.0)
    assert _names(replies) == ["a", "b", "c"]


def test_content_is_handed_over_as_the_same_object() -> None:
    seen: list[RecordDict] = []

    def keep(message: Message, context: Context) -> Message:
        seen.append(message.content)
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(keep, ["a"])
    message = _message(2)
    list(grid.send_and_receive([message]))
    assert seen[0] is message.content


def test_replies_come_from_the_asked_node_and_the_server_keeps_its_identity() -> None:
    grid = LocalGrid(Echo(), ["a", "b"])
    for node in grid.get_node_ids():
        (reply,) = grid.send_and_receive([_message(node)])
        assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (node, 1)
    assert _message(2).metadata.src_node_id == 1


def test_a_sites_context_lasts_and_is_its_own() -> None:
    contexts: list[Context] = []

    def keep(message: Message, context: Context) -> Message:
        contexts.append(context)
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(keep, ["a", "b"])
    for node in (2, 3, 2):
        list(grid.send_and_receive([_message(node)]))
    assert contexts[0] is contexts[2]
    assert contexts[0] is not contexts[1]


def test_an_app_that_raises_leaves_the_server_its_identity() -> None:
    def fail(message: Message, context: Context) -> Message:
        raise ZeroDivisionError

    grid = LocalGrid(fail, ["a"])
    with pytest.raises(ZeroDivisionError):
        list(grid.send_and_receive([_message(2)]))
    assert _message(2).metadata.src_node_id == 1


def test_the_server_app_addresses_nodes_of_the_roster_only() -> None:
    found: list[dict[str, int]] = []
    app = server_app(("b", "absent"), lambda grid, nodes: found.append(dict(nodes)))
    grid = LocalGrid(Echo(), ["a", "b", "c"])
    app(grid, Context(1, 1, {}, RecordDict(), {}))
    assert found == [{"b": 3}]


def test_two_nodes_of_one_name_are_refused() -> None:
    class Twice(LocalGrid):
        def get_nodes(self) -> Iterable[NodeInfo]:
            return [NodeInfo(node_id=2, name="a"), NodeInfo(node_id=9, name="a")]

    with pytest.raises(RoundError) as caught:
        roster_nodes(Twice(Echo(), ["a"]), ("a",))
    assert caught.value.code == "node_name"
    assert roster_nodes(Twice(Echo(), ["a"]), ("b",)) == {}
