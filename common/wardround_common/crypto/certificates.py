"""The consortium's certificates: one authority, and what it says about servers, sites and operators.

1. All keys are elliptic curve P-256. A private key is made where it is used: a site sends a request,
   never a key, and the authority takes nothing from a request but the public key that signed it.
2. What a certificate allows is in its extended key usage (server or client) and, for clients, in its
   subject: the organisation is ``wardround site`` or ``wardround operator``. A site's only subject
   alternative name is the site's name; an operator has none, so that neither passes for the other.
3. Certificates begin an hour before they are made: clocks of hospitals differ.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround_common.errors import ConfigError
from wardround_common.types import Digest, SiteId, sha256_hex

AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 397
CLIENT_DAYS: Final = 730
SITE: Final = "wardround site"
OPERATOR: Final = "wardround operator"

_EARLIER: Final = timedelta(hours=1)
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key, both PEM.

    Attributes:
        certificate: signed by the authority, or by itself if it is the authority's.
        key: unencrypted PKCS 8; belongs into a file that only its owner can read.
    """

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Described:
    """What a certificate says.

    Attributes:
        kind: whose it is.
        name: of the site or operator; the first host of a server.
        names: its alternative names.
        until: the end of its validity, UTC.
    """

    kind: Literal["authority", "server", "site", "operator"]
    name: str
    names: tuple[str, ...]
    until: datetime


def new_key() -> bytes:
    """A private key, PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def make_authority(name: str, *, days: int = AUTHORITY_DAYS, now: datetime | None = None) -> Issued:
    """A new certificate authority.

    Args:
        name: the consortium's, at most 64 characters.
        days: of validity.
        now: the time of making; the clock's if absent.
    """
    key = new_key()
    private = _private(key)
    subject = _subject(name, "wardround authority")
    builder = _builder(subject, subject, private.public_key(), days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Issued(_pem(builder.sign(private, hashes.SHA256())), key)


def issue_server(
    authority: Issued,
    hosts: Sequence[str],
    *,
    days: int = SERVER_DAYS,
    now: datetime | None = None,
) -> Issued:
    """A server certificate and its key.

    Args:
        authority: signs it.
        hosts: DNS names and IP addresses that it is for, at least one.
        days: of validity.
        now: see :func:`make_authority`.
    """
    key = new_key()
    builder = _issued(authority, _subject(hosts[0]), _private(key).public_key(), days, now)
    builder = builder.add_extension(_alternatives(hosts), critical=False)
    return Issued(_signed(authority, builder, _SERVER), key)


def issue_operator(
    authority: Issued, name: str, *, days: int = CLIENT_DAYS, now: datetime | None = None
) -> Issued:
    """A client certificate of an operator of the aggregator, and its key."""
    key = new_key()
    subject = _subject(name, OPERATOR)
    builder = _issued(authority, subject, _private(key).public_key(), days, now)
    return Issued(_signed(authority, builder, _CLIENT), key)


def site_request(site: SiteId, key: bytes) -> bytes:
    """A site's request to be certified, PEM; signed, so that it proves possession of the key.

    Args:
        site: the name in the roster.
        key: the site's private key, PEM.
    """
    builder = x509.CertificateSigningRequestBuilder(_subject(site, SITE))
    builder = builder.add_extension(_alternatives([site]), critical=False)
    return builder.sign(_private(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def certify_site(
    authority: Issued,
    site: SiteId,
    request: bytes,
    *,
    days: int = CLIENT_DAYS,
    now: datetime | None = None,
) -> bytes:
    """A site's client certificate, PEM.

    Args:
        authority: signs it.
        site: whose it becomes, as the operator knows it; nothing is taken from the request but
            its key.
        request: what the site sent.
        days: of validity.
        now: see :func:`make_authority`.

    Raises:
        ConfigError: the request is malformed, not signed by its key, for another name, or its key
            is not on a NIST curve (``certificate_request``).
    """
    subject = _subject(site, SITE)
    builder = _issued(authority, subject, _requested_key(site, request), days, now)
    builder = builder.add_extension(_alternatives([site]), critical=False)
    return _signed(authority, builder, _CLIENT)


def describe(certificate: bytes) -> Described:
    """What a certificate says; its signature is not looked at.

    Raises:
        ConfigError: it is not a certificate of this product (``certificate``).
    """
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        extensions = parsed.extensions
        is_authority = _is_authority(extensions)
        common = str(parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except (ValueError, IndexError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise ConfigError("this is not a certificate", code="certificate") from None
    organisations = [
        str(each.value) for each in parsed.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    ]
    until, names = parsed.not_valid_after_utc, tuple(_names(extensions))
    if is_authority:
        return Described("authority", common, names, until)
    if organisations == [SITE]:
        return Described("site", common, names, until)
    if organisations == [OPERATOR]:
        return Described("operator", common, names, until)
    return Described("server", common, names, until)


def key_digest(certificate: bytes) -> Digest:
    """SHA-256 of a certificate's public key (SubjectPublicKeyInfo): the same in each renewal.

    Args:
        certificate: PEM.
    """
    key = x509.load_pem_x509_certificate(certificate).public_key()
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256_hex(key.public_bytes(encoding, form))


def serial_of(certificate: bytes) -> str:
    """A certificate's serial number, hexadecimal.

    Args:
        certificate: PEM.
    """
    return f"{x509.load_pem_x509_certificate(certificate).serial_number:x}"


def _requested_key(site: SiteId, request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
        names, is_signed = list(_names(parsed.extensions)), parsed.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise _refused("it is malformed") from None
    if not is_signed:
        raise _refused("its key did not sign it")
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _refused("its key is not on an elliptic curve")
    if names != [site]:
        raise _refused("it names another site")
    return key


def _refused(why: str) -> ConfigError:
    return ConfigError(
        f"the certificate request cannot be signed: {why}; let the site make it again by "
        "`wardround site enrol`",
        code="certificate_request",
    )


def _private(key: bytes) -> ec.EllipticCurvePrivateKey:
    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return private


def _subject(name: str, organisation: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if organisation is not None:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name(parts)


def _alternatives(hosts: Iterable[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _names(extensions: x509.Extensions) -> Iterable[str]:
    try:
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    for name in found:
        yield str(name.value)


def _is_authority(extensions: x509.Extensions) -> bool:
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    since = (now or datetime.now(UTC)) - _EARLIER
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=days))
        .add_extension(identifier, critical=False)
    )


def _issued(
    authority: Issued,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    """A certificate of somebody else's key."""
    signer = _private(authority.key).public_key()
    issuer = x509.load_pem_x509_certificate(authority.certificate).subject
    builder = _builder(subject, issuer, key, days, now)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _signed(
    authority: Issued, builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier
) -> bytes:
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return _pem(builder.sign(_private(authority.key), hashes.SHA256()))


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
