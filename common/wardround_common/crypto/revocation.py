"""The list of certificates that count no more (RFC 5280, section 5)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardround_common.crypto.certificates import Issued

LIST_DAYS: Final = 30
_EARLIER: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Revoked:
    """One certificate that counts no more.

    Attributes:
        serial: its number.
        at: since when, UTC.
    """

    serial: int
    at: datetime


def revocation_list(
    authority: Issued, revoked: Iterable[Revoked], *, now: datetime | None = None
) -> bytes:
    """A signed list, PEM; it begins an hour before it is made and lasts :data:`LIST_DAYS` days.

    Args:
        authority: issued the certificates, and signs.
        revoked: all of them.
        now: the time of making; the clock's if absent.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate).subject
    since = (now or datetime.now(UTC)) - _EARLIER
    builder = x509.CertificateRevocationListBuilder(issuer, since, since + timedelta(LIST_DAYS))
    for each in revoked:
        entry = x509.RevokedCertificateBuilder(each.serial, each.at)
        builder = builder.add_revoked_certificate(entry.build())
    key = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
