"""The model of a federation: a backbone and a head.

Built from the federation file and a loaded backbone; the same function builds it at the
aggregator (for the initial state) and at every site.
"""

import torch
from torch import nn

from wardround_common.backbones.base import LoadedBackbone
from wardround_common.spec.federation import Head


class FineTunedModel(nn.Module):
    """``head(backbone(**batch))``.

    Attributes:
        backbone: gives features.
        head: maps features [..., d] to logits [..., num_outputs].
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """Logits: float32 [B, num_outputs] or [B, T, num_outputs]."""
        logits: torch.Tensor = self.head(self.backbone(**batch))
        return logits


def build_head(spec: Head, feature_dim: int, num_outputs: int, seed: int) -> nn.Module:
    """The head with its initial weights.

    A linear head starts at zero (every class equally likely, no seed involved); the hidden layer
    of an mlp starts as PyTorch's default under ``seed``.

    Args:
        spec: the ``[head]`` table.
        feature_dim: width of the features.
        num_outputs: number of classes.
        seed: seed of the hidden layer.
    """
    last = nn.Linear(feature_dim if spec.kind == "linear" else spec.hidden, num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    dropout = [nn.Dropout(spec.dropout)] if spec.dropout > 0 else []
    if spec.kind == "linear":
        return nn.Sequential(*dropout, last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = nn.Linear(feature_dim, spec.hidden)
        nn.init.normal_(last.weight, std=0.01)
    return nn.Sequential(hidden, nn.ReLU(), *dropout, last)


def build_model(
    backbone: LoadedBackbone, spec: Head, num_outputs: int, seed: int
) -> FineTunedModel:
    """The whole model, on the processor, in evaluation mode."""
    head = build_head(spec, backbone.feature_dim, num_outputs, seed)
    return FineTunedModel(backbone.module, head).eval()
