"""Heads: how long a log is and what its root is, signed by whoever keeps it.

Who has seen a head can later tell whether the log still begins with the same entries. So heads go to
others, who keep them, and nobody can rewrite a history alone.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround_common.canonical import canonical_bytes, parse_canonical
from wardround_common.crypto.signing import PublicKey, Signature, SigningKey, is_signed
from wardround_common.errors import IntegrityError, WireError
from wardround_common.types import HEX_DIGEST

MAX_HEAD_BYTES: Final = 1024
_KIND: Final = "audit head"


class SignedHead(BaseModel):
    """What a log was at some time.

    Attributes:
        size: number of entries.
        root: of these entries, hexadecimal.
        key: public key of who keeps the log, hexadecimal.
        signature: over the other three, hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0)
    root: Annotated[str, Field(pattern=HEX_DIGEST)]
    key: PublicKey
    signature: Signature

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        return canonical_bytes(self.model_dump(mode="json"))

    def verify(self) -> None:
        """Check the signature against the key that it names; whose key that is, the caller knows.

        Raises:
            IntegrityError: they do not fit (``head_signature``).
        """
        document = _document(self.size, self.root, self.key)
        if not is_signed(_KIND, document, self.key, self.signature):
            raise IntegrityError("the signature of a head is wrong", code="head_signature")


def sign_head(key: SigningKey, size: int, root: bytes) -> SignedHead:
    """A head of a log.

    Args:
        key: of who keeps it.
        size: number of entries.
        root: theirs, 32 bytes.
    """
    public, hexadecimal = key.public, root.hex()
    signature = key.sign(_KIND, _document(size, hexadecimal, public))
    return SignedHead(size=size, root=hexadecimal, key=public, signature=signature)


def parse_head(data: bytes) -> SignedHead:
    """A head from its bytes, with its signature checked.

    Raises:
        WireError: it is none (``head_form``).
        IntegrityError: its signature is wrong (``head_signature``).
    """
    try:
        parse_canonical(data, max_bytes=MAX_HEAD_BYTES)
        head = SignedHead.model_validate_json(data)
    except (ValidationError, WireError) as error:
        raise WireError("not a head", code="head_form") from error
    head.verify()
    return head


def _document(size: int, root: str, key: str) -> bytes:
    return canonical_bytes({"key": key, "root": root, "size": size})
