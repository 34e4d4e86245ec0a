"""The local loop: what one site does in one round, or alone, or to personalise a model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from wardround_client.training.batches import TrainingSet, in_order, shuffled
from wardround_client.training.optimizer import optimizer_of, proximal
from wardround_client.training.schedule import rate_factor
from wardround_client.training.seeds import derive_seed
from wardround_common.modalities.base import IGNORED
from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import Training
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
    local = _LocalRun(shared, data, course, device)
    loss, steps = math.nan, 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for round_ in course.rounds:
            _seed_dropout(derive_seed(course.seed, "dropout", round_), device)
            local.enter(round_)
            for epoch in range(course.epochs):
                loss, taken = local.epoch(round_, epoch)
                steps += taken
    local.leave()
    return Trained(loss, steps)


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the device's generator; PyTorch's own seeds every kind of device, at 1 ms a call."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class _LocalRun:
    """A course under way: its optimizer and class weights."""

    def __init__(
        self, shared: SharedModel, data: TrainingSet, course: Course, device: torch.device
    ) -> None:
        self._shared = shared
        self._spec = shared.federation.training
        self._data = data
        self._course = course
        self._device = device
        self._weights = class_weights(self._spec, data, shared.task.num_outputs, device)
        self._pull = proximal(shared, course.anchor)
        self._parameters: list[nn.Parameter] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._names: tuple[str, ...] = ()

    def enter(self, round_: int) -> None:
        """A fresh optimizer, unless the course keeps it and the round trains the same tensors."""
        names = self._shared.names(round_)
        if self._optimizer is None or not self._course.continuous or names != self._names:
            self._names = names
            self._parameters = self._shared.train_mode(round_)
            self._optimizer = optimizer_of(
                self._spec.optimizer, self._parameters, self._shared.head_parameters
            )

    def leave(self) -> None:
        """Evaluation mode; the gradients' memory is free."""
        self._clear_gradients()
        self._shared.eval_mode()

    def epoch(self, round_: int, epoch: int) -> tuple[float, int]:
        """One pass over the data: mean loss over its examples, and the steps taken."""
        course = self._course
        seed = derive_seed(course.seed, "shuffle", round_, epoch)
        data = self._data.view((round_ - 1) * course.epochs + epoch)
        batches = shuffled(data, self._spec.batch_size, seed)
        share = 1.0 / (course.total * course.epochs)
        done = ((round_ - course.start) * course.epochs + epoch) * share
        losses = []
        for step, rows in enumerate(batches):
            factor = rate_factor(
                self._spec.schedule,
                round_=round_ - course.start + 1,
                progress=done + share * step / len(batches),
            )
            losses.append(self._step(data, rows, factor))
        # Read once: a loss that is asked for at each step would hold a GPU up.
        of_steps = torch.stack(losses).tolist()
        sum_loss = sum(loss * len(rows) for loss, rows in zip(of_steps, batches, strict=True))
        return sum_loss / len(self._data), len(batches)

    def _step(self, data: TrainingSet, rows: torch.Tensor, factor: float) -> torch.Tensor:
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        inputs, targets = data.batch(rows, self._device)
        self._clear_gradients()
        logits = data.logits(self._shared.model, inputs)
        loss = self._shared.task.loss(logits, targets, self._weights, self._spec.label_smoothing)
        torch.autograd.backward(loss if self._pull is None else loss + self._pull())
        if self._spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._spec.clip_norm)
        self._optimizer.step()
        return loss.detach()

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


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
    shared.eval_mode()
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
