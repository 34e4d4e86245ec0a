"""What must hold of the files in ``deploy/``, as functions: each names what is wrong with a text.

The tests ask them about the files, and about the same files with one protection taken away.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import yaml

from wardround_common import cli

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"
PROGRAMS: Final = ("wardround", "/opt/wardround/bin/wardround")
DATA: Final = "/srv/patients"
SOCKET_FOLDER: Final = "/run/wardround"
WORKER_STATE: Final = "/var/lib/wardround-worker"

Settings = dict[str, list[str]]


def unaccepted(words: Sequence[str]) -> str | None:
    """What is wrong with the words behind ``wardround``, or None: no command is run."""
    command: click.Command = cli.wardround
    context, rest = click.Context(command, info_name="wardround"), list(words)
    while isinstance(command, click.Group):
        name = rest.pop(0) if rest else ""
        found = command.get_command(context, name)
        if found is None:
            return f"no such verb: {name!r}"
        command = found
    try:
        command.make_context(command.name, rest)
    except click.exceptions.Exit:
        return None
    except click.UsageError as error:
        return error.format_message()
    return None


def shell_commands(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words behind each ``wardround`` of shell lines, up to what ends a simple command."""
    for line in lines:
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word in PROGRAMS and (place == 0 or words[place - 1] not in {"-n", "cd"}):
                behind = words[place + 1 :]
                ends = [at for at, each in enumerate(behind) if each in {"|", "||", "&&", ";", ">"}]
                yield behind[: min(ends, default=len(behind))]


def unit_settings(text: str) -> Settings:
    """Setting -> its values, in order, of a systemd unit."""
    found: Settings = {}
    for key, value in re.findall(r"^([A-Z]\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value.strip())
    return found


_EVERY_UNIT: Final = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectProc": "invisible",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "PrivateTmp": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "StateDirectoryMode": "0700",
    "UMask": "0077",
}
_EACH_UNIT: Final[Mapping[str, Mapping[str, str]]] = {
    "worker": {
        "PrivateNetwork": "yes",
        "RestrictAddressFamilies": "AF_UNIX",
        "CapabilityBoundingSet": "",
        "User": "wardround-worker",
    },
    "node": {
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
        "CapabilityBoundingSet": "",
        "PrivateDevices": "yes",
        "User": "wardround-node",
        "Group": "wardround-node",
        "SupplementaryGroups": "wardround-airlock",
    },
    "aggregator": {
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
        "CapabilityBoundingSet": "CAP_NET_BIND_SERVICE",
        "PrivateDevices": "yes",
        "User": "wardround-aggregator",
    },
}


def unit_problems(text: str, role: str) -> list[str]:
    """Settings of a unit that are not what its role needs, by name."""
    settings = unit_settings(text)
    wanted = {**_EVERY_UNIT, **_EACH_UNIT[role]}
    problems = [key for key, value in wanted.items() if settings.get(key) != [value]]
    filters = settings.get("SystemCallFilter", [])
    if not filters or not filters[0].startswith("@system-service"):
        problems.append("SystemCallFilter")
    hidden = " ".join(settings.get("InaccessiblePaths", [])).split()
    if role == "node" and not {f"-{WORKER_STATE}", f"-{DATA}"} <= set(hidden):
        problems.append("InaccessiblePaths")
    return problems


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML text."""
    return [each for each in yaml.safe_load_all(text) if each]
