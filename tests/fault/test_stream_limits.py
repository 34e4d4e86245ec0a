"""Who is let into a tensor stream, and what those may do who are not, or who lie."""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.contract.test_carrier_contract import question
from tests.pki import Authority
from tests.streams import StreamWorld, authority, eventually
from tests.support import RUN, FakeSite
from wardround_client.node.stream import MAX_SESSIONS, Pauses, StreamSessions
from wardround_common.errors import WireError
from wardround_common.stream.limits import (
    CHANNEL_OPTIONS,
    CHUNK_BYTES,
    RUN_KEY,
    SESSION,
    TOKEN_KEY,
    Identity,
)
from wardround_common.stream.outbox import Outbox
from wardround_common.stream.parts import chunk_part, from_wire, offer_part, to_wire
from wardround_common.stream.stream_pb2 import Part
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.session import SessionInvite
from wardround_server.stream import server as server_module

NAMES = "ab"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[StreamWorld]:
    world = StreamWorld(tmp_path / "spool", [FakeSite(name) for name in NAMES])
    yield world
    world.close()


class Intruder:
    """A hand-made client of the stream."""

    def __init__(
        self,
        world: StreamWorld,
        identity: Identity | None,
        *,
        authority: bytes | None = None,
        options: Any = (),
        **sent: str,
    ) -> None:
        invite = world.server.invite(SiteId("a"))
        credentials = grpc.ssl_channel_credentials(
            authority or world_authority().pem,
            identity.key if identity else None,
            identity.certificate if identity else None,
        )
        self.channel = grpc.secure_channel(
            invite.address, credentials, [*CHANNEL_OPTIONS, *options]
        )
        self.outbox = Outbox()
        metadata = {RUN_KEY: invite.run, TOKEN_KEY: invite.token, **sent}
        self.call = self.channel.stream_stream(SESSION, to_wire, from_wire)(
            self.outbox, metadata=tuple(metadata.items()), timeout=10
        )

    def status(self) -> grpc.StatusCode:
        """How the call ended."""
        try:
            list(self.call)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined,no-any-return]
        return grpc.StatusCode.OK

    def close(self) -> None:
        self.outbox.close()
        self.call.cancel()
        self.channel.close()


def world_authority() -> Authority:
    return authority()


def still_served(world: StreamWorld, deadline_s: float = 10.0) -> None:
    """Honest sites answer as if nothing were."""
    answers = list(world.carrier.ask(question(sites=NAMES), deadline_s))
    assert {answer.site: answer.failure for answer in answers} == dict.fromkeys(NAMES)


