"""FedYogi: Yogi on the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2.
"""

import torch

from wardround_common.spec.federation import FedYogi as Settings
from wardround_server.aggregation.adaptive import Adaptive


class FedYogi(Adaptive):
    """Second moment: ``v = v - (1 - beta2) * D^2 * sign(v - D^2)``.

    Args:
        size: values in an update.
        settings: the rule's numbers.
    """

    def __init__(self, size: int, settings: Settings) -> None:
        super().__init__(
            size,
            learning_rate=settings.learning_rate,
            beta1=settings.beta1,
            tau=settings.tau,
        )
        self._beta2 = settings.beta2

    def _second_moment(self, moment: torch.Tensor, square: torch.Tensor) -> None:
        signs = torch.sub(moment, square).sign_()
        moment.sub_(signs.mul_(square), alpha=1 - self._beta2)
