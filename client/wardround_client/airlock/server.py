"""Opens the airlock: its socket, who may use it, and its end."""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, socket

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from wardround_client.airlock import airlock_pb2_grpc
from wardround_client.airlock.limits import MAX_CALLS, SERVER_OPTIONS, address
from wardround_client.airlock.service import AirlockService
from wardround_common.errors import ConfigError

SERVICE = "wardround.v1.Airlock"
_MODE, _FOLDER_MODE = 0o660, 0o750


class AirlockServer:
    """The running airlock.

    Args:
        service: who answers.
        path: of the Unix socket. What is left of an earlier one is removed. Its users are this
            process's and the group of its folder.

    Raises:
        ConfigError: there cannot be such a socket, or somebody listens there.
    """

    def __init__(self, service: AirlockService, path: Path) -> None:
        place = address(path)
        self._server = grpc.server(
            ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="airlock"),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._health = health.HealthServicer()
        airlock_pb2_grpc.add_AirlockServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._open(place, path)

    def close(self, grace_s: float) -> None:
        """Take no more calls; those under way have ``grace_s`` seconds, and are cut off then."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()

    def _open(self, place: str, path: Path) -> None:
        try:
            _make_room(path)
            with _nobody_elses():
                self._server.add_insecure_port(place)
            os.chown(path, -1, path.parent.stat().st_gid)
            path.chmod(_MODE)
            self._server.start()
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"{path}: no socket can be opened there ({_reason(error)}); its folder must be "
                "writable for this user, and of a group that this user is in",
                code="worker_socket",
            ) from None


@contextmanager
def _nobody_elses() -> Iterator[None]:
    """What is made now is this user's alone, until its group is set."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _make_room(path: Path) -> None:
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
        path.parent.chmod(_FOLDER_MODE)
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigError(
            f"{path}: there is a file of this name that is no socket; name another",
            code="worker_socket",
        )
    with socket(AF_UNIX) as tried:
        if tried.connect_ex(os.fspath(path)) == 0:
            raise ConfigError(
                f"{path}: another process listens there; end it first, or name another socket",
                code="worker_socket",
            )
    path.unlink()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "gRPC cannot bind"
