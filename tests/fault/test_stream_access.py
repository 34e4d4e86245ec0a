"""Who is let into a tensor stream, and who is not."""

import base64
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.intruder import Intruder
from tests.pki import Authority
from tests.streams import StreamWorld, authority, eventually
from tests.support import RUN, FakeSite
from wardround_client.node.stream import MAX_SESSIONS, Pauses, StreamSessions
from wardround_common.crypto.certificates import key_digest
from wardround_common.errors import WireError
from wardround_common.stream.limits import (
    CHANNEL_OPTIONS,
    RUN_KEY,
    SESSION,
    TOKEN_KEY,
    Identity,
)
from wardround_common.stream.outbox import Outbox
from wardround_common.stream.parts import (
    from_wire,
    to_wire,
)
from wardround_common.types import SiteId
from wardround_common.wire.session import SessionInvite
from wardround_server.stream import server as server_module

NAMES = "ab"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[StreamWorld]:
    world = StreamWorld(tmp_path / "spool", [FakeSite(name) for name in NAMES])
    yield world
    world.close()


STRANGERS: dict[str, tuple[Callable[[], Identity | None], str]] = {
    "no certificate": (lambda: None, "UNAVAILABLE"),
    "a certificate of another authority": (lambda: authority("another").site("a"), "UNAVAILABLE"),
    "an authority of the same name": (
        lambda: Authority(authority().name).site("a"),
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


def test_a_key_that_the_site_has_no_more_opens_no_session(world: StreamWorld) -> None:
    identity = authority().site("a")
    for revoked, status in (({key_digest(identity.certificate)}, "PERMISSION_DENIED"), (set(), "")):
        world.revoked = revoked
        intruder = Intruder(world, identity)
        if status:
            assert intruder.status().name == status
        else:
            eventually(lambda: world.server.session(SiteId("a")).is_open)
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
    "kind", ["another site's certificate", "a site that is not in the roster", "two names"]
)
def test_twin_without_the_name_of_the_certificate_a_stranger_is_let_in(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(server_module, "_name_of", lambda peer: SiteId("a"))
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
