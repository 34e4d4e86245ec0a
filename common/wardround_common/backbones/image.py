"""Image backbones: weights into an architecture, strictly, and pixels into features."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wardround_common.backbones.architectures import BareNet, build_bare
from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.blocks import find_blocks
from wardround_common.backbones.refs import Library
from wardround_common.errors import BackboneError, ConfigError
from wardround_common.modalities.image import ImageEncoder, PixelScale
from wardround_common.types import Digest


class ImageBackbone(nn.Module):
    """Scaled pixels through a network.

    Attributes:
        net: the network without its classifier.
    """

    def __init__(self, net: nn.Module, scale: PixelScale) -> None:
        super().__init__()
        self.net = net
        self._scale = scale

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pooled features.

        Args:
            pixels: uint8 [B, 3, H, W], channels first or last in memory: the network computes in
                the layout that they come in.

        Returns:
            float32 [B, d].
        """
        values = pixels.to(torch.float32)
        mean = values.new_tensor(self._scale.mean).view(1, 3, 1, 1)
        deviation = values.new_tensor(self._scale.deviation).view(1, 3, 1, 1)
        features: torch.Tensor = self.net((values - mean) / deviation)
        return features.float()


@dataclass(frozen=True, slots=True)
class ImageWeights:
    """Weights and what they are for.

    Attributes:
        path: a safetensors file.
        library: whose architecture.
        architecture: its name there.
        digest: the pinned digest.
        scale: overrides the library's scale.
    """

    path: Path
    library: Library
    architecture: str
    digest: Digest
    scale: PixelScale | None = None


def load_image(weights: ImageWeights, size: int | None) -> LoadedBackbone:
    """An image backbone with its weights.

    Args:
        weights: which.
        size: images are ``size`` x ``size`` pixels; None takes the architecture's own size.

    Raises:
        BackboneError: the file is damaged, or is not of this architecture.
        ConfigError: the architecture does not take images of this size.
    """
    bare = build_bare(weights.library, weights.architecture)
    load_strictly(bare, read_tensors(weights.path), weights.path)
    scale = weights.scale or bare.scale
    module = ImageBackbone(bare.net, scale).eval().requires_grad_(False)
    size = size or bare.size
    return LoadedBackbone(
        module=module,
        feature_dim=_feature_dim(module, size, bare.size, weights.architecture),
        blocks=find_blocks(bare.net, "net."),
        digest=weights.digest,
        encoder=ImageEncoder(size, scale),
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        BackboneError: the file cannot be read or is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BackboneError(
            f"{path}: not a readable safetensors file ({error}); weights are read from "
            "safetensors only, never from pickled checkpoints",
            code="backbone_corrupt",
        ) from error


def load_strictly(bare: BareNet, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy ``tensors`` into the network: every name must be there, only a classifier left over.

    Raises:
        BackboneError: names are missing, too many, or of another shape; the first few are listed.
    """
    own = bare.net.state_dict()
    extra = [
        name
        for name in tensors
        if name not in own and not name.startswith(tuple(f"{c}." for c in bare.classifiers))
    ]
    missing = [name for name in own if name not in tensors]
    shapes = [
        name for name, tensor in tensors.items() if name in own and tensor.shape != own[name].shape
    ]
    if extra or missing or shapes:
        raise BackboneError(
            f"{path}: not the weights of this architecture: missing {missing[:3]}, "
            f"not expected {extra[:3]}, other shape {shapes[:3]}",
            code="backbone_mismatch",
        )
    bare.net.load_state_dict({name: tensors[name] for name in own}, strict=True)


def _feature_dim(module: nn.Module, size: int, own: int, architecture: str) -> int:
    """The width of the features of one black image."""
    try:
        with torch.no_grad():
            features = module(pixels=torch.zeros(1, 3, size, size, dtype=torch.uint8))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"data.size = {size}: {architecture} does not take images of this size; its own is "
            f"{own}",
            code="image_size",
        ) from error
    if features.dim() != 2:
        raise BackboneError(
            f"{architecture} gives features of shape {tuple(features.shape)}, not [1, d]; choose "
            "another architecture",
            code="backbone_unsupported",
        )
    return int(features.shape[1])
