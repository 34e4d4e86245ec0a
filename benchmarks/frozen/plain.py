"""The loop that one would write: the frozen backbone runs in every epoch."""

from collections.abc import Callable

import torch
from torch import nn

Loader = Callable[[int], list[torch.Tensor]]
"""Round (from 1) -> the rows of each batch."""
Images = tuple[torch.Tensor, torch.Tensor]
"""Pixels uint8 [n, 3, H, W] and targets int64 [n]."""


def train_epoch(
    backbone: nn.Module,
    head: nn.Linear,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    batches: list[torch.Tensor],
    rate: float,
) -> None:
    """One pass of plain SGD over the head; the backbone has no gradients."""
    optimizer = torch.optim.SGD(head.parameters(), lr=rate)
    for rows in batches:
        features = backbone(pixels=pixels[rows])
        loss = nn.functional.cross_entropy(head(features), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def federate(
    backbone: nn.Module,
    head: nn.Linear,
    sites: list[tuple[torch.Tensor, torch.Tensor, Loader]],
    validation: list[Images],
    num_rounds: int,
    rate: float,
) -> list[float]:
    """Federated averaging of the head, in place; validation accuracy after each round."""
    num_examples = sum(len(targets) for _, targets, _ in sites)
    curve = []
    for round_ in range(1, num_rounds + 1):
        start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        total = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
        for pixels, targets, loader in sites:
            head.load_state_dict(start)
            train_epoch(backbone, head, pixels, targets, loader(round_), rate)
            for name, tensor in head.state_dict().items():
                total[name].add_(tensor, alpha=len(targets) / num_examples)
        head.load_state_dict(total)
        curve.append(accuracy(backbone, head, validation))
    return curve


@torch.no_grad()
def accuracy(backbone: nn.Module, head: nn.Module, sites: list[Images]) -> float:
    """Share of right answers over all sites' images."""
    right = number = 0
    for pixels, targets in sites:
        for rows in torch.arange(len(targets)).split(64):
            answers = head(backbone(pixels=pixels[rows])).argmax(dim=1)
            right += int((answers == targets[rows]).sum())
        number += len(targets)
    return right / number
