"""Batches of examples for a frozen network, made up and laid out as it computes fastest.

The make-up is a rule and never a measurement, so that what is cached does not depend on how busy
the machine was: the same examples through the same backbone give the same bytes on one machine.
"""

from collections.abc import Iterator
from typing import Final

import torch

from wardround_client.training.batches import TrainingSet, in_order
from wardround_client.training.modes import PLAIN, ForwardMode
from wardround_client.training.stopping import raise_if_stopped

_TEXTS: Final = 32
_OTHERS: Final = 16
"""Larger batches of images leave the processor's caches and cost up to twice as much."""
_ON_PROCESSOR: Final = ForwardMode(channels_last=True)
"""float32 convolutions run 1.2 to 2 times as fast; on a GPU without tensor cores it would cost."""


def frozen_batches(
    data: TrainingSet, device: torch.device
) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]]:
    """All examples once, similar lengths together.

    Args:
        data: the examples.
        device: where the network is.

    Yields:
        Rows int64 [b] of the examples, their inputs and their targets on the device.

    Raises:
        RoundError: somebody stopped the computation.
    """
    mode = _ON_PROCESSOR if device.type == "cpu" else PLAIN
    size = _OTHERS if data.lengths_hint() is None else _TEXTS
    for rows in in_order(data, size):
        raise_if_stopped()
        inputs, targets = data.batch(rows, device)
        yield rows, mode.arranged(inputs), targets
