"""The local optimizer, and the pull of FedProx."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import FedProx, Optimizer


def optimizer_of(
    spec: Optimizer, parameters: list[nn.Parameter], head: frozenset[int]
) -> torch.optim.Optimizer:
    """A fresh optimizer.

    Args:
        spec: the ``[training.optimizer]`` table.
        parameters: what it moves, in model order.
        head: identities of the head's parameters, which may have a rate of their own.

    Returns:
        The optimizer; each of its groups has its undiminished rate under ``full_rate``.
    """
    rate = spec.learning_rate
    head_rate = spec.head_learning_rate or rate
    groups = [{"params": parameters, "full_rate": rate}]
    if head_rate != rate:
        body = [parameter for parameter in parameters if id(parameter) not in head]
        last = [parameter for parameter in parameters if id(parameter) in head]
        groups = [
            {"params": part, "full_rate": full_rate}
            for part, full_rate in ((body, rate), (last, head_rate))
            if part
        ]
    decay = spec.weight_decay
    # What PyTorch chooses itself on a processor, where it would ask again at every step.
    foreach = False if all(parameter.device.type == "cpu" for parameter in parameters) else None
    if spec.name == "sgd":
        return torch.optim.SGD(
            groups, lr=rate, momentum=spec.momentum, weight_decay=decay, foreach=foreach
        )
    adam = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return adam(groups, lr=rate, weight_decay=decay, foreach=foreach)


def proximal(
    shared: SharedModel, anchor: Mapping[str, torch.Tensor] | None
) -> Callable[[], torch.Tensor] | None:
    """FedProx, algorithm 2: ``mu/2 ||w - w_global||^2`` over the trained parameters.

    Args:
        shared: the model; which of its parameters are trained is looked up at each call.
        anchor: name -> value that the parameters are pulled to.

    Returns:
        What to add to a step's loss; None where there is nothing to add.
    """
    rule = shared.federation.aggregation
    if anchor is None or not isinstance(rule, FedProx):
        return None
    mu, pairs = rule.mu, [(p, anchor[n]) for n, p in shared.model.named_parameters() if n in anchor]

    def pull() -> torch.Tensor:
        terms = [(now - start).square().sum() for now, start in pairs if now.requires_grad]
        return 0.5 * mu * torch.stack(terms).sum()

    return pull
