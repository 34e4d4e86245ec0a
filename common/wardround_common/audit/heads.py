"""Heads: how long a log is and what its root is, signed by whoever keeps it.

Who has seen a head can later tell whether the log still begins with the same entries. So heads are
exchanged: each party writes the other's into its own log, and none can rewrite its history alone.
Ed25519 (RFC 8032).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround_common.canonical import canonical_bytes, parse_canonical
from wardround_common.durable import replace_file
from wardround_common.errors import IntegrityError, WireError
from wardround_common.types import HEX_DIGEST

MAX_HEAD_BYTES = 1024
_HEX_KEY = r"^[0-9a-f]{64}$"
_HEX_SIGNATURE = r"^[0-9a-f]{128}$"


class SignedHead(BaseModel):
    """What a log was at some time.

    Attributes:
        size: number of entries.
        root: of these entries, hexadecimal.
        key: Ed25519 public key of who keeps the log, hexadecimal.
        signature: over the other three, hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0)
    root: Annotated[str, Field(pattern=HEX_DIGEST)]
    key: Annotated[str, Field(pattern=_HEX_KEY)]
    signature: Annotated[str, Field(pattern=_HEX_SIGNATURE)]

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        return canonical_bytes(self.model_dump(mode="json"))

    def verify(self) -> None:
        """Check the signature against the key that it names; whose key that is, the caller knows.

        Raises:
            IntegrityError: they do not fit (``head_signature``).
        """
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key))
        try:
            key.verify(bytes.fromhex(self.signature), _signed(self.size, self.root, self.key))
        except InvalidSignature:
            raise IntegrityError(
                "the signature of a head is wrong", code="head_signature"
            ) from None


def _signed(size: int, root: str, key: str) -> bytes:
    return b"wardround audit head\n" + canonical_bytes({"key": key, "root": root, "size": size})


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


@dataclass(frozen=True, slots=True)
class LogKey:
    """The key that signs a log's heads."""

    private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """The public key, hexadecimal."""
        return self.private.public_key().public_bytes_raw().hex()

    def sign(self, size: int, root: bytes) -> SignedHead:
        """A head of this log."""
        public, hexadecimal = self.public, root.hex()
        signature = self.private.sign(_signed(size, hexadecimal, public)).hex()
        return SignedHead(size=size, root=hexadecimal, key=public, signature=signature)


def log_key(path: Path) -> LogKey:
    """The key in a file, made for its owner alone if there is none.

    Args:
        path: 32 bytes.

    Raises:
        IntegrityError: the file holds something else (``audit_key``).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        private = Ed25519PrivateKey.generate()
        replace_file(path, private.private_bytes_raw())
        os.chmod(path, 0o600)  # noqa: PTH101  as the folder is
        return LogKey(private)
    if len(data) != 32:
        raise IntegrityError(
            f"{path} is not a key; restore it from a backup, or the log's next heads are another's",
            code="audit_key",
        )
    return LogKey(Ed25519PrivateKey.from_private_bytes(data))
