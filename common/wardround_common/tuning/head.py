"""Head only: the backbone stays as it is."""

from torch import nn

from wardround_common.backbones.base import LoadedBackbone


class HeadTuning:
    """Trains nothing of the backbone, so its features can be computed once."""

    def prepare(self, backbone: LoadedBackbone, seed: int) -> LoadedBackbone:  # noqa: ARG002
        """The backbone as it is."""
        return backbone

    def trainable(
        self,
        module: nn.Module,  # noqa: ARG002
        blocks: tuple[str, ...],  # noqa: ARG002
        round_: int,  # noqa: ARG002
    ) -> frozenset[str]:
        """No parameter, in any round."""
        return frozenset()
