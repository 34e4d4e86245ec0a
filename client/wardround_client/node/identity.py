"""What the node proves itself with: the key that Flower knows, and the site's certificate."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from wardround_common.crypto.certificates import describe
from wardround_common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Identity:
    """Keys and trust of one site's node.

    Attributes:
        key: the key that Flower knows the node by.
        tls: trust in the consortium's authority, and the site's client certificate.
        until: the end of that certificate's validity; None without one.
    """

    key: ec.EllipticCurvePrivateKey
    tls: ssl.SSLContext
    until: datetime | None = None


def load_identity(key: Path, ca: Path, certificate: Path, certificate_key: Path) -> Identity:
    """Read keys and certificates.

    Args:
        key: ECDSA key, PEM or OpenSSH.
        ca: the consortium's authority.
        certificate: the site's; a file that is not there is left out, which only an aggregator
            without a front door accepts.
        certificate_key: its key.

    Raises:
        ConfigError: a file is missing or not what it should be, or the certificate has expired; the
            message says which and what to do.
    """
    private = read_node_key(key)
    try:
        tls = ssl.create_default_context(cafile=str(ca))
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
    except (OSError, ssl.SSLError):
        raise _no_kit(ca) from None
    if not certificate.exists():
        return Identity(private, tls)
    try:
        until = describe(certificate.read_bytes()).until
        tls.load_cert_chain(certificate, certificate_key)
    except (OSError, ssl.SSLError, ConfigError):
        raise _no_kit(certificate) from None
    if until <= datetime.now(UTC):
        raise ConfigError(
            f"{certificate}: expired on {until:%Y-%m-%d}; send the coordinator a new request by "
            "`wardround site enrol`",
            code="certificate_expired",
        )
    return Identity(private, tls, until)


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The node's private key.

    Raises:
        ConfigError: the file is missing or holds no ECDSA key.
    """
    try:
        data = path.read_bytes()
        read = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
        private = read(data, None)
    except (OSError, ValueError, TypeError):
        raise ConfigError(
            f"{path}: no readable private key; make it by `wardround site enrol`", code="node_key"
        ) from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: Flower needs an ECDSA key", code="node_key")
    return private


def _no_kit(path: Path) -> ConfigError:
    return ConfigError(
        f"{path}: missing, damaged or not of this site's key; install the site's kit by "
        "`wardround site enrol SITE.toml --kit`",
        code="node_certificate",
    )
