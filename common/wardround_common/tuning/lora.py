"""Low-rank adapters on linear layers (Hu et al. 2022, section 4.1), through PEFT.

A layer's output becomes ``W x + (alpha / r) B A x``. ``B`` starts at zero, so the features are
unchanged before the first step; ``A`` starts from Kaiming's uniform draw under the federation's
seed, so every site and the aggregator start from the same adapters. The names of the adapters'
parameters depend only on the layers' names.

Trained are both matrices, or B alone with A at its start (FFA-LoRA, Sun et al., ICLR 2024, section
4), or B and A in turn (RoLoRA, Chen et al., NeurIPS 2025): where one matrix is the same at all
sites, the mean of the other gives the mean of the products, and half the bytes travel up.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from wardround_common.backbones.base import LoadedBackbone
from wardround_common.errors import ConfigError
from wardround_common.spec.federation import Lora
from wardround_common.tuning.lora_factors import A, B


class LoraTuning:
    """Trains the adapters.

    Args:
        spec: rank, scale, dropout and the layers that get an adapter.
    """

    def __init__(self, spec: Lora) -> None:
        self._spec = spec

    def prepare(self, backbone: LoadedBackbone, seed: int) -> LoadedBackbone:
        """Add the adapters, in place.

        Args:
            backbone: as loaded, without adapters.
            seed: of the initial ``A`` matrices.

        Returns:
            The same backbone, in evaluation mode, all parameters frozen.

        Raises:
            ConfigError: no linear layer has a wanted name; those that it has are listed.
        """
        from peft import LoraConfig, inject_adapter_in_model

        layers = self._layers(backbone.module)
        alpha: Any = self._spec.alpha  # PEFT's annotation says int; it only divides by the rank
        config = LoraConfig(
            r=self._spec.rank,
            lora_alpha=alpha,
            lora_dropout=self._spec.dropout,
            target_modules="|".join(re.escape(name) for name in layers),
            bias="none",
        )
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(config, backbone.module)
        _initialise(backbone.module.named_parameters(), seed)
        backbone.module.eval().requires_grad_(False)
        return backbone

    def trainable(
        self,
        module: nn.Module,
        blocks: tuple[str, ...],  # noqa: ARG002
        round_: int,
    ) -> frozenset[str]:
        """The adapters' matrices of a round: both, B alone, or B in odd and A in even rounds."""
        only_b = self._spec.train == "b" or (self._spec.train == "alternate" and round_ % 2 == 1)
        halves = (A, B) if self._spec.train == "both" else ((B,) if only_b else (A,))
        return frozenset(name for name, _ in module.named_parameters() if name.endswith(halves))

    def _layers(self, module: nn.Module) -> list[str]:
        """Names of the linear layers that get an adapter."""
        linear = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
        known = sorted({name.rpartition(".")[2] for name in linear})
        unknown = sorted(set(self._spec.targets) - set(known))
        if unknown:
            raise ConfigError(
                f"tuning.targets: no linear layer of this backbone is called {', '.join(unknown)}; "
                f"it has {', '.join(known) or 'no linear layers'}",
                code="lora_targets",
            )
        return [name for name in linear if name.rpartition(".")[2] in self._spec.targets]


def _initialise(parameters: Iterable[tuple[str, nn.Parameter]], seed: int) -> None:
    """Draw every ``A`` in name order from one seeded generator, and set every ``B`` to zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters, key=lambda item: item[0]):
        if name.endswith(A):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5.0), generator=generator)
        elif name.endswith(B):
            nn.init.zeros_(parameter)
