"""What those may do in a tensor stream who were let in, and lie, or flood, or sleep."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.contract.test_carrier_contract import question
from tests.intruder import Intruder
from tests.streams import StreamWorld, authority, eventually
from tests.support import FakeSite
from wardround_common.stream.limits import (
    CHANNEL_OPTIONS,
    CHUNK_BYTES,
    RUN_KEY,
    SESSION,
    TOKEN_KEY,
    WINDOW_BYTES,
)
from wardround_common.stream.parts import (
    ArrayParts,
    Encoded,
    chunk_part,
    offer_part,
    want_part,
)
from wardround_common.stream.stream_pb2 import Part
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.layout import as_bytes
from wardround_server.stream.session import SiteSession

NAMES = "ab"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[StreamWorld]:
    world = StreamWorld(tmp_path / "spool", [FakeSite(name) for name in NAMES])
    yield world
    world.close()


def still_served(world: StreamWorld, deadline_s: float = 10.0) -> None:
    """Honest sites answer as if nothing were."""
    answers = list(world.carrier.ask(question(sites=NAMES), deadline_s))
    assert {answer.site: answer.failure for answer in answers} == dict.fromkeys(NAMES)


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
