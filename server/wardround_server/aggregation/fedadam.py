"""FedAdam: Adam on the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2, with the bias-corrected
rate of Kingma & Ba, ICLR 2015, section 2, counted as Flower counts it (one round ahead).
"""

import math

import torch

from wardround_common.spec.federation import FedAdam as Settings
from wardround_server.aggregation.adaptive import Adaptive


class FedAdam(Adaptive):
    """Second moment: ``v = beta2 * v + (1 - beta2) * D^2``.

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
        moment.mul_(self._beta2).add_(square, alpha=1 - self._beta2)

    def _rate(self, rounds: int) -> float:
        power = rounds + 1
        first, second = 1 - self._beta1**power, 1 - self._beta2**power
        return self._learning_rate * math.sqrt(second) / first
