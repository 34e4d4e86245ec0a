"""The cross-entropy that all tasks of this product share."""

import torch
from torch.nn import functional

from wardround_common.modalities.base import IGNORED

_TINY = torch.finfo(torch.float32).tiny


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Mean cross-entropy over labelled positions; with class weights, the weighted mean.

    Args:
        logits: float32 [..., C].
        targets: int64 [...]; -100 is ignored.
        class_weights: float32 [C] or None.
        label_smoothing: in [0, 1].

    Returns:
        A float32 scalar; 0, with a zero gradient, where no position is labelled.
    """
    flat_targets = targets if targets.dim() == 1 else targets.reshape(-1)
    flat_logits = logits if logits.dim() == 2 else logits.reshape(-1, logits.shape[-1])
    if targets.device.type != "cpu":
        # The same quotient without asking the device anything: an answer would hold it up.
        summed = functional.cross_entropy(
            flat_logits,
            flat_targets,
            weight=class_weights,
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return summed / mass(flat_targets, class_weights).clamp(min=_TINY)
    if int(flat_targets[-1]) == IGNORED and int(flat_targets.max()) == IGNORED:
        return flat_logits.sum() * 0.0
    return functional.cross_entropy(
        flat_logits,
        flat_targets,
        weight=class_weights,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )


def mass(targets: torch.Tensor, class_weights: torch.Tensor | None) -> torch.Tensor:
    """What :func:`cross_entropy` divides its sum by: the weights of the labelled positions.

    So the loss of a batch is the mean of the losses of its parts, weighted by their masses, with
    class weights and label smoothing too.

    Args:
        targets: int64 [...]; -100 is ignored.
        class_weights: float32 [C] or None.

    Returns:
        A float32 scalar on the device of the targets.
    """
    labelled = targets != IGNORED
    if class_weights is None:
        return labelled.sum().float()
    return (class_weights[targets.clamp(min=0)] * labelled).sum()
