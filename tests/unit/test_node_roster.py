"""The SuperLink's list of nodes is that of the invited sites, whoever was on it before."""

from collections.abc import Iterable, Sequence

import pytest

from wardround_server.aggregator.flower.control import (
    ControlRefused,
    ControlUnavailable,
    FlowerRun,
    NodeState,
)
from wardround_server.aggregator.roster import NodeRoster
from wardround_server.aggregator.sites import EnrolledSite


class SuperLink:
    """Its list of nodes."""

    def __init__(self, *known: tuple[str, str]) -> None:
        self.known = [
            NodeState(n, name, key.encode(), online=True, since=1.0)
            for n, (name, key) in enumerate(known)
        ]
        self.refuses: set[str] = set()
        self.calls = 0

    def is_healthy(self) -> bool:
        return True

    def start_run(self, run: str) -> int:
        raise NotImplementedError

    def stop_run(self, run_id: int) -> None:
        raise NotImplementedError

    def runs(self, run_ids: Iterable[int]) -> dict[int, FlowerRun]:
        raise NotImplementedError

    def nodes(self) -> Sequence[NodeState]:
        return tuple(self.known)

    def register(self, name: str, public_key: bytes) -> int:
        self.calls += 1
        if name in self.refuses:
            raise ControlRefused(1)
        number = 100 + self.calls
        self.known.append(NodeState(number, name, public_key, online=False, since=None))
        return number

    def unregister(self, node_id: int) -> None:
        self.known = [node for node in self.known if node.node_id != node_id]

    @property
    def names(self) -> set[tuple[str, str]]:
        return {(node.name, node.public_key.decode()) for node in self.known}


def site(name: str, key: str) -> EnrolledSite:
    return EnrolledSite(name=name, node_key=key, fingerprint="0", invited=1.0)


def test_who_is_invited_is_registered_and_who_is_not_is_put_out() -> None:
    superlink = SuperLink(("a", "key-a"), ("stranger", "key-s"))
    found = NodeRoster(superlink).match([site("a", "key-a"), site("b", "key-b")])
    assert superlink.names == {("a", "key-a"), ("b", "key-b")}
    assert found["a"] is not None
    assert found["a"].online
    assert found["b"] is not None
    assert not found["b"].online


@pytest.mark.parametrize("before", [("a", "old key"), ("b", "key-a")])
def test_a_node_under_another_key_or_name_is_put_out(before: tuple[str, str]) -> None:
    superlink = SuperLink(before)
    NodeRoster(superlink).match([site("a", "key-a")])
    assert superlink.names == {("a", "key-a")}


def test_a_site_that_is_refused_is_said_so_and_not_tried_for_ever() -> None:
    superlink = SuperLink()
    superlink.refuses.add("a")
    roster = NodeRoster(superlink)
    for _ in range(3):
        assert roster.match([site("a", "key-a"), site("b", "key-b")])["a"] is None
    assert superlink.calls == 2, "once for each"
    superlink.refuses.clear()
    assert roster.match([site("a", "another key")])["a"] is not None


def test_an_outage_is_not_taken_for_an_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    superlink = SuperLink(("a", "key-a"))

    def away() -> Sequence[NodeState]:
        raise ControlUnavailable("away", code="superlink_unavailable")

    monkeypatch.setattr(superlink, "nodes", away)
    with pytest.raises(ControlUnavailable):
        NodeRoster(superlink).match([site("a", "key-a")])
    assert superlink.names == {("a", "key-a")}
    assert superlink.calls == 0
