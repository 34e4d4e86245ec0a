"""The local loop: what one site does in one round, or alone, or to personalise a model."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from wardround_client.training.batches import Batch, TrainingSet, in_order, shuffled
from wardround_client.training.execution import AS_ASKED, Execution, Trial, checkpointed, runnable
from wardround_client.training.modes import PLAIN
from wardround_client.training.optimizer import optimizer_of, proximal
from wardround_client.training.prefetch import batches_on
from wardround_client.training.schedule import rate_factor
from wardround_client.training.seeds import derive_seed
from wardround_client.training.stopping import raise_if_stopped
from wardround_common.modalities.base import IGNORED
from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import Training
from wardround_common.tasks.base import Predictions
from wardround_common.tasks.loss import mass


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


class Peers(Protocol):
    """The processes that train together, each on its part of every batch."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch's rows, in order; it may be empty."""
        ...

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' values, the same on each."""
        ...


def train(
    shared: SharedModel,
    data: TrainingSet,
    course: Course,
    device: torch.device,
    *,
    how: Execution = AS_ASKED,
    peers: Peers | None = None,
) -> Trained:
    """Train the shared model in place.

    The model must hold the state to start from; afterwards it holds the trained one. Dropout and
    shuffling follow ``course.seed`` alone, so equal calls end in equal bytes on one machine.

    Args:
        shared: the model.
        data: at least one example.
        course: what to train through.
        device: where the model is.
        how: how steps are computed; more than one device starts the other processes.
        peers: the other processes, in one of those.

    Returns:
        The mean loss over the examples of the last epoch.
    """
    if how.devices > 1 and peers is None:
        from wardround_client.training.parallel import train_together

        return train_together(shared, data, course, device, how)
    local = _LocalRun(shared, data, course, device, how=how, peers=peers)
    loss, steps = math.nan, 0
    with ExitStack() as during:
        during.enter_context(
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        )
        if how.checkpointing:
            during.enter_context(checkpointed(shared))
        for round_ in course.rounds:
            place = () if peers is None or peers.rank == 0 else (peers.rank,)
            _seed_dropout(derive_seed(course.seed, "dropout", round_, *place), device)
            local.enter(round_)
            for epoch in range(course.epochs):
                loss, taken = local.epoch(round_, epoch)
                steps += taken
    local.leave()
    return Trained(loss, steps)


def trial_of(shared: SharedModel, data: TrainingSet, round_: int, device: torch.device) -> Trial:
    """Two training steps of a round on the first examples, in whatever execution is asked for."""
    course = Course(range(round_, round_ + 1), epochs=1, start=round_, total=1, seed=0)
    size = shared.federation.training.batch_size
    batches = torch.split(torch.arange(len(data)), size)[:1] * 2

    def trial(how: Execution) -> None:
        local = _LocalRun(shared, data, course, device, how=how)
        local.enter(round_)
        with ExitStack() as during:
            if how.checkpointing:
                during.enter_context(checkpointed(shared))
            local.steps(batches, [1.0] * len(batches))
        local.leave()

    return trial


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the device's generator; PyTorch's own seeds every kind of device, at 1 ms a call."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class _LocalRun:
    """A course under way: its optimizer and class weights."""

    def __init__(
        self,
        shared: SharedModel,
        data: TrainingSet,
        course: Course,
        device: torch.device,
        *,
        how: Execution,
        peers: Peers | None = None,
    ) -> None:
        self._shared = shared
        self._spec = shared.federation.training
        self._whole = data
        self._data = data  # as the epoch sees it
        self._course = course
        self._device = device
        self._how = how
        self._peers = peers
        self._model = runnable(shared.model, how.mode)
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
        self._data = self._whole.view((round_ - 1) * course.epochs + epoch)
        batches = shuffled(self._data, self._spec.batch_size, seed)
        share = 1.0 / (course.total * course.epochs)
        done = ((round_ - course.start) * course.epochs + epoch) * share
        factors = [
            rate_factor(
                self._spec.schedule,
                round_=round_ - course.start + 1,
                progress=done + share * step / len(batches),
            )
            for step in range(len(batches))
        ]
        of_steps = self.steps(batches, factors)
        sum_loss = sum(loss * len(rows) for loss, rows in zip(of_steps, batches, strict=True))
        return sum_loss / len(self._data), len(batches)

    def steps(self, batches: Sequence[torch.Tensor], factors: Sequence[float]) -> list[float]:
        """One step a batch, each with its factor of the learning rate: the batches' losses."""
        parts = [self._parts(rows) for rows in batches]
        ready = batches_on(self._data, parts, self._device)
        losses = [self._step(of, factor) for of, factor in zip(ready, factors, strict=True)]
        # Read once: a loss that is asked for at each step would hold a GPU up.
        read: list[float] = torch.stack(losses).tolist()
        return read

    def _parts(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._peers is not None:
            rows = self._peers.part(rows)
        if self._how.micro_batch is None or len(rows) <= self._how.micro_batch:
            return (rows,) if len(rows) else ()
        return torch.split(rows, self._how.micro_batch)

    def _step(self, parts: Sequence[Batch], factor: float) -> torch.Tensor:
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        self._clear_gradients()
        if len(parts) == 1 and self._peers is None:
            loss = self._loss(*parts[0])
            torch.autograd.backward(loss if self._pull is None else loss + self._pull())
            loss = loss.detach()
        else:
            loss = self._add_up(parts)
            if self._pull is not None:
                torch.autograd.backward(self._pull())
        if self._spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._spec.clip_norm)
        self._optimizer.step()
        return loss

    def _loss(self, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        raise_if_stopped()
        mode, spec = self._how.mode, self._spec
        if mode is PLAIN:
            logits = self._data.logits(self._shared.model, inputs)
            return self._shared.task.loss(logits, targets, self._weights, spec.label_smoothing)
        with mode.context(self._device):
            logits = self._data.logits(self._model, mode.arranged(inputs))
        return self._shared.task.loss(logits.float(), targets, self._weights, spec.label_smoothing)

    def _add_up(self, parts: Sequence[Batch]) -> torch.Tensor:
        """Gradients of a batch in parts; the loss is the parts' mean, weighted by their masses."""
        masses = [mass(targets, self._weights) for _, targets in parts]
        whole = torch.stack(masses).sum() if masses else torch.zeros((), device=self._device)
        if self._peers is not None:
            whole = self._peers.total(whole)
        share = torch.where(whole > 0, 1.0 / whole, 0.0)
        loss = torch.zeros((), device=self._device)
        for (inputs, targets), own in zip(parts, masses, strict=True):
            of_part = self._loss(inputs, targets) * (own * share)
            torch.autograd.backward(of_part)
            loss += of_part.detach()
        return loss if self._peers is None else self._exchange(loss)

    def _exchange(self, loss: torch.Tensor) -> torch.Tensor:
        """All processes' gradients and losses summed, in one message."""
        assert self._peers is not None
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        total = self._peers.total(torch.cat([*(each.flatten() for each in flat), loss[None]]))
        sizes = [p.numel() for p in self._parameters]
        for parameter, grad in zip(self._parameters, torch.split(total[:-1], sizes), strict=True):
            parameter.grad = grad.view_as(parameter)
        return total[-1]

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
        raise_if_stopped()
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
