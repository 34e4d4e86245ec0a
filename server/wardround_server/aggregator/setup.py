"""Making an aggregator, and the kits of its sites. Nothing that exists is overwritten."""

import json
import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wardround_common.crypto.certificates import (
    describe,
    issue_operator,
    issue_server,
    make_authority,
)
from wardround_common.crypto.signing import signing_key
from wardround_common.durable import write_file
from wardround_common.enrolment import Address, EnrolmentKit, to_text
from wardround_common.errors import ConfigError
from wardround_common.spec.aggregator import AggregatorSpec
from wardround_common.spec.words import toml_literal
from wardround_common.types import SITE_NAME, SiteId
from wardround_server.aggregator.folder import (
    FOLDERS,
    AggregatorFolder,
    write_issued,
    write_private,
)
from wardround_server.aggregator.sites import EnrolledSite, SiteRegister

_LOCAL = ("localhost", "127.0.0.1")
_RENEW_DAYS = 30


def spec_of(**keys: Any) -> AggregatorSpec:
    """An aggregator's file from words of a command line; None stands for the default.

    Raises:
        ConfigError: a value is not allowed.
    """
    given = {key: value for key, value in keys.items() if value is not None}
    try:
        return AggregatorSpec.model_validate_json(json.dumps(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{key} = {toml_literal(first['input'])} is not allowed; `wardround explain "
            f"aggregator.{key}` says what is",
            code="aggregator_file",
        ) from None


def make_aggregator(folder: AggregatorFolder, spec: AggregatorSpec) -> None:
    """Make an aggregator's folder.

    Raises:
        ConfigError: there is something already, or the folder cannot be made.
    """
    path = folder.path
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"{path} exists and is not empty; name a new folder", code="aggregator_exists"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            (path / name).mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be made ({error.strerror}); name another folder", code="out_folder"
        ) from None
    authority = make_authority(spec.name)
    write_issued(folder.authority, authority)
    write_issued(folder.certificate, issue_server(authority, [spec.host, *_LOCAL]))
    write_issued(folder.operator, issue_operator(authority, "operator"))
    signing_key(folder.coordinator_key)
    write_private(folder.superexec_secret, secrets.token_hex(32).encode())
    write_private(folder.operator_token, secrets.token_hex(32).encode())
    SiteRegister(folder).write_revocations()
    write_file(folder.file, _text(spec).encode())


def renew_server_certificate(
    folder: AggregatorFolder, spec: AggregatorSpec, now: datetime | None = None
) -> bool:
    """Make a new server certificate if the old one ends soon or is for another host.

    Sites trust the authority, not the certificate: nothing changes for them.

    Returns:
        Whether one was made.

    Raises:
        ConfigError: the folder's keys cannot be read.
    """
    hosts = [spec.host, *_LOCAL]
    found = describe(folder.certificate.read_bytes())
    soon = (now or datetime.now(UTC)) + timedelta(days=_RENEW_DAYS)
    if found.until > soon and set(hosts) <= set(found.names):
        return False
    write_issued(folder.certificate, issue_server(folder.read_authority(), hosts))
    return True


def kit_for(folder: AggregatorFolder, site: EnrolledSite, address: str | None) -> EnrolmentKit:
    """What a site that was let in has to have.

    Args:
        folder: the aggregator's.
        site: with its certificate.
        address: ``host:port`` in the kit; None for what the file says.
    """
    spec = folder.load()
    assert site.certificate is not None, "it was just certified"
    return EnrolmentKit(
        site=site.name,
        consortium=spec.name,
        aggregator=address or public_address(spec),
        authority=folder.authority.read_text(),
        coordinator=signing_key(folder.coordinator_key).public,
        certificate=site.certificate,
        members=tuple(each.name for each in SiteRegister(folder).all()),
    )


def write_kit(path: Path, kit: EnrolmentKit) -> None:
    """Write a kit to a file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_file(path, to_text(kit).encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})", code="out_file") from None


def public_address(spec: AggregatorSpec) -> Address:
    """Where sites find the aggregator: its front door, or the SuperLink on this machine."""
    if spec.front_door.kind == "nginx":
        return f"{spec.host}:{spec.front_door.port}"
    return f"127.0.0.1:{spec.superlink_port}"


def enrolment_address(spec: AggregatorSpec, address: str | None) -> Address:
    """Where sites enrol: at the front door, or on this machine.

    Args:
        spec: the aggregator's file.
        address: ``host:port`` of the front door as a site reaches it; None for what the file says.
    """
    if spec.front_door.kind == "nginx":
        return address or public_address(spec)
    return f"127.0.0.1:{spec.enrolment_port}"


def named_site(text: str) -> SiteId:
    """A site's name from a command line.

    Raises:
        ConfigError: it cannot be one (``site_name``).
    """
    if re.fullmatch(SITE_NAME, text) is None:
        raise ConfigError(
            f"{text!r} cannot be a site's name: lower-case letters, digits and hyphens are allowed",
            code="site_name",
        )
    return SiteId(text)


def _text(spec: AggregatorSpec) -> str:
    """The file: what was chosen; defaults are left out."""
    lines = ["# How this aggregator runs. `wardround explain aggregator` lists all keys."]
    chosen: dict[str, Any] = json.loads(spec.model_dump_json(exclude_defaults=True))
    tables = {key: value for key, value in chosen.items() if isinstance(value, dict)}
    if spec.stream is not None:
        tables.setdefault("stream", {})
        tables["stream"]["port"] = spec.stream.port
    lines += [
        f"{key} = {toml_literal(value)}" for key, value in chosen.items() if key not in tables
    ]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {toml_literal(v)}" for key, v in table.items())]
    return "\n".join(lines) + "\n"
