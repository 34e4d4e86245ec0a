"""Gradual unfreezing: one more block from the output at each of the given rounds.

After Howard and Ruder 2018, section 3.3, with rounds in place of epochs. What is thawed stays so.
"""

from torch import nn

from wardround_common.backbones.base import LoadedBackbone
from wardround_common.spec.federation import GradualUnfreezing
from wardround_common.tuning.last_k import check_num_blocks, last_blocks


class GradualTuning:
    """Trains the head, then ever more blocks.

    Args:
        spec: the rounds at which the next block becomes trainable.
    """

    def __init__(self, spec: GradualUnfreezing) -> None:
        self._unfreeze_at = spec.unfreeze_at

    def prepare(self, backbone: LoadedBackbone, seed: int) -> LoadedBackbone:  # noqa: ARG002
        """The backbone as it is.

        Raises:
            ConfigError: it has fewer blocks than there are rounds to thaw one at.
        """
        check_num_blocks(len(self._unfreeze_at), backbone.blocks, "tuning.unfreeze_at")
        return backbone

    def trainable(self, module: nn.Module, blocks: tuple[str, ...], round_: int) -> frozenset[str]:
        """The parameters of the blocks thawed up to ``round_``, that round included."""
        thawed = sum(start <= round_ for start in self._unfreeze_at)
        return last_blocks(module, blocks, thawed)