STRANGERS: dict[str, tuple[Callable[[], Identity | None], str]] = {
    "no certificate": (lambda: None, "UNAVAILABLE"),
    "a certificate of another authority": (lambda: authority("another").site("a"), "UNAVAILABLE"),
    "an authority of the same name": (
        lambda: Authority(world_authority().name).site("a"),
        "UNAVAILABLE",
    ),
    "an expired certificate": (lambda: authority().site("a", expired=True), "UNAVAILABLE"),
    "a server's certificate": (lambda: authority().site("a", server=True), "UNAVAILABLE"),
    "another site's certificate": (lambda: authority().site("b"), "UNAUTHENTICATED"),
    "a site that is not in the roster": (lambda: authority().site("z"), "PERMISSION_DENIED"),
    "two names": (lambda: authority().site("a", "b"), "PERMISSION_DENIED"),
    "no name": (lambda: authority().site(), "PERMISSION_DENIED"),
    "a wildcard": (lambda: authority().site("*"), "PERMISSION_DENIED"),
    "the certificate with another key": (
        lambda: Identity(
            authority().site("a").certificate, authority().site("a").key, authority().pem
        ),
        "UNAVAILABLE",
    ),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_who_is_not_the_invited_site_is_refused(world: StreamWorld, kind: str) -> None:
    identity, code = STRANGERS[kind]
    intruder = Intruder(world, identity())
    assert intruder.status().name == code
    assert not world.server.session(SiteId("a")).is_open
    intruder.close()


@pytest.mark.parametrize(
    "sent",
    [
        {TOKEN_KEY: "0" * 32},
        {TOKEN_KEY: ""},
        {TOKEN_KEY: "z" * 32},
        {RUN_KEY: "f" * 16},
        {RUN_KEY: ""},
    ],
)
def test_a_session_without_its_invitation_is_refused(
    world: StreamWorld, sent: dict[str, str]
) -> None:
    intruder = Intruder(world, authority().site("a"), **sent)
    assert intruder.status().name == "UNAUTHENTICATED"
    assert not world.server.session(SiteId("a")).is_open
    intruder.close()


def test_the_invited_site_is_let_in(world: StreamWorld) -> None:
    guest = Intruder(world, authority().site("a"))
    eventually(lambda: world.server.session(SiteId("a")).is_open)
    guest.close()
    eventually(lambda: not world.server.session(SiteId("a")).is_open)


def test_a_site_does_not_talk_to_an_aggregator_of_another_authority(tmp_path: Path) -> None:
    world = StreamWorld(tmp_path, [FakeSite("a")])
    theirs, ours = authority("another"), authority().site("a")
    node = StreamSessions(
        "a",
        Identity(ours.certificate, ours.key, theirs.pem),
        world.airlocks["a"],
        Pauses(first=0.01, longest=0.01, give_up=0.3),
    )
    node.on_session(world.server.invite(SiteId("a")).to_bytes())
    eventually(lambda: not node._sessions[RUN].is_alive)
    assert not world.server.session(SiteId("a")).is_open
    world.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"site": "b"}, "session_site"),
        ({"address": "no-port"}, "message_form"),
        ({"address": "a b:1"}, "message_form"),
        ({"token": "short"}, "message_form"),
        ({"run": "../../etc"}, "message_form"),
    ],
)
def test_an_invitation_that_is_not_in_form_or_not_ours_is_declined(
    world: StreamWorld, change: dict[str, str], code: str
) -> None:
    invite = world.server.invite(SiteId("a")).model_copy(update=change)
    with pytest.raises(WireError) as caught:
        world.nodes[SiteId("a")].on_session(invite.to_bytes())
    assert caught.value.code == code


def test_a_node_takes_part_in_a_few_runs_at_a_time(world: StreamWorld) -> None:
    node = world.nodes[SiteId("a")]
    for number in range(MAX_SESSIONS):
        node.on_session(
            SessionInvite(
                run=f"{number:016x}", site="a", address="127.0.0.1:1", token="0" * 32
            ).to_bytes()
        )
    with pytest.raises(WireError, match="too many runs"):
        node.on_session(world.server.invite(SiteId("a")).to_bytes())


BOMB = """
import json, sys
import grpc
wanted = json.load(sys.stdin)
credentials = grpc.ssl_channel_credentials(*(wanted[k].encode() for k in ("authority", "key", "pem")))
method = grpc.Compression.Gzip if wanted["compressed"] else None
options = [("grpc.max_send_message_length", -1)]
with grpc.secure_channel(wanted["address"], credentials, options, method) as channel:
    session = channel.stream_stream("/wardround.v1.TensorStream/Session")
    try:
        list(session(iter([bytes(wanted["bytes"])]), metadata=wanted["sent"], timeout=10))
    except grpc.RpcError as error:
        print(error.code().name)
"""


