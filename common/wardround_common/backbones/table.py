"""Tables have no pretrained network: their features are the encoded columns themselves."""

import torch
from torch import nn

from wardround_common.backbones.base import LoadedBackbone
from wardround_common.modalities.base import Moments
from wardround_common.modalities.tabular import TableEncoder
from wardround_common.spec.data import TabularData


class TableBackbone(nn.Module):
    """Passes encoded columns through; has no parameters."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``values``, float32 [B, d]."""
        return values


def load_table(data: TabularData, moments: Moments | None) -> LoadedBackbone:
    """The backbone of tables.

    Args:
        data: the declared columns.
        moments: scale of the numeric columns; None leaves them as they are.
    """
    encoder = TableEncoder(data, moments)
    return LoadedBackbone(
        module=TableBackbone().eval(),
        feature_dim=len(encoder.feature_names),
        blocks=(),
        digest=None,
        encoder=encoder,
    )
