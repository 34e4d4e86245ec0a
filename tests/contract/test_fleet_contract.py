"""The node's connection against a real SuperLink: TLS, node authentication, SQLite, its own process.

These tests pin flwr 1.41. If one of them fails after an upgrade, ``node/fleet.py`` and
``node/fleet_api.py`` are what has to follow.
"""

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supernode.fleet_http_client import FleetHttpClient

from tests.contract.node_site import WAIT_S, Site, Tunnel, answer, pulled, question, replies
from tests.contract.real_superlink import RealSuperLink
from tests.pki import Authority
from wardround_client.node.fleet import FleetConnection
from wardround_client.node.fleet_api import GoneError
from wardround_client.node.identity import load_identity
from wardround_client.node.in_hand import InHand
from wardround_common.wire.flower import (
    bytes_of,
    json_of,
)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSuperLink]:
    with RealSuperLink(tmp_path_factory.mktemp("superlink")) as running:
        yield running


@pytest.fixture
def site(superlink: RealSuperLink, tmp_path: Path) -> Iterator[Site]:
    made = Site(superlink, tmp_path)
    yield made
    made.end()


@pytest.fixture
def grid(superlink: RealSuperLink) -> Iterator[Any]:
    superlink.start_run()
    opened = superlink.grid()
    yield opened
    with contextlib.suppress(httpx.HTTPStatusError):  # a test has stopped it
        superlink.stop_run(opened.run.run_id)
    opened.close()


def test_flwr_is_the_version_that_this_was_written_for() -> None:
    assert version("flwr").startswith("1.41.")
    calls = {"ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages"}
    calls |= {"GetRun", "PullObject", "PushObject", "ConfirmMessageReceived"}
    for call in calls:
        assert list(inspect.signature(getattr(FleetHttpClient, call)).parameters)[1:] == ["request"]
    assert list(inspect.signature(HeartbeatSender).parameters) == ["heartbeat_fn"]
    assert isinstance(FleetHttpClient("https://localhost")._client, httpx.Client)


@pytest.mark.parametrize("array", [b"", b"\0" * 12_000_000, bytes(range(256)) * 1024])
def test_a_question_and_its_answer_arrive_as_they_were_sent(
    site: Site, grid: Any, array: bytes
) -> None:
    life = site.opened()
    ids = list(grid.push_messages([question(site, b'{"a":1}', array)]))
    message = pulled(life)
    content = message.message.content
    assert json_of(content) == b'{"a":1}'
    assert bytes(bytes_of(content) or b"") == array
    assert answer(life, message, array[::-1])
    (reply,) = replies(grid, ids)
    assert reply.metadata.src_node_id == site.node_id
    assert json_of(reply.content) == b"ok"
    assert bytes(bytes_of(reply.content) or b"") == array[::-1]


def test_questions_come_in_order_of_arrival_one_at_a_time(site: Site, grid: Any) -> None:
    life = site.opened()
    for number in range(3):
        grid.push_messages([question(site, str(number).encode())])
    seen = []
    for _ in range(3):
        message = pulled(life)
        seen.append(json_of(message.message.content))
        answer(life, message)
    assert seen == [b"0", b"1", b"2"]
    assert life.pull() is None


def test_a_failure_is_answered_by_its_code(site: Site, grid: Any) -> None:
    life = site.opened()
    ids = list(grid.push_messages([question(site)]))
    assert answer(life, pulled(life), code="worker_unavailable")
    (reply,) = replies(grid, ids)
    assert reply.content["wardround"]["failure"] == "worker_unavailable"


def test_what_is_no_message_of_ours_comes_through_as_it_is(site: Site, grid: Any) -> None:
    life = site.opened()
    grid.push_messages([Message(RecordDict(), site.node_id, "query.anything", ttl=600.0)])
    message = pulled(life)
    assert message.message.metadata.message_type == "query.anything"
    assert answer(life, message, code="message_type")


def test_a_killed_node_is_online_again_within_two_seconds(site: Site, grid: Any) -> None:
    site.opened()
    site.kill()
    started = time.monotonic()
    life = site.opened()
    assert time.monotonic() - started < 2.0
    assert life.node_id == site.node_id
    assert site.node_id in {each.node_id for each in grid.get_nodes()}


def test_without_its_memory_a_killed_node_is_kept_out_by_its_own_lease(site: Site) -> None:
    site.opened()
    site.kill()
    life = site.life("another state")
    opening = threading.Thread(target=_until_gone, args=(life.open,))
    opening.start()
    _wait(lambda: life.trouble == "node_unknown")
    assert opening.is_alive()
    site.stops[-1].set()
    opening.join()


def test_a_question_in_hand_outlives_the_node(site: Site, grid: Any) -> None:
    life = site.opened()
    ids = list(grid.push_messages([question(site, b"kept", b"x" * 300_000)]))
    pulled(life)
    site.kill()
    life = site.opened()
    assert grid.pull_messages(ids) == []  # nobody believed the site to be gone
    message = pulled(life)
    assert json_of(message.message.content) == b"kept"
    assert bytes(bytes_of(message.message.content) or b"") == b"x" * 300_000
    assert answer(life, message)
    assert len(replies(grid, ids)) == 1
    assert life.pull() is None


def test_without_its_memory_a_question_is_lost_with_the_node(site: Site, grid: Any) -> None:
    life = site.opened()
    grid.push_messages([question(site)])
    pulled(life)
    InHand(site.folder / "state").answered()
    site.kill()
    life = site.opened()
    assert life.pull() is None


