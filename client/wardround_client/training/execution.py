"""How a site computes its training steps: decided once from both files and this machine.

What is decided changes time and memory. It changes results by float rounding at most, except for
dropout, whose masks are drawn in other pieces where a batch is split.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.utils.checkpoint import checkpoint

from wardround_client.training.batches import FeatureSet, TrainingSet
from wardround_client.training.modes import PLAIN, ForwardMode, candidates, choose
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import ConfigError
from wardround_common.log import log_event
from wardround_common.model import FineTunedModel
from wardround_common.shared_model import SharedModel
from wardround_common.spec.lending import Lending
from wardround_common.types import sha256_hex


@dataclass(frozen=True, slots=True)
class Execution:
    """How steps are computed.

    Attributes:
        mode: of the forward pass.
        micro_batch: examples that go through the model at once; None for the whole batch.
        checkpointing: recompute the backbone's blocks in the backward pass.
        devices: processes that train on parts of each batch.
    """

    mode: ForwardMode = PLAIN
    micro_batch: int | None = None
    checkpointing: bool = False
    devices: int = 1


AS_ASKED = Execution()
"""One process, whole batches, float32: what every machine computes."""

Trial = Callable[[Execution], None]


def usable_device(lending: Lending) -> torch.device:
    """The device a site lends.

    Raises:
        ConfigError: it is not there, or there are fewer than ``devices`` of it.
    """
    device = torch.device(lending.device)
    if device.type != "cuda":
        return device
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < max(lending.devices, (device.index or 0) + 1):
        raise ConfigError(
            f'compute.device = "{lending.device}" with compute.devices = {lending.devices}, but '
            f'PyTorch finds {found} GPU(s) here; write device = "cpu" or lend fewer',
            code="no_such_device",
        )
    return device


def execution_for(
    shared: SharedModel,
    data: TrainingSet,
    lending: Lending,
    trial: Trial,
    *,
    device: torch.device,
    folder: Path,
    round_: int,
) -> Execution:
    """How a round is trained at this site.

    Args:
        shared: the model.
        data: what is trained on.
        lending: what the site lends.
        trial: takes a training step or two as an execution says; only the model's values may
            change, and they are put back here.
        device: where to compute.
        folder: the site's cache, where a measured choice is recorded.
        round_: the round, from 1.

    Returns:
        The execution. A head on cached features is computed as asked, nothing is measured.

    Raises:
        ConfigError: batches are to be split or recomputed, but BatchNorm learns from whole ones.
    """
    split = lending.micro_batch is not None or lending.devices > 1
    if (split or lending.checkpointing) and shared.learns_statistics:
        raise ConfigError(
            "compute.micro_batch, compute.checkpointing and compute.devices need frozen BatchNorm: "
            'exchange.batchnorm = "shared" takes its statistics from each whole batch, once',
            code="batchnorm_needs_whole_batches",
        )
    base = Execution(
        micro_batch=lending.micro_batch,
        checkpointing=lending.checkpointing and not isinstance(data, FeatureSet),
        devices=lending.devices,
    )
    if isinstance(data, FeatureSet):
        return base
    modes = candidates(
        lending.precision or shared.federation.training.precision,
        device,
        images=shared.federation.data.modality == "image",
    )
    if len(modes) == 1 and lending.compile == "off":
        return replace(base, mode=modes[0])
    # Trials train in this process alone.
    alone = replace(base, devices=1)
    with _untouched(shared, round_, device):
        modes = _with_compiled(
            modes, lending.compile, lambda mode: trial(replace(alone, mode=mode))
        )
        choice = choose(
            modes,
            lambda mode: trial(replace(alone, mode=mode)),
            device=device,
            folder=folder,
            key=_key(shared, lending, round_),
        )
    return replace(base, mode=choice.mode)


def _with_compiled(
    modes: tuple[ForwardMode, ...],
    wanted: Literal["off", "on", "auto"],
    trial: Callable[[ForwardMode], None],
) -> tuple[ForwardMode, ...]:
    """The modes with compiled ones, if this machine can compile."""
    if wanted == "off":
        return modes
    compiled = tuple(replace(mode, compiled=True) for mode in modes)
    try:
        trial(compiled[0])
    except Exception:  # noqa: BLE001  what a compiler raises is its own affair; the run goes on
        # A fault of the training itself shows again without the compiler.
        log_event("compile_failed", code="trained_uncompiled")
        return modes
    return compiled if wanted == "on" else (*modes, *compiled)


def _key(shared: SharedModel, lending: Lending, round_: int) -> Mapping[str, str | int]:
    spec = shared.federation
    tables = {
        "tuning": spec.tuning.model_dump(mode="json"),
        "head": spec.head.model_dump(mode="json"),
        "training": spec.training.model_dump(mode="json"),
        "task": spec.task.model_dump(mode="json"),
        "data": spec.data.model_dump(mode="json"),
        "lending": lending.model_dump(mode="json"),
        "tensors": list(shared.names(round_)),
    }
    return {
        "work": "train",
        "backbone": shared.backbone_digest or "none",
        "model": sha256_hex(canonical_bytes(tables)),
        "batch_size": spec.training.batch_size,
    }


@contextmanager
def _untouched(shared: SharedModel, round_: int, device: torch.device) -> Iterator[None]:
    """Whatever is trained inside, the model's values and the generators are as before after it."""
    before = {name: tensor.clone() for name, tensor in shared.tensors(shared.names(round_)).items()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        shared.load(before)


@contextmanager
def checkpointed(shared: SharedModel) -> Iterator[None]:
    """The backbone's blocks keep their inputs alone, and compute again in the backward pass.

    Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*, section 4, one segment a
    block. Dropout draws the same masks again.
    """
    modules = shared.block_modules()
    for module in modules:
        module.forward = partial(_recomputed, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _recomputed(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **named)


_compiled: dict[int, tuple[FineTunedModel, FineTunedModel]] = {}


def runnable(model: FineTunedModel, mode: ForwardMode) -> FineTunedModel:
    """The model as a mode runs it: itself, or compiled, with the same parameters."""
    if not mode.compiled:
        return model
    known = _compiled.get(id(model))
    if known is None or known[0] is not model:
        _compiled.clear()
        _compiled[id(model)] = known = (model, cast("FineTunedModel", torch.compile(model)))
    return known[1]
