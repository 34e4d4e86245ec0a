"""Who is let into a tensor stream, and what those may do who are not, or who lie."""

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

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
    WINDOW_BYTES,
    Identity,
)
from wardround_common.stream.outbox import Outbox
from wardround_common.stream.parts import (
    ArrayParts,
    Encoded,
    chunk_part,
    from_wire,
    offer_part,
    to_wire,
    want_part,
)
from wardround_common.stream.stream_pb2 import Part
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.layout import as_bytes
from wardround_common.wire.session import SessionInvite
from wardround_server.stream import server as server_module
from wardround_server.stream.session import SiteSession

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


def test_a_connection_of_one_site_may_not_speak_for_another(world: StreamWorld) -> None:
    """The name is checked for each call, not once for a connection."""
    identity, calls = authority().site("b"), []
    credentials = grpc.ssl_channel_credentials(authority().pem, identity.key, identity.certificate)
    invites = [world.server.invite(SiteId(site)) for site in NAMES]
    with grpc.secure_channel(invites[1].address, credentials, CHANNEL_OPTIONS) as channel:
        outboxes = [Outbox(), Outbox()]
        for invite, outbox in zip(reversed(invites), outboxes, strict=True):
            sent = ((RUN_KEY, invite.run), (TOKEN_KEY, invite.token))
            open_session: Any = channel.stream_stream(SESSION, to_wire, from_wire)
            calls.append(open_session(outbox, metadata=sent, timeout=10))
            if len(calls) == 1:
                eventually(lambda: world.server.session(SiteId("b")).is_open)
        assert calls[1].code() is grpc.StatusCode.UNAUTHENTICATED
        assert calls[0].is_active()
        assert not world.server.session(SiteId("a")).is_open
        for outbox in outboxes:
            outbox.close()


def _forged(identity: Identity) -> Identity:
    """The certificate with a key of which only the public half is the certificate's.

    TLS libraries compare public halves before they use a key, so this one passes at the client.
    """
    right = serialization.load_pem_private_key(identity.key, None)
    wrong = ec.generate_private_key(ec.SECP256R1())
    assert isinstance(right, ec.EllipticCurvePrivateKey)
    public = [
        key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        for key in (wrong, right)
    ]
    plain = wrong.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    body = base64.encodebytes(plain.replace(*public))
    name = b"EC PRIVATE KEY"
    pem = b"-----BEGIN %s-----\n%s-----END %s-----\n" % (name, body, name)
    return Identity(identity.certificate, pem, identity.authority)


@pytest.mark.parametrize("forged", [True, False])
def test_the_right_certificate_with_another_key_is_refused_in_the_handshake(
    world: StreamWorld, tmp_path: Path, forged: bool
) -> None:
    identity = authority().site("a")
    if forged:
        identity = _forged(identity)
    (tmp_path / "certificate").write_bytes(identity.certificate)
    (tmp_path / "key").write_bytes(identity.key)
    context = ssl.create_default_context(cadata=identity.authority.decode())
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    plain = socket.create_connection(("127.0.0.1", world.port), timeout=10)
    with context.wrap_socket(plain, server_hostname="localhost") as line:
        head = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            head = line.recv(9)
        assert head[3:4] == (b"" if forged else b"\x04"), "closed; or the settings of HTTP/2"


@pytest.mark.parametrize(
    ("off", "kind"),
    [("_name_of", "another site's certificate"), ("_name_of", "a site that is not in the roster")],
)
def test_twin_without_the_name_of_the_certificate_a_stranger_is_let_in(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch, off: str, kind: str
) -> None:
    monkeypatch.setattr(server_module, off, lambda peer: SiteId("a"))
    stranger = Intruder(world, STRANGERS[kind][0]())
    eventually(lambda: world.server.session(SiteId("a")).is_open)
    stranger.close()


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


class Drawn(ArrayParts):
    """A state that counts how many of its chunks were drawn over the newest connection."""

    num_drawn = 0

    def starting_at(self, offset: int) -> Iterator[Encoded]:
        """Its chunks from a byte on."""
        self.num_drawn = 0
        for chunk in super().starting_at(offset):
            self.num_drawn += 1
            yield chunk


def _unread_sessions(world: StreamWorld) -> list[Intruder]:
    """As many sessions of one site as the server has threads, each of them stuck in sending."""
    asked = replace(question(sites="a"), state=np.zeros(8 * CHUNK_BYTES, dtype=np.float32))
    state, stuck = Drawn(as_bytes(asked.state)), []
    world.server.session(SiteId("a")).ask(asked, state, 10.0)
    for _ in range(2 * len(NAMES) + 2):
        state.num_drawn = 0
        stuck.append(Intruder(world, authority().site("a")))
        next(stuck[-1].call)
        stuck[-1].outbox.put(want_part(sha256_hex(asked.manifest), 0))
        eventually(lambda: state.num_drawn * CHUNK_BYTES >= WINDOW_BYTES)
    return stuck


def _honest_is_served(world: StreamWorld) -> bool:
    node = world.nodes[SiteId("b")]
    node.on_session(world.server.invite(SiteId("b")).to_bytes())
    try:
        eventually(lambda: world.server.session(SiteId("b")).is_open, within_s=1.5)
    except AssertionError:
        return False
    return True


def test_sessions_that_nobody_reads_do_not_take_the_place_of_others(world: StreamWorld) -> None:
    stuck = _unread_sessions(world)
    assert _honest_is_served(world)
    for each in stuck:
        each.close()


def test_twin_sessions_that_are_not_hung_up_take_the_place_of_others(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = SiteSession.attach
    monkeypatch.setattr(SiteSession, "attach", lambda session, hang_up: attach(session))
    stuck = _unread_sessions(world)
    assert not _honest_is_served(world)
    for each in stuck:
        each.close()


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
