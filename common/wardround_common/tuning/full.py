"""Full tuning: every parameter of the backbone, stem included."""

from torch import nn

from wardround_common.backbones.base import LoadedBackbone


class FullTuningMethod:
    """Trains every parameter. BatchNorm's running statistics are no parameters."""

    def prepare(self, backbone: LoadedBackbone, seed: int) -> LoadedBackbone:  # noqa: ARG002
        """The backbone as it is."""
        return backbone

    def trainable(
        self,
        module: nn.Module,
        blocks: tuple[str, ...],  # noqa: ARG002
        round_: int,  # noqa: ARG002
    ) -> frozenset[str]:
        """All names, in every round."""
        return frozenset(name for name, _ in module.named_parameters())
