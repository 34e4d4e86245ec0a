"""The limits of the tensor stream: what either side takes before anybody looked at a byte of it.

1. The aggregator receives nothing larger than a receipt and 64 KiB, and a site nothing larger than a
   manifest and 64 KiB. Nothing is compressed, so what is declared is what is allocated.
2. HTTP/2 windows are fixed at 512 KiB, two chunks: a receiver that is slow holds its sender back, and
   memory is bounded for each connection, however fast the line.
3. Who does not finish the handshake within 10 s, or opens no session within 60 s, is cut off.
4. Both sides ping every 10 s and give the other 10 s: a connection that is open at one end only is
   noticed within about 20 s. Whatever arrives counts as an answer, so a slow line is not a dead one.
5. A call has 12 h, and a connection 10 min more; then the site opens another one and goes on where
   it was. So no certificate is relied on much longer than it is valid.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wardround_common.wire.step import MAX_MANIFEST_BYTES, MAX_RECEIPT_BYTES

SERVICE: Final = "wardround.v1.TensorStream"
SESSION: Final = f"/{SERVICE}/Session"
RUN_KEY: Final = "wardround-run"
TOKEN_KEY: Final = "wardround-token"  # noqa: S105  the name of it
"""Metadata of a session: its run, and the token of its invitation."""

CHUNK_BYTES: Final = 1 << 18
"""Of an array in one message: larger ones take more memory a connection, smaller ones more time."""
SLACK_BYTES: Final = 65_536
"""What a message may hold beside its chunk, receipt or manifest."""
WINDOW_BYTES: Final = 2 * CHUNK_BYTES
KEEPALIVE_S: Final = 10.0
KEEPALIVE_TIMEOUT_S: Final = 10.0
HANDSHAKE_S: Final = 10.0
IDLE_S: Final = 60.0
CALL_S: Final = 12 * 3600.0
"""Deadline of a call, given by the site, and age at which the aggregator ends a connection."""
AGE_GRACE_S: Final = 600.0
CONNECTION_CALLS: Final = 2
"""Calls of one connection at a time."""


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


_BOTH: Final[list[tuple[str, Any]]] = [
    ("grpc.keepalive_time_ms", _ms(KEEPALIVE_S)),
    ("grpc.keepalive_timeout_ms", _ms(KEEPALIVE_TIMEOUT_S)),
    # The one that counts: gRPC 1.85 waits this long for any ping's answer, a minute by default.
    ("grpc.http2.ping_timeout_ms", _ms(KEEPALIVE_TIMEOUT_S)),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.http2.max_frame_size", WINDOW_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 16_384),
    ("grpc.compression_enabled_algorithms_bitset", 1),
]
SERVER_OPTIONS: Final[list[tuple[str, Any]]] = [
    *_BOTH,
    ("grpc.max_receive_message_length", MAX_RECEIPT_BYTES + SLACK_BYTES),
    ("grpc.max_send_message_length", MAX_MANIFEST_BYTES + SLACK_BYTES),
    ("grpc.max_concurrent_streams", CONNECTION_CALLS),
    ("grpc.server_handshake_timeout_ms", _ms(HANDSHAKE_S)),
    ("grpc.max_connection_idle_ms", _ms(IDLE_S)),
    ("grpc.max_connection_age_ms", _ms(CALL_S)),
    ("grpc.max_connection_age_grace_ms", _ms(AGE_GRACE_S)),
    ("grpc.http2.min_ping_interval_without_data_ms", _ms(KEEPALIVE_S / 2)),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.so_reuseport", 0),
]
CHANNEL_OPTIONS: Final[list[tuple[str, Any]]] = [
    *_BOTH,
    ("grpc.max_receive_message_length", MAX_MANIFEST_BYTES + SLACK_BYTES),
    ("grpc.max_send_message_length", MAX_RECEIPT_BYTES + SLACK_BYTES),
    ("grpc.min_reconnect_backoff_ms", _ms(HANDSHAKE_S)),
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who one end of a stream is, and whom it trusts; PEM.

    Attributes:
        certificate: its own, followed by any between it and the authority.
        key: the private key.
        authority: the consortium's certificate authority, which vouches for the other end.
    """

    certificate: bytes
    key: bytes
    authority: bytes


def read_identity(certificate: Path, key: Path, authority: Path) -> Identity:
    """An identity from its three files.

    Raises:
        OSError: one cannot be read.
    """
    return Identity(certificate.read_bytes(), key.read_bytes(), authority.read_bytes())
