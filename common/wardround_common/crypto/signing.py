"""Ed25519 signatures (RFC 8032) over named kinds of documents.

What is signed begins with its kind, so that a signature of one kind never passes for another's.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from wardround_common.durable import replace_file
from wardround_common.errors import IntegrityError

KEY_BYTES: Final = 32
PUBLIC_KEY: Final = r"^[0-9a-f]{64}$"
SIGNATURE: Final = r"^[0-9a-f]{128}$"
PublicKey = Annotated[str, Field(pattern=PUBLIC_KEY)]
Signature = Annotated[str, Field(pattern=SIGNATURE)]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key.

    Attributes:
        private: it.
    """

    private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """The public key, 64 hexadecimal digits."""
        return self.private.public_key().public_bytes_raw().hex()

    def sign(self, kind: str, document: bytes) -> str:
        """The signature, 128 hexadecimal digits; always the same for the same document.

        Args:
            kind: of the document.
            document: its bytes.
        """
        return self.private.sign(_named(kind, document)).hex()


def is_signed(kind: str, document: bytes, key: str, signature: str) -> bool:
    """Whether a signature is that of a document by a key; whose key that is, the caller knows.

    Args:
        kind: of the document.
        document: its bytes.
        key: public, hexadecimal.
        signature: hexadecimal.
    """
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(signature), _named(kind, document))
    except (InvalidSignature, ValueError):
        return False
    return True


def signing_key(path: Path) -> SigningKey:
    """The key in a file, made for its owner alone if there is none.

    Args:
        path: 32 bytes; its folder must exist.

    Raises:
        IntegrityError: the file holds something else (``signing_key``).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        private = Ed25519PrivateKey.generate()
        replace_file(path, private.private_bytes_raw())
        os.chmod(path, 0o600)  # noqa: PTH101  no path of its own follows
        return SigningKey(private)
    if len(data) != KEY_BYTES:
        raise IntegrityError(
            f"{path} is not a key of {KEY_BYTES} bytes; restore it from a backup",
            code="signing_key",
        )
    return SigningKey(Ed25519PrivateKey.from_private_bytes(data))


def _named(kind: str, document: bytes) -> bytes:
    return f"wardround {kind}\n".encode() + document
