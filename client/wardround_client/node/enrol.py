"""Joining a consortium: keys that never leave the site, a request that goes out, a kit that comes back.

1. Private keys are made here, readable by their owner only, and never overwritten, but by newer ones
   that the aggregator knows already.
2. A kit is installed only if it is for this site, for the key made here, and signed by the authority
   that it brings. An authority or coordinator's key that is already there is not replaced.
3. New keys wait beside the old ones until their kit is here. Whatever stops that half-way, asking again
   carries it to its end.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardround_client.node.enrolment_calls import redeem, send_rotation
from wardround_client.node.identity import load_identity, read_node_key
from wardround_common.crypto.certificates import describe, new_key, site_request
from wardround_common.durable import fsync_folder, replace_file
from wardround_common.enrolment import (
    EnrolmentKit,
    EnrolmentRequest,
    EnrolmentToken,
    Rotation,
    read_kit,
    read_request,
    to_text,
)
from wardround_common.errors import ConfigError
from wardround_common.spec.load import load_site
from wardround_common.spec.site import Node, SiteSpec, resolve
from wardround_common.types import SiteId

_NO_NODE = """\
{file}: there is no table [node]; write

[node]
aggregator = "HOST:PORT"    # the coordinator knows it

into it and run this again"""


@dataclass(frozen=True, slots=True)
class Requested:
    """A request that was written.

    Attributes:
        file: to be sent to the coordinator.
        fingerprint: to be read to the coordinator over another channel.
    """

    file: Path
    fingerprint: str


def make_request(file: Path) -> Requested:
    """Make the site's keys, if there are none, and a request.

    Args:
        file: ``site.toml``.

    Raises:
        ConfigError: the file is wrong or has no node, or a key that is there cannot be read.
    """
    site, node, base = _read(file)
    _kept_or_made(resolve(base, node.key), _new_node_key)
    tls_key = _kept_or_made(resolve(base, node.certificate_key), new_key)
    request = _request(site, resolve(base, node.key), tls_key)
    target = resolve(base, node.key).parent / f"{site.name}.request.json"
    replace_file(target, to_text(request).encode())
    return Requested(target, request.fingerprint)


def install_kit(file: Path, kit_file: Path) -> EnrolmentKit:
    """Install what the coordinator sent back.

    Args:
        file: ``site.toml``.
        kit_file: the kit.

    Raises:
        ConfigError: the kit is not for this site, this key or this aggregator.
    """
    kit = read_kit(kit_file)
    _install(file, kit, str(kit_file))
    return kit


def enrol_by_token(file: Path, token: EnrolmentToken) -> tuple[EnrolmentKit, str]:
    """Make the keys, bring the request to the aggregator and install what comes back.

    Args:
        file: ``site.toml``.
        token: the coordinator's.

    Returns:
        The kit, and the request's fingerprint.

    Raises:
        ConfigError: see :func:`make_request`, :func:`install_kit` and :func:`redeem`.
        EnrolmentError: the aggregator refused.
    """
    requested = make_request(file)
    kit = redeem(token, read_request(requested.file))
    _install(file, kit, f"the kit from {token.address}")
    return kit, requested.fingerprint


def rotate_keys(file: Path) -> tuple[EnrolmentKit, str]:
    """Give the site new keys: made here, brought to the aggregator, and installed when it knows them.

    A node that runs goes on with them by itself.

    Returns:
        The kit, and the fingerprint of the request.

    Raises:
        ConfigError: the site has not enrolled, or a file cannot be read; see also :func:`redeem`.
        EnrolmentError: the aggregator refused.
    """
    site, node, base = _read(file)
    where = node.enrolment or node.aggregator
    paths = [resolve(base, path) for path in (node.key, node.certificate_key, node.certificate)]
    key, tls_key, certificate = paths
    new_key_file, new_tls_file, new_certificate = map(_new, paths)
    if not new_certificate.exists():
        ca = resolve(base, node.ca)
        load_identity(key, ca, certificate, tls_key)  # an error of its own where one is missing
        _kept_or_made(new_key_file, _new_node_key)
        request = _request(site, new_key_file, _kept_or_made(new_tls_file, new_key))
        document = Rotation.document(request)
        rotation = Rotation(
            request=request,
            certificate=certificate.read_text(),
            signature=_tls_key(tls_key).sign(document, ec.ECDSA(hashes.SHA256())).hex(),
        )
        kit = send_rotation(where, ca.read_bytes(), rotation)
        _check(kit, f"the kit from {where}", new_tls_file)
        replace_file(new_certificate, to_text(kit).encode())
    kit = read_kit(new_certificate)
    for new, old in ((new_key_file, key), (new_tls_file, tls_key)):
        if new.exists():
            new.replace(old)
    replace_file(certificate, kit.certificate.encode())
    new_certificate.unlink()
    fsync_folder(certificate.parent)
    return kit, _request(site, key, tls_key.read_bytes()).fingerprint


def _request(site: SiteSpec, node_key: Path, tls_key: bytes) -> EnrolmentRequest:
    return EnrolmentRequest(
        site=site.name,
        node_key=_public(node_key),
        certificate_request=site_request(SiteId(site.name), tls_key).decode(),
    )


def _new(path: Path) -> Path:
    """Where the successor of a file waits."""
    return path.with_name(f"{path.name}.new")


def _install(file: Path, kit: EnrolmentKit, kit_file: str) -> None:
    site, node, base = _read(file)
    if kit.site != site.name:
        raise ConfigError(
            f"{kit_file}: for site {kit.site!r}, and this is {site.name!r}", code="kit_site"
        )
    _check(kit, kit_file, resolve(base, node.certificate_key))
    if kit.aggregator != node.aggregator:
        raise ConfigError(
            f"{file}: node.aggregator is {node.aggregator!r} and the kit's is {kit.aggregator!r}; "
            "if that is right, write it into the file and run this again",
            code="kit_aggregator",
        )
    _install_once(resolve(base, node.ca), kit.authority.encode(), "authority")
    coordinator = f"{kit.coordinator}\n".encode()
    _install_once(resolve(base, node.coordinator), coordinator, "coordinator")
    replace_file(resolve(base, node.certificate), kit.certificate.encode())


def _read(file: Path) -> tuple[SiteSpec, Node, Path]:
    site = load_site(file)
    if site.node is None:
        raise ConfigError(_NO_NODE.format(file=file), code="no_node")
    return site, site.node, file.resolve().parent


def _kept_or_made(path: Path, make: Callable[[], bytes]) -> bytes:
    """The key in a file; a new one, written for its owner alone, if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        key = make()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", code="node_key") from None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(key)
        opened.flush()
        os.fsync(opened.fileno())
    fsync_folder(path.parent)
    return key


