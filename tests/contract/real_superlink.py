"""A real SuperLink on loopback: TLS, node authentication, SQLite, and a grid as a ServerApp has it.

What it promises: nothing of flwr is replaced. The SuperLink is the installed program in a process of
its own; nodes are registered over its Control API; a run is started by a bundle without code, and
its grid is flwr's ``HttpGrid`` with the token that a SuperExec would have been given.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import context_from_proto, fab_from_proto, run_from_proto
from flwr.proto.control_pb2 import (
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from tests.pki import Authority

PROGRAMS = Path(sys.executable).parent
_START_S = 30.0

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "no_proxy": "127.0.0.1,localhost",
}

BUNDLE: Mapping[str, bytes] = {
    "pyproject.toml": b"""
[project]
name = "wardround-run"
version = "0.1.0"
description = "a run"
license = { file = "LICENSE" }
[tool.flwr.app]
publisher = "wardround"
fab-include = ["/LICENSE"]
[tool.flwr.app.components]
serverapp = "wardround_server.app:app"
clientapp = "wardround_client.app:app"
""",
    "LICENSE": b"none\n",
}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A new node key, written to ``path``."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return key


class RealSuperLink:
    """One SuperLink and its folder.

    Args:
        folder: certificates, database and logs; kept between lives.
        authority: who signs its certificate.
        database: SQLite file, or ``:flwr-in-memory:``.
    """

    def __init__(
        self, folder: Path, authority: Authority | None = None, database: str | None = None
    ) -> None:
        self.folder = folder
        self.authority = authority or Authority()
        self.port = free_port()
        self._database = database or str(folder / "superlink.sqlite")
        self._process: subprocess.Popen[bytes] | None = None
        identity = self.authority.server()
        for name, data in (
            ("ca.pem", self.authority.pem),
            ("server.pem", identity.certificate),
            ("server.key", identity.key),
            ("superexec.secret", os.urandom(32).hex().encode()),
        ):
            (folder / name).write_bytes(data)

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.pem"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it answers."""
        words = [str(PROGRAMS / "flower-superlink"), "--host", "127.0.0.1"]
        words += ["--port", str(self.port), "--isolation", "process", "--enable-supernode-auth"]
        words += ["--ssl-certfile", str(self.folder / "server.pem")]
        words += ["--ssl-keyfile", str(self.folder / "server.key")]
        words += ["--ssl-ca-certfile", str(self.ca), "--database", self._database]
        words += ["--superexec-auth-secret-file", str(self.folder / "superexec.secret")]
        words += ["--disable-runtime-dependency-installation"]
        with (self.folder / "superlink.log").open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )
        self._wait_until_healthy()

    def environment(self) -> dict[str, str]:
        """For flwr's programs: quiet, and with a home of their own."""
        return {**os.environ, **QUIET, "FLWR_HOME": str(self.folder / "flwr")}

    def kill(self) -> None:
        """End it without notice, as a power cut would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "superlink.log").read_text(errors="replace")

    def register(self, name: str, key: ec.EllipticCurvePrivateKey) -> int:
        """Make a node known under a site's name; returns its number."""
        request = RegisterNodeRequest(public_key=public_key_to_bytes(key.public_key()), name=name)
        return int(self._control().RegisterNode(request).node_id)

    def unregister(self, node_id: int) -> None:
        """Make a node unknown."""
        self._control().UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(
        self, bundle: Mapping[str, bytes] | bytes = BUNDLE, *, federation: str = ""
    ) -> int:
        """Start a run by a bundle (files, or a finished one); returns its number."""
        content = bundle if isinstance(bundle, bytes) else build_fab_from_files(bundle)[0]
        request = StartRunRequest(fab=Fab(content=content), federation=federation)
        return int(self._control().StartRun(request).run_id)

    def stop_run(self, run_id: int) -> None:
        """Stop a run, as its operator would."""
        self._control().StopRun(StopRunRequest(run_id=run_id))

    def grid(self) -> HttpGrid:
        """The grid of the oldest run that no ServerApp has taken yet, as its ServerApp has it."""
        with self._runtime() as runtime:
            token = ""
            until = time.monotonic() + _START_S
            while not token and time.monotonic() < until:
                task = runtime.AcquireTask(
                    AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
                )
                token = task.token
            grid = HttpGrid(
                self.address, insecure=False, root_certificates=self.authority.pem, token=token
            )
        found = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = found.task_id, found.run.run_id
        TaskIdentity.node_id = context_from_proto(found.context).node_id
        assert fab_from_proto(found.fab).content
        grid.set_run(run_from_proto(found.run))
        return grid

    def _control(self) -> ControlHttpClient:
        return ControlHttpClient.from_server_address(
            self.address,
            insecure=False,
            root_certificates=self.authority.pem,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    @contextlib.contextmanager
    def _runtime(self) -> Iterator[Any]:
        secret = (self.folder / "superexec.secret").read_bytes()
        with RuntimeHttpClient.from_server_address(
            self.address,
            insecure=False,
            root_certificates=self.authority.pem,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(
                    master_secret=secret,
                    protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}),
                ),
            ],
        ) as client:
            yield client

    def _wait_until_healthy(self) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"https://{self.address}/health", verify=str(self.ca), timeout=1.0)
                return
            time.sleep(0.05)
        raise AssertionError(f"the SuperLink did not start:\n{self.log()[-2000:]}")
