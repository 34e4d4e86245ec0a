"""What can be reached from a hospital's address, and who is let in: over the real front door."""

import base64
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import Message

from tests.e2e.network import probe
from tests.e2e.network.hospitals import PORT, PYTHON, Hospital, Laboratory
from tests.e2e.network.hosts import ROOT, Host
from tests.pki import Authority
from wardround_client.node.identity import read_node_key
from wardround_common.crypto.certificates import certify_site, new_key, site_request
from wardround_common.types import SiteId
from wardround_server.aggregator.folder import key_beside

pytestmark = pytest.mark.slow

Request = tuple[str, str, dict[str, str], bytes]
"""Method, path, headers, body."""

TRICKS = (
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/..%2fcontrol/list-nodes",
    "/v1/fleet//../runtime/acquire-task",
    "//v1/control/list-nodes",
    "/v1/fleet/pull-messages/../../runtime/acquire-task",
    "/V1/CONTROL/list-nodes",
    "/v1/fleet/pull-messages%00/../../control/list-nodes",
    "/v1/fleet;/../control/list-nodes",
)
HEALTH = {("GET", "/health"), ("HEAD", "/health")}
FORM = {"Content-Type": PROTOBUF_MEDIA_TYPE}
REFUSED = frozenset({0, 400, 401, 403})
BY_KEY = frozenset({"register-node", "activate-node"})
"""Which name a key and no number; 412 is Flower's word for a key that is not registered."""


@pytest.fixture(scope="module")
def hospital(laboratory: Laboratory) -> Hospital:
    return laboratory.hospitals["cleveland"]


@dataclass(frozen=True)
class Papers:
    """A client certificate and its key, PEM; empty for none."""

    certificate: bytes = b""
    key: bytes = b""


class Caller:
    """Sends requests from a host."""

    def __init__(self, host: Host, laboratory: Laboratory, address: str) -> None:
        self._host, self._laboratory, self._address = host, laboratory, address

    def ask(self, requests: list[Request], papers: Papers) -> list[tuple[int, str]]:
        """Status and beginning of each answer."""
        folder = self._laboratory.path / secrets.token_hex(8)
        folder.mkdir()
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        certificate.write_bytes(papers.certificate)
        key.write_bytes(papers.key)
        wanted = folder / "wanted.json"
        content = {
            "ca": str(self._laboratory.folder.authority),
            "certificate": str(certificate) if papers.certificate else "",
            "key": str(key),
            "address": self._address,
            "requests": [
                [method, path, headers, base64.b64encode(body).decode()]
                for method, path, headers, body in requests
            ],
        }
        wanted.write_text(json.dumps(content))
        words = [PYTHON, "-I", probe.__file__, "ask", str(wanted)]
        done = self._host.run(words, ROOT)
        assert done.returncode == 0, done.stderr
        return [(status, text) for status, text in json.loads(done.stdout)]

    def reached(self, requests: list[Request], papers: Papers) -> set[tuple[str, str]]:
        """Those that something behind the front door has answered."""
        answers = self.ask(requests, papers)
        return {
            (method, path)
            for (method, path, _, _), (status, text) in zip(requests, answers, strict=True)
            if status and "<center>nginx</center>" not in text
        }


@pytest.fixture(scope="module")
def caller(laboratory: Laboratory, hospital: Hospital) -> Caller:
    return Caller(hospital.host, laboratory, laboratory.address)


@pytest.fixture(scope="module")
def endpoints(laboratory: Laboratory) -> list[Request]:
    """All of the SuperLink's, as it says itself on its own loopback, and its papers."""
    inside = Caller(laboratory.centre, laboratory, "127.0.0.1:8000")
    words = [PYTHON, "-c", _OPENAPI, str(laboratory.folder.authority)]
    done = laboratory.centre.run(words)
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)["paths"]
    found: list[Request] = [
        (method.upper(), path, {}, b"") for path, methods in described.items() for method in methods
    ]
    found += [("GET", path, {}, b"") for path in ("/docs", "/openapi.json", "/redoc", "/")]
    assert len(found) > 60
    assert ("GET", "/docs") in inside.reached(found, Papers()), "it is there, behind the door"
    return found


