"""Backbone references: what ``[backbone] ref`` may say."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from wardround_common.errors import ConfigError

Scheme = Literal["none", "package", "hf", "file", "timm", "torchvision"]
Library = Literal["timm", "torchvision"]

_PLAIN_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,119}$")
_ARCHITECTURE: Final = re.compile(r"^((timm|torchvision):)?([A-Za-z0-9][A-Za-z0-9_.-]{0,119})$")
_FORMS: Final = (
    'allowed: "none", "package:NAME", "hf:FOLDER", "file:PATH#ARCHITECTURE", '
    '"timm:ARCHITECTURE", "torchvision:ARCHITECTURE"'
)


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed reference.

    Attributes:
        text: as written.
        scheme: the part before the first colon.
        name: package, folder, path or architecture; empty for ``none``.
        architecture: of ``file:`` only, the part after ``#``.
        library: of ``file:`` only, where the part after ``#`` names it (``#timm:resnet18``).
    """

    text: str
    scheme: Scheme
    name: str = ""
    architecture: str | None = None
    library: Library | None = None


def parse_ref(text: str) -> Ref:
    """Take a reference apart.

    Raises:
        ConfigError: it has none of the allowed forms. An architecture is a plain name: it can
            address no hub and no other folder.
    """
    if text == "none":
        return Ref(text, "none")
    scheme, _, name = text.partition(":")
    match scheme:
        case "hf" if name:
            return Ref(text, "hf", name)
        case "file":
            return _file_ref(text, name)
        case "package" | "timm" | "torchvision" if _PLAIN_NAME.match(name):
            return Ref(text, scheme, name)
    raise ConfigError(f"backbone.ref = {text!r} is not a reference; {_FORMS}", code="backbone_ref")


def _file_ref(text: str, name: str) -> Ref:
    path, _, suffix = name.rpartition("#")
    match = _ARCHITECTURE.match(suffix)
    if not path or match is None:
        raise ConfigError(
            f"backbone.ref = {text!r} names no architecture; write file:PATH#ARCHITECTURE, for "
            "example file:weights.safetensors#timm:resnet18",
            code="backbone_ref",
        )
    library: Library | None = None
    if match[2] is not None:
        library = "timm" if match[2] == "timm" else "torchvision"
    return Ref(text, "file", path, match[3], library)
