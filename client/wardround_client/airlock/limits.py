"""The limits of the airlock: what a socket will take before anybody looked at a byte of it.

1. The worker receives nothing larger than a manifest and 64 kB, the node nothing larger than a
   receipt or a chunk and 64 kB. Nothing is compressed, so what is declared is what is allocated.
2. No array is allocated before its declared size is known to be the one that the manifest's own
   layouts have, and these to be the ones that the worker derives from its own files.
3. 16 calls at a time, each with a deadline; of their arrays two are in memory.
"""

import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from wardround_common.errors import ConfigError
from wardround_common.rpc.frames import CHUNK_BYTES
from wardround_common.wire.step import MAX_MANIFEST_BYTES

MAX_CALLS: Final = 16
"""Calls at the same time; one is computed, the others wait or ask how things stand."""
MAX_ARRAY_BYTES: Final = 1 << 36
"""64 GiB; the manifest's own size is asked for before anything is allocated."""
MAX_CALL_S: Final = 30 * 86_400.0
"""Longest deadline of a call; gRPC gives a call without one some centuries."""
SLACK_BYTES: Final = 65_536
"""What a message may hold beside its chunk, receipt or manifest."""
_MAX_PATH_BYTES: Final = 107
"""Of a Unix socket (``unix(7)``)."""

_BOTH: Final[list[tuple[str, Any]]] = [
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 16_384),
    ("grpc.compression_enabled_algorithms_bitset", 1),
]
SERVER_OPTIONS: Final[list[tuple[str, Any]]] = [
    *_BOTH,
    ("grpc.max_receive_message_length", MAX_MANIFEST_BYTES + SLACK_BYTES),
    ("grpc.max_send_message_length", CHUNK_BYTES + SLACK_BYTES),
    ("grpc.max_concurrent_streams", MAX_CALLS),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.max_ping_strikes", 2),
]
CHANNEL_OPTIONS: Final[list[tuple[str, Any]]] = [
    *_BOTH,
    ("grpc.max_receive_message_length", CHUNK_BYTES + SLACK_BYTES),
    ("grpc.max_send_message_length", MAX_MANIFEST_BYTES + SLACK_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in fact, how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


def address(socket: Path) -> str:
    """A socket's path as gRPC wants it: a URI, in which a comma separates addresses.

    Raises:
        ConfigError: it is longer than the kernel takes, or has a comma.
    """
    path = socket.resolve()
    if "," in str(path):
        raise ConfigError(
            f"{path}: gRPC takes no comma in a socket's path; set worker.socket to another one",
            code="worker_socket",
        )
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ConfigError(
            f"{path}: a Unix socket's path has at most {_MAX_PATH_BYTES} bytes; set worker.socket "
            "to a shorter absolute one, such as /run/wardround/airlock.sock",
            code="worker_socket",
        )
    return f"unix:{quote(os.fsencode(path))}"
