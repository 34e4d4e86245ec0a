"""FedAdagrad: Adagrad on the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2, with beta1 = 0.
"""

import torch

from wardround_common.spec.federation import FedAdagrad as Settings
from wardround_server.aggregation.adaptive import Adaptive


class FedAdagrad(Adaptive):
    """Second moment: ``v = v + D^2``.

    Args:
        size: values in an update.
        settings: the rule's numbers.
    """

    def __init__(self, size: int, settings: Settings) -> None:
        super().__init__(size, learning_rate=settings.learning_rate, beta1=0.0, tau=settings.tau)

    def _second_moment(self, moment: torch.Tensor, square: torch.Tensor) -> None:
        moment.add_(square)