@pytest.mark.parametrize(
    ("num_bytes", "compressed", "codes"),
    [
        (64 << 20, False, {"RESOURCE_EXHAUSTED"}),
        (256 << 20, True, {"UNIMPLEMENTED"}),
        (1 << 20, True, {"UNIMPLEMENTED"}),
    ],
)
def test_what_is_larger_than_a_chunk_or_compressed_is_refused_before_it_is_in_memory(
    world: StreamWorld, num_bytes: int, compressed: bool, codes: set[str]
) -> None:
    invite, identity = world.server.invite(SiteId("a")), authority().site("a")
    before = _peak_kib(reset=True)
    done = subprocess.run(
        [sys.executable, "-c", BOMB],
        input=json.dumps(
            {
                "authority": identity.authority.decode(),
                "key": identity.key.decode(),
                "pem": identity.certificate.decode(),
                "address": invite.address,
                "compressed": compressed,
                "bytes": num_bytes,
                "sent": [[RUN_KEY, invite.run], [TOKEN_KEY, invite.token]],
            }
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() in codes
    assert _peak_kib() - before < 16 << 10
    still_served(world)


@pytest.mark.parametrize(
    "parts",
    [
        [b"\xff\xff\xff\xff"],
        [Part().SerializeToString()],
        [Part(over={}).SerializeToString()],
        [chunk_part(1 << 62, b"x")] * 3,
        [offer_part("f" * 64, b"", 1 << 63).SerializeToString()] * 3,
        [offer_part("\u00e9" * 500, b"x", 0, failure="y" * 5000).SerializeToString()],
    ],
)
def test_parts_of_another_form_disturb_nobody(world: StreamWorld, parts: list[bytes]) -> None:
    invite, identity = world.server.invite(SiteId("a")), authority().site("a")
    credentials = grpc.ssl_channel_credentials(authority().pem, identity.key, identity.certificate)
    with grpc.secure_channel(invite.address, credentials, CHANNEL_OPTIONS) as channel:
        call = channel.stream_stream(SESSION)(
            iter(parts),
            metadata=((RUN_KEY, invite.run), (TOKEN_KEY, invite.token)),
            timeout=10,
        )
        with contextlib.suppress(grpc.RpcError):
            list(call)
    still_served(world)


def test_a_site_that_sends_without_end_is_cut_off(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardround_server.stream.session.STRAY_BYTES", 4 << 20)
    intruder = Intruder(world, authority().site("a"))
    intruder.outbox.send_array(chunk_part(at, bytes(CHUNK_BYTES)) for at in range(1000))
    started = time.monotonic()
    intruder.status()
    assert time.monotonic() - started < 5
    intruder.close()
    still_served(world)


def test_a_site_that_does_not_read_holds_nobody_up(world: StreamWorld) -> None:
    asleep = Intruder(world, authority().site("a"))
    eventually(lambda: world.server.session(SiteId("a")).is_open)
    world.absent.add("a")
    answers = list(world.carrier.ask(question(sites=NAMES), 1.0))
    assert [answer.site for answer in answers] == ["b"]
    asleep.close()


def test_a_lying_size_is_refused_before_a_byte_is_wanted(world: StreamWorld) -> None:
    liar = Intruder(world, authority().site("a"))
    eventually(lambda: world.server.session(SiteId("a")).is_open)
    asked = question(sites="a")
    liar.outbox.put(offer_part(sha256_hex(asked.manifest), b"{}", 1 << 40))
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(world.carrier.ask(asked, 5.0)))
    world.absent.add("a")
    asking.start()
    eventually(lambda: world.server.session(SiteId("a"))._asked is not None or answers)
    liar.outbox.put(offer_part(sha256_hex(asked.manifest), b"{}", 1 << 40))
    asking.join(10)
    assert [answer.failure for answer in answers] == ["update_bytes"]
    assert not any(world.spool.glob("*"))
    liar.close()


def test_stalled_connections_take_little_and_honest_sites_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(server_module.SERVER_OPTIONS) | {"grpc.server_handshake_timeout_ms": 2000}
    monkeypatch.setattr(server_module, "SERVER_OPTIONS", list(options.items()))
    world = StreamWorld(tmp_path / "spool", [FakeSite(name) for name in NAMES])
    before = _peak_kib(reset=True)
    stalled = [socket.create_connection(("127.0.0.1", world.port)) for _ in range(490)]
    for number, each in enumerate(stalled):
        if number % 2:
            each.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # a hello that ends here
    context = ssl.create_default_context(cadata=authority().pem.decode())
    context.check_hostname = False
    silent = [  # whole handshakes without a certificate: refused by the other end
        context.wrap_socket(socket.create_connection(("127.0.0.1", world.port))) for _ in range(10)
    ]
    still_served(world)
    assert _peak_kib() - before < 100 << 10, "200 kB a connection, both ends"
    for each in stalled[:3]:
        each.settimeout(10)
        assert each.recv(1) == b"", "cut off when the handshake takes too long"
    for end in (*stalled, *silent):
        end.close()
    world.close()


def _peak_kib(*, reset: bool = False) -> int:
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM"))
