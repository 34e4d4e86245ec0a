"""What an aggregator holds, of updates and of what strangers send: in a process of its own."""

import contextlib
import json
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stream_host import HostedStream
from tests.streams import authority
from wardround_common.stream.limits import RUN_KEY, TOKEN_KEY

NAMES = "ab"
MIB = 1 << 20
NUM_STALLED = 500
MODEL_BYTES = 45_000_000
CONNECTION_BYTES = 4_000_000
HANDSHAKE_S = 3.0


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedStream]:
    yield from _hosted(tmp_path_factory)


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedStream]:
    """Another one: what it keeps after a flood would hide what others cost."""
    yield from _hosted(tmp_path_factory)


def _hosted(folders: pytest.TempPathFactory) -> Iterator[HostedStream]:
    options = {"grpc.server_handshake_timeout_ms": int(HANDSHAKE_S * 1000)}
    hosted = HostedStream(folders.mktemp("spool"), authority(), NAMES, "c", options)
    for _ in range(3):
        still_served(hosted)
    yield hosted
    hosted.close()


def _case(num_sites: int, before: str = "") -> float:
    """Bytes that an aggregator takes beyond what it takes of models: a whole run's, by TLS.

    Args:
        num_sites: sites, a process each, with updates of 45 MB.
        before: Python that the aggregator runs first.
    """
    words = ["--sites", str(num_sites), "--bytes", str(MODEL_BYTES), "--repetitions", "2"]
    program = f"{before}\nfrom benchmarks.stream.case import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    return float(json.loads(done.stdout)["extra_bytes"]) - 2 * MODEL_BYTES


@pytest.mark.parametrize(
    "num_sites",
    [2, pytest.param(10, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow)],
)
def test_memory_is_two_models_and_4_mb_a_connection_whatever_the_number_of_updates(
    num_sites: int,
) -> None:
    assert _case(num_sites) <= num_sites * CONNECTION_BYTES


def test_twin_an_aggregator_that_holds_an_update_takes_more() -> None:
    held = """
import numpy as np
from wardround_server.stream import session
session.mapped = lambda path, layout: np.fromfile(path, np.float32)
"""
    assert _case(2, held) > 2 * CONNECTION_BYTES


def still_served(hosted: HostedStream) -> int:
    """Honest sites answer as if nothing were; the aggregator's largest memory until then."""
    found = hosted.ask()
    assert found["failures"] == dict.fromkeys(NAMES)
    peak: int = found["peak_bytes"]
    return peak


BOMB = """
import json, sys
import grpc
wanted = json.load(sys.stdin)
credentials = grpc.ssl_channel_credentials(*(wanted[k].encode() for k in ("authority", "key", "pem")))
method = grpc.Compression.Gzip if wanted["compressed"] else None
options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 30),
           ("grpc.absolute_max_metadata_size", 1 << 30)]
sent = wanted["sent"] + [["x-bomb", "x" * wanted["header_bytes"]]]
with grpc.secure_channel(wanted["address"], credentials, options, method) as channel:
    session = channel.stream_stream("/wardround.v1.TensorStream/Session")
    try:
        list(session(iter([bytes(wanted["bytes"])]), metadata=sent, timeout=10))
    except grpc.RpcError as error:
        print(error.code().name)
"""


