"""What a node does when calls of the Fleet API fail: which pass, which are told, which end the call."""

import ssl
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.supercore.error import ApiErrorCode

from wardround_client.node import fleet_api
from wardround_client.node.fleet_api import FleetApi, GoneError
from wardround_client.node.identity import Identity
from wardround_client.node.in_hand import InHand
from wardround_client.node.messages import MAX_PARTS, Handed
from wardround_client.node.troubles import PASSING, TROUBLES, trouble_of
from wardround_common.errors import RoundError
from wardround_common.types import sha256_hex

Answer = Callable[[], httpx.Response]


def flower(status: int, code: int) -> Answer:
    return lambda: httpx.Response(status, json={"code": code, "detail": "public text"})


def plain(status: int, text: str = "<html>") -> Answer:
    return lambda: httpx.Response(status, text=text)


def cut(error: Exception) -> Answer:
    def raise_it() -> httpx.Response:
        raise error

    return raise_it


def well() -> httpx.Response:
    content = PullMessagesResponse().SerializeToString()
    return httpx.Response(200, content=content, headers={"date": formatdate(usegmt=True)})


class Line:
    """An API whose transport answers from a list, and then well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Answer, **more: Any) -> None:
        monkeypatch.setattr(fleet_api, "_FIRST_PAUSE_S", 0.001)
        self.stop, self.requests = threading.Event(), []
        key = ec.generate_private_key(ec.SECP384R1())
        self.api = FleetApi(
            "aggregator:1", Identity(key, ssl.create_default_context()), self.stop, **more
        )
        self._answers = list(answers)
        transport = httpx.MockTransport(self._handle)
        self.api.client._client = httpx.Client(transport=transport, follow_redirects=False)
        self.back = 0
        self.api.on_back = self._count

    def pull(self, until: float = float("inf")) -> PullMessagesResponse:
        return self.api.call(lambda: self.api.client.PullMessages(PullMessagesRequest()), until)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._answers.pop(0)() if self._answers else well()

    def _count(self) -> None:
        self.back += 1


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (cut(httpx.ConnectError("refused")), "unreachable"),
        (cut(httpx.ReadError("reset")), "unreachable"),
        (cut(httpx.ReadTimeout("slow")), "unreachable"),
        (cut(httpx.RemoteProtocolError("cut")), "unreachable"),
        (cut(httpx.ProxyError("407")), "proxy"),
        (plain(502), "busy"),
        (plain(503), "busy"),
        (plain(504), "busy"),
        (plain(429), "busy"),
        (plain(500), "busy"),
        (plain(400, "No required SSL certificate was sent"), "certificate_refused"),
        (plain(403), "certificate_refused"),
        (plain(404), "other_version"),
        (plain(302), "other_version"),
        (plain(413), "too_large"),
        (plain(200, "<html>a portal that wants a login</html>"), "other_version"),
        (plain(401), "node_unknown"),
        (flower(412, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED), "node_unknown"),
        (flower(412, ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE), "other_version"),
    ],
)
def test_each_trouble_is_told_once_and_waited_out(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: Answer,
    trouble: str,
) -> None:
    line = Line(monkeypatch, answer, answer, answer)
    line.api.trouble = ""
    assert line.pull() == PullMessagesResponse()
    assert len(line.requests) == 4
    assert capsys.readouterr().err == f"node: {TROUBLES[trouble]}\n"
    assert line.api.trouble == ""
    assert line.back == 1


def test_every_trouble_has_a_sentence_that_tells_what_to_do() -> None:
    assert set(TROUBLES) > PASSING
    assert all("\n" not in text and len(text) > 30 for text in TROUBLES.values())


def test_certificates_are_told_apart_from_outages() -> None:
    untrusted, alert = httpx.ConnectError("x"), httpx.ReadError("x")
    untrusted.__cause__ = ssl.SSLCertVerificationError("self-signed")
    refused = ssl.SSLError(1, "alert")
    refused.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    alert.__cause__ = refused
    assert trouble_of(untrusted) == "aggregator_untrusted"
    assert trouble_of(alert) == "certificate_refused"


def test_a_run_that_is_over_ends_the_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, ApiErrorCode.FLEET_GET_RUN_FAILED):
        line = Line(monkeypatch, flower(412, code))
        with pytest.raises(GoneError) as caught:
            line.pull()
        assert caught.value.code == "run_over"
        assert len(line.requests) == 1


def test_a_request_that_is_refused_for_itself_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(monkeypatch, flower(400, ApiErrorCode.INVALID_PROTOBUF_PAYLOAD))
    with pytest.raises(RoundError) as caught:
        line.pull()
    assert caught.value.code == "request_refused"
    assert "public text" not in str(caught.value)


def test_a_call_ends_when_nobody_needs_its_answer_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(monkeypatch, *[plain(503)] * 1000)
    with pytest.raises(GoneError) as caught:
        line.pull(until=time.time() + 0.1)
    assert caught.value.code == "too_late"


def test_a_node_that_ends_does_not_wait_for_an_outage_to_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(monkeypatch, *[plain(503)] * 1000)
    threading.Timer(0.05, line.stop.set).start()
    with pytest.raises(GoneError) as caught:
        line.pull()
    assert caught.value.code == "stopped"


def test_a_clock_that_is_wrong_is_told_and_then_the_aggregators_is_signed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> httpx.Response:
        return httpx.Response(401, headers={"date": formatdate(usegmt=True)})

    line = Line(monkeypatch, refused, clock=lambda: time.time() - 7200.0)
    line.pull()
    assert capsys.readouterr().err == f"node: {TROUBLES['clock']}\n"
    assert abs(line.api.time() - time.time()) < 2.0


def test_a_clock_that_is_right_to_a_second_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch)
    line.pull()
    assert line.api._proof.offset_s == 0.0


def test_a_redirection_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"location": "http://elsewhere.example/"}
    line = Line(monkeypatch, lambda: httpx.Response(307, headers=elsewhere))
    line.pull()
    assert {request.url.host for request in line.requests} == {"aggregator"}


def _response(*names: str) -> PullMessagesResponse:
    response = PullMessagesResponse()
    head = response.messages_list.add().metadata
    head.run_id, head.message_type, head.ttl, head.created_at = 3, "train", 10.0, time.time()
    head.dst_node_id, head.src_node_id = 5, 1
    tree = response.message_object_trees.add(object_id=names[0])
    for name in names[1:]:
        tree.children.add(object_id=name)
    return response


@pytest.mark.parametrize("name", ["../../../etc/cron.d/x", "A" * 64, "", "a" * 63, "a" * 64 + "/"])
def test_a_part_whose_name_is_no_digest_is_not_asked_for(name: str) -> None:
    handed = Handed(_response("a" * 64, name))
    assert handed.parts == ()
    assert len(handed.pulled({}).message.content) == 0


def test_a_message_of_too_many_parts_is_not_asked_for() -> None:
    assert Handed(_response(*(f"{n:064x}" for n in range(MAX_PARTS)))).parts
    assert Handed(_response(*(f"{n:064x}" for n in range(MAX_PARTS + 1)))).parts == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"Message", b"Message  10\x00", b"Os  0\x00", b"\xff" * 100, b"RecordDict  2\x00{}"],
)
def test_parts_that_are_no_message_become_a_message_without_content(content: bytes) -> None:
    handed = Handed(_response("a" * 64))
    message = handed.pulled({"a" * 64: content}).message
    assert len(message.content) == 0
    assert message.metadata.message_id == "a" * 64
    assert message.metadata.run_id == 3


def test_what_has_no_head_is_refused() -> None:
    with pytest.raises(RoundError):
        Handed(PullMessagesResponse())


def test_what_is_in_hand_is_read_back_whole_or_not_at_all(tmp_path: Path) -> None:
    in_hand = InHand(tmp_path)
    name = sha256_hex(b"part")
    in_hand.take(b"head")
    in_hand.add(name, b"part")
    in_hand.node_id = 2**63 + 5
    again = InHand(tmp_path)
    assert (again.head, again.part(name), again.node_id) == (b"head", b"part", 2**63 + 5)
    (tmp_path / "question" / name).write_bytes(b"pa")
    assert again.part(name) is None
    again.answered()
    assert again.head == b""
    assert list((tmp_path / "question").iterdir()) == []
    assert again.node_id == 2**63 + 5


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "node-id").write_bytes(b"\xff\xff")
    assert InHand(tmp_path).node_id == 0


def test_trouble_of_something_else_is_none() -> None:
    assert trouble_of(KeyError()) is None
