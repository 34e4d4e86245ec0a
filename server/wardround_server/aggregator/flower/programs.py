"""flwr's programs: where they are, their command lines, and the environment they run in.

1. The SuperLink listens on loopback only, with TLS and node authentication; a ServerApp task is
   handed out only to who knows the SuperExec secret.
2. Telemetry, update checks and the installation of dependencies are off.
3. What a run is started with carries no code: its components are those of the installed wheel.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from wardround_common import __version__
from wardround_common.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"
FOLDER_VARIABLE: Final = "WARDROUND_AGGREGATOR"
"""Tells a ServerApp the aggregator's folder."""
RUN_KEY: Final = "run"
"""The one key of a run's configuration: the name of its folder."""

_QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_PYPROJECT: Final = """[project]
name = "wardround-run"
version = "{version}"
description = "A run of Wardround: no code, only the names of what is installed."
license = {{ file = "LICENSE" }}

[tool.flwr.app]
publisher = "wardround"
fab-include = ["/LICENSE"]

[tool.flwr.app.components]
serverapp = "wardround_server.app:app"
clientapp = "wardround_client.app:app"

[tool.flwr.app.config]
run = ""
"""
_LICENSE: Final = b"Apache-2.0\n"


@dataclass(frozen=True, slots=True)
class SuperLinkFiles:
    """What the SuperLink and what talks to it need.

    Attributes:
        certificate, key: the server's, for loopback too.
        authority: vouches for the certificate.
        secret: of the SuperExec.
        database: SQLite file.
    """

    certificate: Path
    key: Path
    authority: Path
    secret: Path
    database: Path


def superlink_command(port: int, files: SuperLinkFiles) -> list[str]:
    """The command line of a SuperLink."""
    return [
        _program("flower-superlink"),
        *("--host", LOOPBACK, "--port", str(port)),
        *("--ssl-certfile", str(files.certificate), "--ssl-keyfile", str(files.key)),
        *("--ssl-ca-certfile", str(files.authority)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(files.secret)),
        *("--enable-supernode-auth", "--database", str(files.database)),
        "--disable-runtime-dependency-installation",
    ]


def superexec_command(port: int, files: SuperLinkFiles) -> list[str]:
    """The command line of a SuperExec for ServerApps."""
    return [
        _program("flower-superexec"),
        *("--runtime-api-address", f"{LOOPBACK}:{port}"),
        *("--root-certificates", str(files.authority)),
        *("--superexec-auth-secret-file", str(files.secret)),
    ]


def environment(folder: Path, home: Path) -> dict[str, str]:
    """What flwr's programs are started with.

    Args:
        folder: the aggregator's; ServerApps find it.
        home: flwr's own folder.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    for name in ("no_proxy", "NO_PROXY"):  # the SuperLink is on loopback, whatever the proxy
        inherited[name] = ",".join(filter(None, (inherited.get(name), LOOPBACK, "localhost")))
    programs = str(Path(sys.executable).parent)  # the SuperExec starts flwr-serverapp by its name
    return {
        **inherited,
        **_QUIET,
        "MALLOC_ARENA_MAX": "1",  # else each thread that moved an update keeps its size
        "PATH": os.pathsep.join((programs, inherited.get("PATH", os.defpath))),
        "FLWR_HOME": str(home),
        FOLDER_VARIABLE: str(folder),
    }


@cache
def bundle() -> bytes:
    """What a run is started with: two files, no code; the same bytes each time."""
    from flwr.cli.build import build_fab_from_files

    files: Mapping[str, bytes | Path] = {
        "pyproject.toml": _PYPROJECT.format(version=__version__).encode(),
        "LICENSE": _LICENSE,
    }
    return build_fab_from_files(files)[0]


def _program(name: str) -> str:
    """A program of the environment that this process runs in.

    Raises:
        ConfigError: flwr is not installed here.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ConfigError(
            f"{path} is missing; install wardround again: pip install --force-reinstall flwr",
            code="program_missing",
        )
    return str(path)
