"""The local loop: what one site does in one round, or alone, or to personalise a model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from wardround_client.training.batches import TrainingSet, in_order, shuffled
from wardround_client.training.schedule import rate_factor
from wardround_client.training.seeds import derive_seed
from wardround_common.modalities.base import IGNORED
from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import FedProx, Training
from wardround_common.tasks.base import Predictions


@dataclass(frozen=True, slots=True)
class Course:
    """Which rounds are trained, and how they are seeded.

    Attributes:
        rounds: round numbers to train through, in order.
        epochs: passes over the data in each round.
        start: the round with which the schedule begins.
        total: rounds that the schedule spans.
        seed: seed of shuffling and dropout.
        continuous: keep the optimizer's state from round to round, as one does alone.
        anchor: name -> value that FedProx pulls towards; None for no proximal term.
    """

    rounds: range
    epochs: int
    start: int
    total: int
    seed: int
    continuous: bool = False
    anchor: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a course ended with: mean loss of its last epoch, and the steps taken."""

    loss: float
    num_steps: int


def train(shared: SharedModel, data: TrainingSet, course: Course, device: torch.device) -> Trained:
    """Train the shared model in place.

    The model must hold the state to start from; afterwards it holds the trained one. Dropout and
    shuffling follow ``course.seed`` alone, so equal calls end in equal bytes on one machine.

    Args:
        shared: the model.
        data: at least one example.
        course: what to train through.
        device: where the model is.

    Returns:
        The mean loss over the examples of the last epoch.
    """
    spec = shared.federation.training
    weights = class_weights(spec, data, shared.task.num_outputs, device)
    optimizer: torch.optim.Optimizer | None = None
    names: tuple[str, ...] = ()
    loss, steps = math.nan, 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for round_ in course.rounds:
            torch.manual_seed(derive_seed(course.seed, "dropout", round_))
            if optimizer is None or not course.continuous or names != shared.names(round_):
                names = shared.names(round_)
                optimizer = _optimizer(shared, shared.train_mode(round_), spec)
            for epoch in range(course.epochs):
                loss, taken = _epoch(
                    shared, data, optimizer, course, _place(course, round_, epoch), weights, device
                )
                steps += taken
    shared.model.eval()
    return Trained(loss, steps)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the run an epoch lies: round, epoch, share of the run before it, its own share."""

    round: int
    epoch: int
    done: float
    share: float


def _place(course: Course, round_: int, epoch: int) -> _Place:
    share = 1.0 / (course.total * course.epochs)
    return _Place(round_, epoch, ((round_ - course.start) * course.epochs + epoch) * share, share)


def _epoch(
    shared: SharedModel,
    data: TrainingSet,
    optimizer: torch.optim.Optimizer,
    course: Course,
    place: _Place,
    weights: torch.Tensor | None,
    device: torch.device,
) -> tuple[float, int]:
    spec = shared.federation.training
    order = shuffled(
        data, spec.batch_size, derive_seed(course.seed, "shuffle", place.round, place.epoch)
    )
    total_steps = len(order)
    sum_loss = torch.zeros((), dtype=torch.float64)
    for step, rows in enumerate(order):
        factor = rate_factor(
            spec.schedule,
            round_=place.round - course.start + 1,
            progress=place.done + place.share * step / total_steps
        )
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        inputs, targets = data.batch(rows, device)
        optimizer.zero_grad(set_to_none=True)
        logits = data.logits(shared.model, inputs)
        loss = shared.task.loss(logits, targets, weights, spec.label_smoothing)
        (loss + _proximal(shared, course.anchor)).backward()
        if spec.clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
        optimizer.step()
        sum_loss += loss.detach().double().cpu() * len(rows)
    return float(sum_loss) / len(data), total_steps


def _proximal(
    shared: SharedModel, anchor: Mapping[str, torch.Tensor] | None
) -> torch.Tensor | float:
    """FedProx, algorithm 2: ``mu/2 ||w - w_global||^2`` over the trained parameters."""
    rule = shared.federation.aggregation
    if anchor is None or not isinstance(rule, FedProx):
        return 0.0
    terms = [
        (parameter - anchor[name]).square().sum()
        for name, parameter in shared.model.named_parameters()
        if parameter.requires_grad and name in anchor
    ]
    return 0.5 * rule.mu * torch.stack(terms).sum()


def _optimizer(
    shared: SharedModel, parameters: list[nn.Parameter], spec: Training
) -> torch.optim.Optimizer:
    head = shared.head_parameters()
    rate = spec.optimizer.learning_rate
    head_rate = spec.optimizer.head_learning_rate or rate
    groups = [
        {"params": [p for p in parameters if (id(p) in head) == of_head], "full_rate": full_rate}
        for of_head, full_rate in ((False, rate), (True, head_rate))
    ]
    groups = [group for group in groups if group["params"]]
    decay = spec.optimizer.weight_decay
    if spec.optimizer.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=spec.optimizer.momentum, weight_decay=decay)
    if spec.optimizer.name == "adam":
        return torch.optim.Adam(groups, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)


def class_weights(
    spec: Training, data: TrainingSet, num_outputs: int, device: torch.device
) -> torch.Tensor | None:
    """Loss weights of the classes, float32 [num_outputs], or None.

    ``balanced`` is inverse to the site's own counts with mean 1 over the classes it has; a class
    the site lacks weighs 0, which changes nothing there.
    """
    if spec.class_weights == "none":
        return None
    if isinstance(spec.class_weights, tuple):
        return torch.tensor(spec.class_weights, dtype=torch.float32, device=device)
    counts = data.class_counts(num_outputs).double()
    inverse = torch.where(counts > 0, 1.0 / counts.clamp(min=1.0), 0.0)
    weights = inverse / inverse.sum() * (counts > 0).sum()
    return weights.float().to(device)


@torch.no_grad()
def predict(
    shared: SharedModel, data: TrainingSet, device: torch.device, batch_size: int = 64
) -> tuple[Predictions, float]:
    """Score the model on all examples.

    Returns:
        The predictions, and the mean loss without class weights.
    """
    shared.model.eval()
    sum_loss = 0.0
    logits_of: list[torch.Tensor] = [torch.empty(0)] * len(data)
    targets_of: list[torch.Tensor] = [torch.empty(0)] * len(data)
    for rows in in_order(data, batch_size):
        inputs, targets = data.batch(rows, device)
        logits = data.logits(shared.model, inputs)
        sum_loss += float(shared.task.loss(logits, targets)) * len(rows)
        for row, one, target in zip(rows.tolist(), logits.cpu(), targets.cpu(), strict=True):
            logits_of[row], targets_of[row] = one, target
    if logits_of[0].dim() == 1:
        joined, truth = torch.stack(logits_of), torch.stack(targets_of)
    else:
        joined = pad_sequence(logits_of, batch_first=True)
        truth = pad_sequence(targets_of, batch_first=True, padding_value=IGNORED)
    return shared.task.predictions(joined, truth, data.subjects, data.missed), sum_loss / len(data)
