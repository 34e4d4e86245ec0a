"""The two files by which a site joins a consortium: its request, and the kit that answers it.

1. Neither holds a secret: keys are made at the site and stay there. So either may travel by mail.
2. Whoever could change a request on its way would join in the site's place. So both ends print the
   request's fingerprint, and the operator compares it with the site over another channel (the
   telephone) before inviting.
3. Files from elsewhere are bounded, closed (unknown keys are refused) and checked before use.
"""

import json
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Field, ValidationError, field_validator

from wardround_common.crypto.signing import PublicKey
from wardround_common.errors import ConfigError
from wardround_common.wire.step import SiteName, WireModel

MAX_FILE_BYTES: Final = 65_536
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
    def fingerprint(self) -> str:
        """Names this request for people who compare it: eight groups of four digits."""
        digits = self.digest()[:32]
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
    """

    format: Literal["wardround-kit/1"] = "wardround-kit/1"
    site: SiteName
    consortium: Annotated[str, Field(min_length=1, max_length=64)]
    aggregator: Address
    authority: Pem
    coordinator: PublicKey
    certificate: Pem


Model = TypeVar("Model", EnrolmentRequest, EnrolmentKit)


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
    return _read(path, EnrolmentKit, "a kit made by `wardround aggregator invite`")


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
