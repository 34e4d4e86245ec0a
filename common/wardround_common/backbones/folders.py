"""Folders of ``hf:`` references: on disk, or an entry of the Hugging Face cache on disk."""

from pathlib import Path

from wardround_common.backbones.refs import Ref
from wardround_common.backbones.text import WEIGHTS
from wardround_common.errors import BackboneError

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def text_folder(ref: Ref) -> Path:
    """The folder that holds an ``hf:`` reference's encoder.

    ``hf:FOLDER`` is a path, absolute or relative to the working directory. If there is none,
    ``hf:OWNER/NAME[@REVISION]`` is looked up in the cache on disk; nothing is downloaded.

    Raises:
        BackboneError: there is no such folder, or it has no ``model.safetensors``.
    """
    folder = Path(ref.name).expanduser()
    if not folder.is_dir():
        folder = _cached(ref.name) or folder
    if not folder.is_dir():
        raise BackboneError(
            f"backbone.ref = {ref.text!r}: neither a folder nor an entry of the Hugging Face "
            "cache; copy the model's folder here and name its path",
            code="backbone_missing",
        )
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        reason = f"only pickled weights ({pickled[0]}), which are never read" if pickled else "none"
        raise BackboneError(
            f"{folder}: no {WEIGHTS}, {reason}; save the encoder with "
            "model.save_pretrained(FOLDER) in one file",
            code="backbone_pickled" if pickled else "backbone_missing",
        )
    return folder


def _cached(name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    repository, _, revision = name.partition("@")
    try:
        found = cached_file(repository, WEIGHTS, revision=revision or None, local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(found).parent if found else None
