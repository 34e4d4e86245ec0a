"""The store of imported and converted weights: ``$WARDROUND_CACHE`` or ``~/.cache/wardround``.

::

    backbones/<sha256>/weights.safetensors    <sha256>: the digest that a federation file pins
    backbones/<sha256>/<ref>.json             where the weights came from, and their own digest

Rules:

1. The record is written after the weights: an entry without a record does not exist.
2. A converted entry is filed under the digest of the *original* file, since that is what is
   pinned; the record keeps the digest of the converted file beside it.
3. Nothing is trusted because it is here: loaders check digests each time.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from wardround_common.cache import cache_folder
from wardround_common.canonical import canonical_bytes
from wardround_common.durable import fsync_folder, write_file
from wardround_common.errors import BackboneError
from wardround_common.types import Digest, is_digest, sha256_hex

_CHUNK_BYTES: Final = 1 << 20
_WEIGHTS: Final = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored backbone.

    Attributes:
        ref: the reference it answers to.
        sha256: the pinned digest: of the file that was imported or converted.
        weights_sha256: of the stored safetensors file; equal to ``sha256`` unless converted.
        path: the stored safetensors file.
    """

    ref: str
    sha256: Digest
    weights_sha256: Digest
    path: Path


def store_folder() -> Path:
    """The folder of the store; it need not exist yet."""
    return cache_folder() / "backbones"


def file_digest(path: Path) -> Digest:
    """The SHA-256 of a file, read in pieces.

    Raises:
        BackboneError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise BackboneError(
            f"{path}: the weights cannot be read ({error.strerror})", code="backbone_missing"
        ) from error
    return Digest(digest.hexdigest())


def put(ref: str, sha256: Digest, weights: bytes) -> Entry:
    """Store weights durably; an entry of the same name is replaced.

    Args:
        ref: the reference they answer to.
        sha256: the digest to file them under.
        weights: a safetensors file.

    Raises:
        OSError: the disk refused; no entry is left half written.
    """
    folder = store_folder() / sha256
    folder.mkdir(parents=True, exist_ok=True)
    fsync_folder(folder.parent)
    path = folder / _WEIGHTS
    entry = Entry(ref, sha256, write_file(path, weights), path)
    record = {key: value for key, value in asdict(entry).items() if key != "path"}
    write_file(folder / _record_name(ref), canonical_bytes(record))
    return entry


def find(ref: str, sha256: str) -> Entry | None:
    """The entry of ``ref`` under one digest, if the store has it."""
    if not is_digest(sha256):
        return None
    return _read(store_folder() / sha256 / _record_name(ref))


def entries() -> tuple[Entry, ...]:
    """All entries, by reference and digest. Damaged records are left out."""
    read = (_read(path) for path in store_folder().glob("*/*.json"))
    return tuple(sorted((entry for entry in read if entry), key=lambda e: (e.ref, e.sha256)))


def _record_name(ref: str) -> str:
    """A file name for a reference: readable, and different for different references."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', ref)[:60]}-{sha256_hex(ref.encode())[:8]}.json"


def _read(path: Path) -> Entry | None:
    try:
        record = json.loads(path.read_bytes())
        ref, sha256, own = (str(record[key]) for key in ("ref", "sha256", "weights_sha256"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    weights = path.with_name(_WEIGHTS)
    if path.parent.name != sha256 or not is_digest(own) or not weights.is_file():
        return None
    return Entry(ref, Digest(sha256), Digest(own), weights)
