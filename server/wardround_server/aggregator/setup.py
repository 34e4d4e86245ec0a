"""Making an aggregator, and inviting sites to it.

1. Nothing that exists is overwritten.
2. An invited site is one file in ``sites``; the SuperLink learns of it while it is up. Inviting
   works whether it is or not.
3. What a site sent is checked before anything is signed, and nothing of it but its two public keys
   is used.
"""

import json
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from pydantic import Field, ValidationError

from wardround_common.crypto.certificates import (
    certify_site,
    describe,
    issue_operator,
    issue_server,
    make_authority,
)
from wardround_common.crypto.signing import signing_key
from wardround_common.durable import write_file
from wardround_common.enrolment import Address, EnrolmentKit, Pem, read_request, to_text
from wardround_common.errors import ConfigError, IntegrityError
from wardround_common.spec.aggregator import AggregatorSpec
from wardround_common.spec.words import toml_literal
from wardround_common.types import SiteId
from wardround_common.wire.step import SiteName, WireModel
from wardround_server.aggregator.folder import (
    FOLDERS,
    AggregatorFolder,
    write_issued,
    write_private,
)

_LOCAL = ("localhost", "127.0.0.1")
_RENEW_DAYS = 30


class InvitedSite(WireModel):
    """A site that is let in.

    Attributes:
        name: in rosters.
        node_key: public key of its node, PEM.
        fingerprint: of its request.
        invited: Unix time.
    """

    name: SiteName
    node_key: Pem
    fingerprint: Annotated[str, Field(max_length=64)]
    invited: float


@dataclass(frozen=True, slots=True)
class Invitation:
    """A site was invited.

    Attributes:
        kit: what to send to it.
        fingerprint: to compare with the site.
        again: whether it was invited before.
    """

    kit: EnrolmentKit
    fingerprint: str
    again: bool


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


def invite_site(folder: AggregatorFolder, request: Path, address: str | None) -> Invitation:
    """Let a site in.

    Args:
        folder: the aggregator's.
        request: the file that the site sent.
        address: ``host:port`` for the kit; None for what the file says.

    Raises:
        ConfigError: the request is none, cannot be signed, or brings another site's key.
    """
    spec, wanted = folder.load(), read_request(request)
    site = SiteId(wanted.site)
    for other in invited_sites(folder):
        if other.node_key == _normal(wanted.node_key) and other.name != site:
            raise ConfigError(
                f"{request}: its node key is that of {other.name!r}; every site needs its own",
                code="node_key_taken",
            )
    certificate = certify_site(folder.read_authority(), site, wanted.certificate_request.encode())
    entry = InvitedSite(
        name=site,
        node_key=_normal(wanted.node_key),
        fingerprint=wanted.fingerprint,
        invited=float(int(time.time())),
    )
    path = folder.sites / f"{site}.json"
    again = path.exists()
    write_file(path, entry.to_bytes())
    kit = EnrolmentKit(
        site=site,
        consortium=spec.name,
        aggregator=address or public_address(spec),
        authority=folder.authority.read_text(),
        coordinator=signing_key(folder.coordinator_key).public,
        certificate=certificate.decode(),
    )
    return Invitation(kit, wanted.fingerprint, again)


def write_kit(path: Path, kit: EnrolmentKit) -> None:
    """Write a kit to a file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_file(path, to_text(kit).encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})", code="out_file") from None


def invited_sites(folder: AggregatorFolder) -> list[InvitedSite]:
    """All sites that are let in, by name.

    Raises:
        IntegrityError: a file in ``sites`` is damaged.
    """
    found = []
    for path in sorted(folder.sites.glob("*.json")):
        try:
            entry = InvitedSite.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            entry = None
        if entry is None or entry.name != path.stem:
            raise IntegrityError(
                f"{path} is damaged; invite the site again, or remove the file", code="site_file"
            )
        found.append(entry)
    return found


def public_address(spec: AggregatorSpec) -> Address:
    """Where sites find the aggregator: its front door, or the SuperLink on this machine."""
    if spec.front_door.kind == "nginx":
        return f"{spec.host}:{spec.front_door.port}"
    return f"127.0.0.1:{spec.superlink_port}"


def _normal(public_key: str) -> str:
    """A key as Flower compares it: by its text."""
    return (
        load_pem_public_key(public_key.encode())
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


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