_OPENAPI = """
import ssl, sys, urllib.request
trust = ssl.create_default_context(cafile=sys.argv[1])
print(urllib.request.urlopen("https://127.0.0.1:8000/openapi.json", context=trust).read().decode())
"""


def own_papers(hospital: Hospital) -> Papers:
    node = hospital.folder / "node"
    return Papers((node / "site.pem").read_bytes(), (node / "site.key").read_bytes())


def test_a_hospital_reaches_fleet_and_health_and_nothing_else(
    caller: Caller, endpoints: list[Request], hospital: Hospital
) -> None:
    fleet = {(m, p) for m, p, _, _ in endpoints if p.startswith("/v1/fleet/")}
    assert len(fleet) >= 12
    assert caller.reached(endpoints, own_papers(hospital)) == fleet | HEALTH


def test_without_a_certificate_health_is_all(caller: Caller, endpoints: list[Request]) -> None:
    assert caller.reached(endpoints, Papers()) == HEALTH


def test_an_operators_token_or_certificate_opens_control_and_not_fleet(
    caller: Caller, endpoints: list[Request], laboratory: Laboratory
) -> None:
    control = {(m, p) for m, p, _, _ in endpoints if p.startswith("/v1/control/")}
    folder = laboratory.folder
    token = folder.operator_token.read_text().strip()
    bearing = [(m, p, {"Authorization": f"Bearer {token}"}, b) for m, p, _, b in endpoints]
    assert caller.reached(bearing, Papers()) == control | HEALTH
    wrong = [(m, p, {"Authorization": f"Bearer {token[:-1]}x"}, b) for m, p, _, b in endpoints]
    assert caller.reached(wrong, Papers()) == HEALTH
    papers = Papers(folder.operator.read_bytes(), key_beside(folder.operator).read_bytes())
    assert caller.reached(endpoints, papers) == control | HEALTH


def test_no_way_of_writing_a_path_leads_past_the_rules(caller: Caller, hospital: Hospital) -> None:
    requests: list[Request] = [("POST", path, {}, b"") for path in TRICKS]
    assert caller.reached(requests, own_papers(hospital)) == set()
    other: list[Request] = [(m, "/v1/fleet/pull-messages", {}, b"") for m in ("GET", "PUT")]
    assert caller.reached(other, own_papers(hospital)) == set()


def test_the_front_door_is_the_only_open_port(laboratory: Laboratory, hospital: Hospital) -> None:
    words = [PYTHON, "-I", probe.__file__, "ports", str(laboratory.centre.address)]
    done = hospital.host.run(words)
    assert json.loads(done.stdout) == [PORT], done.stderr


def test_a_body_that_is_too_large_is_not_taken(caller: Caller, hospital: Hospital) -> None:
    body = os.urandom(1024) * (17 << 10)
    ((status, _),) = caller.ask([("POST", "/v1/fleet/push-object", {}, body)], own_papers(hospital))
    assert status in {0, 413}


# -- who is let in -----------------------------------------------------------------------------------


def questions(node_id: int, public_key: bytes) -> dict[str, Message]:
    """A well-formed request for each endpoint."""
    node = Node(node_id=node_id)
    return {
        "register-node": fleet_pb2.RegisterNodeFleetRequest(public_key=public_key),
        "activate-node": fleet_pb2.ActivateNodeRequest(
            public_key=public_key, heartbeat_interval=30.0
        ),
        "deactivate-node": fleet_pb2.DeactivateNodeRequest(node_id=node_id),
        "unregister-node": fleet_pb2.UnregisterNodeFleetRequest(node_id=node_id),
        "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest(
            node=node, heartbeat_interval=30.0
        ),
        "pull-messages": fleet_pb2.PullMessagesRequest(node=node),
        "push-messages": fleet_pb2.PushMessagesRequest(node=node),
        "get-run": run_pb2.GetRunRequest(node=node, run_id=1),
        "get-fab": GetFabRequest(node=node, hash_str="0" * 64, run_id=1),
        "push-object": message_pb2.PushObjectRequest(node=node, object_id="0" * 64, run_id=1),
        "pull-object": message_pb2.PullObjectRequest(node=node, object_id="0" * 64, run_id=1),
        "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest(
            node=node, run_id=1, message_object_id="0" * 64
        ),
    }