@pytest.mark.parametrize(
    ("num_bytes", "compressed", "header_bytes", "codes"),
    [
        (64 * MIB, False, 0, {"RESOURCE_EXHAUSTED"}),
        (256 * MIB, True, 0, {"UNIMPLEMENTED"}),
        (MIB, True, 0, {"UNIMPLEMENTED"}),
        (1, False, 17_000, {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"}),
    ],
)
def test_a_message_too_large_or_compressed_or_a_header_too_long_is_never_held(
    hosted: HostedStream, num_bytes: int, compressed: bool, header_bytes: int, codes: set[str]
) -> None:
    before = still_served(hosted)
    assert sent_by_c(hosted, num_bytes, header_bytes, compressed=compressed) in codes
    assert still_served(hosted) - before < 8 * MIB


def sent_by_c(
    hosted: HostedStream, num_bytes: int, header_bytes: int, *, compressed: bool = False
) -> str:
    """What a site of the roster is told that sends so much."""
    invite, identity = hosted.invites["c"], authority().site("c")
    words = {
        "authority": identity.authority.decode(),
        "key": identity.key.decode(),
        "pem": identity.certificate.decode(),
        "address": invite.address,
        "compressed": compressed,
        "bytes": num_bytes,
        "header_bytes": header_bytes,
        "sent": [[RUN_KEY, invite.run], [TOKEN_KEY, invite.token]],
    }
    done = subprocess.run(
        [sys.executable, "-c", BOMB],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


BOMB_BYTES = 512 * MIB


def _bombed(hosted: HostedStream) -> tuple[int, int]:
    """What an aggregator takes at most, and keeps, while a site sends two headers of 512 MiB."""
    before, peak = still_served(hosted), 0
    for _ in range(2):
        sent_by_c(hosted, 1, BOMB_BYTES)
        peak = max(peak, still_served(hosted) - before)
    kept = peak
    for _ in range(20):  # what came last may be let go a moment later
        kept = min(kept, still_served(hosted) - before)
        time.sleep(0.1)
    print("PEAK", peak / 2**20, kept / 2**20)
    return peak, kept


def test_a_header_bomb_is_let_go_while_it_comes(flooded: HostedStream) -> None:
    """gRPC's own doing, whatever its limits are set to: there is no twin without it."""
    peak, kept = _bombed(flooded)
    assert peak < BOMB_BYTES
    assert kept < BOMB_BYTES / 4


def _frame(kind: int, flags: int, body: bytes, stream: int = 1) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, b"", 0)
NUM_LINES = 3
HEADER_BYTES = 48 * MIB
"""More than these floods were seen to take; held whole, each would unfold to gigabytes."""
ENTRY = b"\x40\x01x\x7f\x81\x1e" + b"x" * 4000
"""A header of 4,000 bytes, put into HPACK's table; from then on one byte stands for it."""


@pytest.mark.parametrize(
    "frames",
    [
        [_frame(1, 4, ENTRY + b"\xbe" * 12_000)],
        [_frame(1, 0, ENTRY), *[_frame(9, 0, b"\xbe" * 16_000)] * 1000],
        [_frame(1, 0, b""), *[_frame(9, 0, b"\x00\x01y\x7f\x81\x1e" + b"y" * 4000)] * 4000],
    ],
    ids=["table", "table and continuations", "continuations"],
)
def test_headers_that_unfold_in_memory_are_never_held(
    flooded: HostedStream, tmp_path: Path, frames: list[bytes]
) -> None:
    identity = authority().site("c")
    (tmp_path / "certificate").write_bytes(identity.certificate)
    (tmp_path / "key").write_bytes(identity.key)
    context = ssl.create_default_context(cadata=identity.authority.decode())
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    before = still_served(flooded)
    lines = []
    for _ in range(NUM_LINES):
        plain = socket.create_connection(("127.0.0.1", flooded.port), timeout=10)
        lines.append(context.wrap_socket(plain, server_hostname="localhost"))
        with contextlib.suppress(OSError):
            lines[-1].sendall(PREFACE + b"".join(frames))
    assert still_served(flooded) - before < HEADER_BYTES
    for line in lines:
        line.close()


def test_stalled_connections_take_little_and_honest_sites_are_served(
    hosted: HostedStream,
) -> None:
    before = max(still_served(hosted) for _ in range(3))
    usual = statistics.median(hosted.ask()["seconds"] for _ in range(40))
    stalled = [socket.create_connection(("127.0.0.1", hosted.port)) for _ in range(NUM_STALLED)]
    for number, each in enumerate(stalled):
        if number % 2:
            each.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # a hello that ends here
    assert still_served(hosted) - before < NUM_STALLED * 64 * 1024
    beside = statistics.median(hosted.ask()["seconds"] for _ in range(40))
    assert beside < 1.5 * usual, "how much more it is without other work: benchmarks/stream"
    for each in (stalled[0], stalled[1], stalled[-1]):
        each.settimeout(3 * HANDSHAKE_S)
        assert each.recv(1) == b"", "cut off when the handshake takes too long"
    for each in stalled:
        each.close()