def test_an_answer_cut_off_half_way_is_sent_again_and_counts_once(
    site: Site, grid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = site.opened()
    ids = list(grid.push_messages([question(site)]))
    message = pulled(life)
    sent: list[str] = []

    def one_part_only(request: Any) -> Any:
        if sent:
            raise httpx.ConnectError("the line is cut")
        sent.append(request.object_id)
        return FleetHttpClient.PushObject(life._api.client, request)

    monkeypatch.setattr(life._api.client, "PushObject", one_part_only)
    pushing = threading.Thread(target=_until_gone, args=(lambda: answer(life, message, b"y" * 9),))
    pushing.start()
    _wait(lambda: bool(sent) and life.trouble == "unreachable")
    site.kill()
    pushing.join()
    life = site.opened()
    assert answer(life, pulled(life), b"y" * 9)
    (reply,) = replies(grid, ids)
    assert bytes(bytes_of(reply.content) or b"") == b"y" * 9
    assert life.pull() is None


def test_a_superlink_that_was_killed_finds_its_nodes_again(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    (tmp_path / "site").mkdir()
    with RealSuperLink(tmp_path / "link") as superlink:
        site = Site(superlink, tmp_path / "site")
        life = site.opened()
        superlink.start_run()
        grid = superlink.grid()
        ids = list(grid.push_messages([question(site)]))
        message = pulled(life)
        superlink.kill()
        pushing = threading.Thread(target=answer, args=(life, message, b"late"))
        pushing.start()
        _wait(lambda: life.trouble == "unreachable")
        superlink.start()
        pushing.join()
        assert life.trouble == ""
        assert len(replies(grid, ids)) == 1
        site.end()


def test_a_stopped_run_is_over_and_its_answer_is_not_taken(
    superlink: RealSuperLink, site: Site, grid: Any
) -> None:
    life = site.opened()
    grid.push_messages([question(site)])
    message = pulled(life)
    run_id = message.message.metadata.run_id
    assert not life.run_is_over(run_id)
    superlink.stop_run(run_id)
    assert life.run_is_over(run_id)
    with pytest.raises(GoneError) as caught:
        answer(life, message)
    assert caught.value.code == "run_over"
    assert InHand(site.folder / "state").head == b""


def test_an_unknown_node_waits_and_is_let_in_when_it_is_registered(
    superlink: RealSuperLink, tmp_path: Path
) -> None:
    site = Site(superlink, tmp_path, known=False)
    life = site.life()
    opening = threading.Thread(target=life.open)
    opening.start()
    _wait(lambda: life.trouble == "node_unknown")
    node_id = superlink.register("late", site.key)
    opening.join(WAIT_S)
    assert life.node_id == node_id
    site.end()


def test_a_node_whose_superlink_lost_its_database_takes_a_new_number(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    (tmp_path / "site").mkdir()
    with RealSuperLink(tmp_path / "link", database=":flwr-in-memory:") as superlink:
        site = Site(superlink, tmp_path / "site")
        life = site.opened()
        superlink.kill()
        superlink.start()
        pulling = threading.Thread(target=life.pull)
        pulling.start()
        _wait(lambda: life.trouble == "node_unknown")
        again = superlink.register("again", site.key)
        pulling.join()
        assert life.node_id == again != site.node_id
        site.end()


def test_a_clock_an_hour_off_keeps_nobody_out(site: Site, grid: Any) -> None:
    for offset in (3600.0, -3600.0):
        life = site.opened(clock=lambda offset=offset: time.time() + offset)
        assert abs(life.time() - time.time()) < 2.0
        grid.push_messages([question(site, ttl=30.0)])
        assert answer(life, pulled(life))
        life.close()


def test_who_does_not_take_the_aggregators_time_is_kept_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = site.life(clock=lambda: time.time() + 3600.0)
    monkeypatch.setattr(life._api._proof, "_learn", lambda response: None)
    opening = threading.Thread(target=_until_gone, args=(life.open,))
    opening.start()
    _wait(lambda: life.trouble == "node_unknown")
    site.stops[-1].set()
    opening.join()


def test_a_superlink_of_another_authority_is_not_talked_to(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority("another").pem)
    nothing = tmp_path / "nothing"
    identity = load_identity(tmp_path / "node.key", other, nothing, nothing)
    stop = threading.Event()
    life = FleetConnection(site.superlink.address, identity, InHand(tmp_path / "state"), stop)
    opening = threading.Thread(target=_until_gone, args=(life.open,))
    opening.start()
    _wait(lambda: life.trouble == "aggregator_untrusted")
    stop.set()
    opening.join()
    life.close()


def test_the_proxy_of_the_environment_is_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with Tunnel() as tunnel:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{tunnel.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        site.opened()
        assert tunnel.asked == [f"CONNECT {site.superlink.address} HTTP/1.1"]


def test_a_bundle_is_never_fetched(superlink: RealSuperLink, site: Site, grid: Any) -> None:
    life = site.opened()
    grid.push_messages([question(site)])
    assert answer(life, pulled(life))
    assert "[Fleet.PushMessages]" in superlink.log()
    assert "[Fleet.GetFab]" not in superlink.log()


def _until_gone(call: Callable[[], object]) -> None:
    try:
        call()
    except GoneError:
        return


def _wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)
