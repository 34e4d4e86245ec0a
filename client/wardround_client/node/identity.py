"""What the node proves itself with: the key that Flower knows, and the site's certificate."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from wardround_common.crypto.certificates import describe
from wardround_common.errors import ConfigError
from wardround_common.log import log_event
from wardround_common.spec.site import Node, resolve

_LOOK_S: Final = 0.5


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


class IdentityFiles:
    """The files of a node's identity as they were; new ones end a life of the node.

    Args:
        node: names them.
        base: the folder of ``site.toml``.
    """

    def __init__(self, node: Node, base: Path) -> None:
        self._key, self._certificate, self._tls_key = (
            resolve(base, path) for path in (node.key, node.certificate, node.certificate_key)
        )
        self._was = self._read()

    @contextmanager
    def ends_with(self, stop: threading.Event) -> Iterator[threading.Event]:
        """An event that is set when ``stop`` is, or when there are new files that fit together."""
        life, left = threading.Event(), threading.Event()

        def watch() -> None:
            seen = self._was
            while not (stop.wait(_LOOK_S) or left.is_set()):
                before, seen = seen, self._read()
                if seen == before and self._are_new(seen):
                    break
            life.set()

        watching = threading.Thread(target=watch, name="identity", daemon=True)
        watching.start()
        try:
            yield life
        finally:
            left.set()
            watching.join()

    def _are_new(self, now: tuple[bytes, ...]) -> bool:
        """Whether these files, which nobody is writing now, are others than at first and fit."""
        if now == self._was:
            return False
        try:
            whose = x509.load_pem_x509_certificate(now[1]).public_key()
            own = load_pem_private_key(now[2], None)
        except ValueError:
            return False
        if own.public_key() != whose:
            return False
        log_event("node_keys_changed")
        return True

    def _read(self) -> tuple[bytes, ...]:
        return tuple(_bytes_of(path) for path in (self._key, self._certificate, self._tls_key))


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


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _no_kit(path: Path) -> ConfigError:
    return ConfigError(
        f"{path}: missing, damaged or not of this site's key; install the site's kit by "
        "`wardround site enrol SITE.toml --kit`",
        code="node_certificate",
    )