Proof = Callable[[], dict[str, str]]


def proof(
    claimed: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey | None = None,
    age: timedelta = timedelta(),
) -> dict[str, str]:
    """What a node signs: the time, with its key."""
    stamp = (datetime.now(UTC) - age).isoformat()
    public = public_key_to_bytes(claimed.public_key())
    signature = sign_message(signer or claimed, stamp.encode("ascii"))
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode(),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
        **FORM,
    }


class Gate:
    """The honest site's number and key, and the consortium's authority."""

    def __init__(self, laboratory: Laboratory, hospital: Hospital, caller: Caller) -> None:
        self.caller = caller
        self.own = own_papers(hospital)
        self.key = read_node_key(hospital.folder / "node" / "node.key")
        self.node_id = int((hospital.folder / "node" / "state" / "node-id").read_text())
        self.authority = laboratory.folder.read_authority()

    def certified(self, site: str, **more: Any) -> Papers:
        key = new_key()
        request = site_request(SiteId(site), key)
        return Papers(certify_site(self.authority, SiteId(site), request, **more), key)

    def statuses(self, papers: Papers, headers: dict[str, str]) -> dict[str, int]:
        public = public_key_to_bytes(self.key.public_key())
        if FLEET_HTTP_PUBLIC_KEY_HEADER in headers:
            public = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
        asked = questions(self.node_id, public)
        requests: list[Request] = [
            ("POST", f"/v1/fleet/{name}", headers, message.SerializeToString())
            for name, message in asked.items()
        ]
        answers = self.caller.ask(requests, papers)
        return dict(zip(asked, (status for status, _ in answers), strict=True))


@pytest.fixture(scope="module")
def gate(laboratory: Laboratory, hospital: Hospital, caller: Caller) -> Gate:
    return Gate(laboratory, hospital, caller)


def test_the_site_itself_is_let_in(gate: Gate, caller: Caller) -> None:
    asked = questions(gate.node_id, public_key_to_bytes(gate.key.public_key()))
    names = ("send-node-heartbeat", "pull-messages")
    requests: list[Request] = [
        ("POST", f"/v1/fleet/{name}", proof(gate.key), asked[name].SerializeToString())
        for name in names
    ]
    assert [status for status, _ in caller.ask(requests, gate.own)] == [200, 200]


def is_refused(endpoint: str, status: int) -> bool:
    return status in REFUSED or (status == 412 and endpoint in BY_KEY)


STRANGER = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("papers", "headers"),
    [
        pytest.param(lambda g: Papers(), lambda g: proof(g.key), id="no certificate"),
        pytest.param(
            lambda g: _foreign(), lambda g: proof(g.key), id="certificate of another authority"
        ),
        pytest.param(
            lambda g: g.certified("cleveland", days=1, now=datetime(2024, 1, 1, tzinfo=UTC)),
            lambda g: proof(g.key),
            id="expired certificate",
        ),
        pytest.param(lambda g: g.own, lambda g: proof(g.key, STRANGER), id="signed by another key"),
        pytest.param(lambda g: g.own, lambda g: proof(STRANGER), id="another site's number"),
        pytest.param(
            lambda g: g.certified("stranger"), lambda g: proof(STRANGER), id="site never invited"
        ),
        pytest.param(
            lambda g: g.own, lambda g: proof(g.key, age=timedelta(minutes=10)), id="replayed"
        ),
        pytest.param(lambda g: g.own, lambda g: FORM, id="no signature"),
    ],
)
def test_who_is_not_the_site_is_refused_at_every_endpoint(
    gate: Gate,
    papers: Callable[[Gate], Papers],
    headers: Callable[[Gate], dict[str, str]],
) -> None:
    statuses = gate.statuses(papers(gate), headers(gate))
    assert len(statuses) == 12
    let_in = {name: status for name, status in statuses.items() if not is_refused(name, status)}
    assert let_in == {}


def _foreign() -> Papers:
    identity = Authority("another").site("cleveland")
    return Papers(identity.certificate, identity.key)
