"""What every tuning method provides."""

from typing import Protocol

from torch import nn

from wardround_common.backbones.base import LoadedBackbone


class Tuning(Protocol):
    """Chooses the trainable parameters of a backbone."""

    def prepare(self, backbone: LoadedBackbone, seed: int) -> LoadedBackbone:
        """Add what the method needs to the backbone (LoRA adapters), once, before any round.

        Args:
            backbone: as loaded; may be changed in place.
            seed: seed of what is added, the same at every site and the aggregator.

        Returns:
            The backbone with adapters; the same one where the method adds nothing.

        Raises:
            ConfigError: the method does not fit this backbone (no layer of the wanted name, more
                blocks than it has); the message lists what it has.
        """
        ...

    def trainable(self, module: nn.Module, blocks: tuple[str, ...], round_: int) -> frozenset[str]:
        """Names of the backbone parameters trained in round ``round_`` (from 1).

        Args:
            module: the prepared backbone module.
            blocks: its block prefixes, input to output.
            round_: the round's number; sets may differ from round to round.
        """
        ...
