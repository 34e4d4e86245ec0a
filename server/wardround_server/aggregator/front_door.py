"""The front door: nginx before the SuperLink, rendered from ``aggregator.toml``.

What it promises is written in the template, ``templates/nginx.conf.j2``; ``deploy/nginx/nginx.conf`` is
what it comes to for an example, for those who want to read it first. The operator's token goes into a file of
its own that only the aggregator's user can read.
"""

import os
import shutil
import signal
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from wardround_common.durable import write_file
from wardround_common.errors import ConfigError
from wardround_common.spec.aggregator import AggregatorSpec, FrontDoor
from wardround_server.aggregator.folder import AggregatorFolder, key_beside, write_private
from wardround_server.aggregator.process import KeptProcess

_MAX_CONNECTIONS: Final = 4096
"""Of everybody together; stalled ones are cut off after seconds."""
_PLACES: Final = ("/usr/sbin", "/usr/local/sbin", "/sbin")


def front_door(folder: AggregatorFolder, spec: AggregatorSpec) -> KeptProcess:
    """nginx, to be kept running.

    Raises:
        ConfigError: nginx is not installed.
    """
    program, run = _nginx(), folder.state / "nginx"
    run.mkdir(mode=0o700, exist_ok=True)
    file = run / "nginx.conf"

    user = "root" if os.geteuid() == 0 else ""  # as the aggregator's other processes
    text = configuration(folder, spec, workers=os.cpu_count() or 1, user=user)

    def command() -> list[str]:
        write_private(run / "token.map", token_map(folder.operator_token.read_text().strip()))
        write_file(file, text.encode())
        return [program, "-e", "stderr", "-c", str(file), "-p", str(run)]

    return KeptProcess(
        "nginx",
        command,
        {"PATH": os.environ.get("PATH", os.defpath)},
        folder.logs / "nginx.log",
        farewell=signal.SIGQUIT,
    )


def configuration(
    folder: AggregatorFolder, spec: AggregatorSpec, *, workers: int, user: str = ""
) -> str:
    """The configuration file.

    Args:
        folder: the aggregator's.
        spec: its file.
        workers: nginx's processes.
        user: whom they run as, if nginx is started by root; the folder must be theirs.
    """
    door = spec.front_door
    template = Environment(
        loader=PackageLoader("wardround_server.aggregator"),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # noqa: S701  no page: values are paths, numbers and checked addresses
        keep_trailing_newline=True,
    ).get_template("nginx.conf.j2")
    run = folder.state / "nginx"
    return template.render(
        run=_quoted(run),
        user=user,
        workers=workers,
        max_connections=_MAX_CONNECTIONS,
        body_mib=door.body_mib,
        requests_per_s=door.requests_per_s,
        connections=door.connections,
        require_certificates=door.site_certificates == "require",
        token_map=_quoted(run / "token.map"),
        superlink_port=spec.superlink_port,
        enrolment_port=spec.enrolment_port,
        listen=door.listen,
        port=door.port,
        host=spec.host,
        certificate=_quoted(folder.certificate),
        key=_quoted(key_beside(folder.certificate)),
        authority=_quoted(folder.authority),
        revocations=_quoted(folder.revocations),
    )


def example() -> str:
    """The configuration of an aggregator in ``/srv/wardround`` for ``aggregator.example``."""
    spec = AggregatorSpec(
        name="consortium", host="aggregator.example", front_door=FrontDoor(kind="nginx")
    )
    return configuration(AggregatorFolder(Path("/srv/wardround")), spec, workers=4)


def token_map(token: str) -> bytes:
    """The one entry of nginx's map from a bearer token to a yes."""
    return f'"Bearer {token}" 1;\n'.encode()


def _quoted(path: Path) -> str:
    """A path as nginx reads it.

    Raises:
        ConfigError: no quoting makes it one.
    """
    text = str(path)
    if any(sign in text for sign in " \t\n\"'\\;{}$#"):
        raise ConfigError(
            f"{text}: nginx needs an aggregator's folder without spaces, quotes and any of "
            "\\ ; { } $ #; move it",
            code="front_door_path",
        )
    return text


def _nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(_PLACES))
    if found is None:
        raise ConfigError(
            "nginx is not installed; install it (Debian: apt install nginx-light), or say "
            "--front-door none for sites on this machine",
            code="front_door_missing",
        )
    return found
