"""Bias only (BitFit, Zaken et al. 2022): the biases of all layers, norms included."""

from torch import nn

from wardround_common.backbones.base import LoadedBackbone
from wardround_common.errors import ConfigError


class BiasTuning:
    """Trains every parameter named ``bias``."""

    def prepare(self, backbone: LoadedBackbone, seed: int) -> LoadedBackbone:  # noqa: ARG002
        """The backbone as it is.

        Raises:
            ConfigError: it has no bias.
        """
        if not _biases(backbone.module):
            raise ConfigError(
                'tuning.method = "bias": this backbone has no bias; choose another method',
                code="tuning_bias",
            )
        return backbone

    def trainable(
        self,
        module: nn.Module,
        blocks: tuple[str, ...],  # noqa: ARG002
        round_: int,  # noqa: ARG002
    ) -> frozenset[str]:
        """The names of the biases, in every round."""
        return _biases(module)


def _biases(module: nn.Module) -> frozenset[str]:
    return frozenset(
        name for name, _ in module.named_parameters() if name.rpartition(".")[2] == "bias"
    )
