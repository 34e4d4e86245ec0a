"""Last k blocks: the blocks nearest to the output, the same ones in every round."""

from torch import nn

from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.blocks import block_parameters
from wardround_common.errors import ConfigError
from wardround_common.spec.federation import LastBlocks


class LastBlocksTuning:
    """Trains the last blocks.

    Args:
        spec: says how many.
    """

    def __init__(self, spec: LastBlocks) -> None:
        self._num_blocks = spec.blocks

    def prepare(self, backbone: LoadedBackbone, seed: int) -> LoadedBackbone:  # noqa: ARG002
        """The backbone as it is.

        Raises:
            ConfigError: it has fewer blocks.
        """
        check_num_blocks(self._num_blocks, backbone.blocks, "tuning.blocks")
        return backbone

    def trainable(
        self,
        module: nn.Module,
        blocks: tuple[str, ...],
        round_: int,  # noqa: ARG002
    ) -> frozenset[str]:
        """The parameters of the last blocks, BatchNorm's scale and shift among them."""
        return last_blocks(module, blocks, self._num_blocks)


def check_num_blocks(num_blocks: int, blocks: tuple[str, ...], key: str) -> None:
    """Refuse to thaw more blocks than there are.

    Raises:
        ConfigError: names the key and lists the blocks.
    """
    if num_blocks > len(blocks):
        raise ConfigError(
            f"{key} asks for {num_blocks} blocks; this backbone has {len(blocks)}: "
            f'{", ".join(blocks) or "none"}. Ask for fewer, or use tuning.method = "full"',
            code="tuning_blocks",
        )


def last_blocks(module: nn.Module, blocks: tuple[str, ...], num_blocks: int) -> frozenset[str]:
    """Names of the parameters in the last ``num_blocks`` blocks; 0 is none."""
    chosen = blocks[len(blocks) - num_blocks :] if num_blocks else ()
    return frozenset[str]().union(*(block_parameters(module, block) for block in chosen))
