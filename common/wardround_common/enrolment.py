"""The documents by which a site joins a consortium: its request, and the kit that answers it.

1. Neither holds a secret: keys are made at the site and stay there.
2. Whoever could change a request on its way would join in the site's place. So either the request
   comes with the secret of a token, which works once; or it travels as a file, and the operator
   compares its fingerprint with the site over another channel (the telephone) before answering it.
3. Files from elsewhere are bounded, closed (unknown keys are refused) and checked before use.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from pydantic import Field, ValidationError, field_validator

from wardround_common.canonical import canonical_bytes
from wardround_common.crypto.signing import PublicKey
from wardround_common.errors import ConfigError
from wardround_common.types import Digest, sha256_hex
from wardround_common.wire.step import HexDigest, SiteName, WireModel

MAX_FILE_BYTES: Final = 65_536
_BEGINNING: Final = "wardround-1-"
_NIST_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

Pem = Annotated[str, Field(min_length=1, max_length=16_384, pattern=r"^[\x20-\x7e\n]+$")]
Address = Annotated[str, Field(max_length=260, pattern=r"^[A-Za-z0-9.\-\[\]:]{1,253}:\d{1,5}$")]


class EnrolmentRequest(WireModel):
    """What a site sends to the aggregator's operator.

    Attributes:
        site: its name in the roster.
        node_key: public key that Flower will know its node by; PEM, elliptic curve.
        certificate_request: for its client certificate; PEM.
    """

    format: Literal["wardround-request/1"] = "wardround-request/1"
    site: SiteName
    node_key: Pem
    certificate_request: Pem

    @field_validator("node_key")
    @classmethod
    def _is_public_key(cls, value: str) -> str:
        try:
            key = load_pem_public_key(value.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("not a public key in PEM") from None
        if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _NIST_CURVES)):
            raise ValueError("not a key on P-256, P-384 or P-521")  # noqa: TRY004  pydantic's way
        return value

    @property
    def keys(self) -> Digest:
        """Names the site and its two public keys; the same each time that these are asked for."""
        try:
            public = x509.load_pem_x509_csr(self.certificate_request.encode()).public_key()
            form = PublicFormat.SubjectPublicKeyInfo
            tls_key = public.public_bytes(Encoding.PEM, form).decode()
        except (ValueError, UnsupportedAlgorithm):
            tls_key = self.certificate_request  # it will not be certified
        return sha256_hex(canonical_bytes([self.site, self.node_key, tls_key]))

    @property
    def fingerprint(self) -> str:
        """Names the keys for people who compare them: eight groups of four digits."""
        digits = self.keys[:32]
        return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


class EnrolmentKit(WireModel):
    """What the operator sends back.

    Attributes:
        site: whom it is for.
        consortium: the authority's name, for people.
        aggregator: front door, ``host:port``.
        authority: the consortium's certificate; PEM.
        coordinator: public key that signs every question, for the site's policy.
        certificate: the site's client certificate; PEM.
        members: all sites that are let in now, this one included.
    """

    format: Literal["wardround-kit/1"] = "wardround-kit/1"
    site: SiteName
    consortium: Annotated[str, Field(min_length=1, max_length=64)]
    aggregator: Address
    authority: Pem
    coordinator: PublicKey
    certificate: Pem
    members: tuple[SiteName, ...] = ()


class EnrolmentToken(WireModel):
    """What a coordinator hands to a site: it lets one site enrol, once.

    Attributes:
        site: whom it is for.
        address: where to enrol, ``host:port``.
        authority_sha256: of the consortium's certificate (DER): the site trusts no other.
        secret: 16 bytes, hexadecimal.
    """

    site: SiteName
    address: Address
    authority_sha256: HexDigest
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

    def to_text(self) -> str:
        """One word, to be handed over by a channel that only both ends can read."""
        return _BEGINNING + urlsafe_b64encode(self.to_bytes()).decode().rstrip("=")


class Redemption(WireModel):
    """What a site sends with its token.

    Attributes:
        secret: of the token.
        request: the site's.
    """

    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    request: EnrolmentRequest


class Rotation(WireModel):
    """What a site sends to be known by new keys.

    Attributes:
        request: with the new keys.
        certificate: of the TLS key that it has until now; PEM.
        signature: by that key, over the request: ECDSA with SHA-256, DER, hexadecimal.
    """

    request: EnrolmentRequest
    certificate: Pem
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{16,400}$")]

    @staticmethod
    def document(request: EnrolmentRequest) -> bytes:
        """What is signed."""
        return b"wardround rotation\n" + request.to_bytes()


Model = TypeVar("Model", EnrolmentRequest, EnrolmentKit)


def parse_token(text: str) -> EnrolmentToken:
    """A token from its word.

    Raises:
        ConfigError: it is none (``token_form``).
    """
    kind, coded = text.strip()[: len(_BEGINNING)], text.strip()[len(_BEGINNING) :]
    try:
        data = urlsafe_b64decode(coded + "=" * (-len(coded) % 4)) if kind == _BEGINNING else b""
        return EnrolmentToken.model_validate_json(data)
    except ValueError:
        raise ConfigError(
            "this is not a whole token of `wardround aggregator invite`; copy all of it",
            code="token_form",
        ) from None


def authority_digest(authority: bytes) -> Digest:
    """SHA-256 of a certificate as tokens name it.

    Args:
        authority: PEM.

    Raises:
        ConfigError: it is no certificate (``certificate``).
    """
    try:
        return sha256_hex(x509.load_pem_x509_certificate(authority).public_bytes(Encoding.DER))
    except ValueError:
        raise ConfigError("this is not a certificate", code="certificate") from None


def read_request(path: Path) -> EnrolmentRequest:
    """A site's request.

    Raises:
        ConfigError: the file is missing (``file_missing``) or none (``enrolment_file``).
    """
    return _read(path, EnrolmentRequest, "a request made by `wardround site enrol`")


def read_kit(path: Path) -> EnrolmentKit:
    """A kit.

    Raises:
        ConfigError: as :func:`read_request`.
    """
    return _read(path, EnrolmentKit, "a kit made by `wardround aggregator certify`")


def to_text(document: EnrolmentRequest | EnrolmentKit) -> str:
    """The content of its file."""
    return json.dumps(document.model_dump(mode="json"), indent=2) + "\n"


def _read(path: Path, model: type[Model], what: str) -> Model:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror})", code="file_missing"
        ) from None
    try:
        return model.model_validate_json(data if len(data) <= MAX_FILE_BYTES else b"")
    except ValidationError:
        raise ConfigError(f"{path}: this is not {what}", code="enrolment_file") from None