def _new_node_key() -> bytes:
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _public(path: Path) -> str:
    """The public half of the node's key, PEM."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return read_node_key(path).public_key().public_bytes(encoding, form).decode()


def _check(kit: EnrolmentKit, kit_file: str, key_file: Path) -> None:
    """Refuse a kit whose parts do not belong together, or not to this site's key."""
    try:
        certificate = x509.load_pem_x509_certificate(kit.certificate.encode())
        certificate.verify_directly_issued_by(
            x509.load_pem_x509_certificate(kit.authority.encode())
        )
        whose = describe(kit.certificate.encode())
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(
            f"{kit_file}: its certificate is not signed by its authority", code="kit_certificate"
        ) from None
    if whose.kind != "site" or whose.names != (kit.site,):
        raise ConfigError(f"{kit_file}: its certificate is not a site's", code="kit_certificate")
    if _spki(certificate.public_key()) != _spki(_tls_key(key_file).public_key()):
        raise ConfigError(
            f"{kit_file}: its certificate is for another key than {key_file}; send the request of "
            "`wardround site enrol` again",
            code="kit_key",
        )


def _tls_key(path: Path) -> Any:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise ConfigError(
            f"{path}: no readable key; make it by `wardround site enrol`", code="node_key"
        ) from None


def _spki(key: Any) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(encoding, form))


def _install_once(path: Path, data: bytes, what: str) -> None:
    if path.exists() and path.read_bytes() != data:
        raise ConfigError(
            f"{path}: another {what} is installed; if the consortium has a new one, and you have "
            "heard so from the coordinator, remove the file and run this again",
            code=f"kit_{what}",
        )
    replace_file(path, data)
