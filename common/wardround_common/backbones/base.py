"""What a loaded backbone is."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from wardround_common.modalities.base import Encoder
from wardround_common.types import Digest


class FeatureExtractor(Protocol):
    """A backbone as a module: batch tensors in, features out."""

    def __call__(self, **batch: torch.Tensor) -> torch.Tensor:
        """Features: float32 [B, d], or [B, T, d] for token tasks."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """A pretrained model, ready to give features.

    Attributes:
        module: ``module(**batch)`` gives float32 [B, feature_dim] ([B, T, feature_dim] for token
            tasks); in evaluation mode, all parameters frozen.
        feature_dim: width d of the features.
        blocks: prefixes of parameter names (as in ``module.named_parameters()``), each one block
            of the network, in order from input to output; together they may leave out a stem. A
            block of several modules without a common name joins its prefixes with ``+``.
        digest: SHA-256 of the weights file, as pinned in the federation file.
        encoder: how raw examples become this backbone's input.
    """

    module: nn.Module
    feature_dim: int
    blocks: tuple[str, ...]
    digest: Digest | None
    encoder: Encoder
