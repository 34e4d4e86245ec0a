"""Steps in parts, recomputed, compiled or by several processes are the steps of a whole batch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.support import federation
from wardround_client.training import execution, local, modes
from wardround_client.training.batches import EncodedSet, FeatureSet
from wardround_client.training.execution import (
    AS_ASKED,
    Execution,
    checkpointed,
    execution_for,
    usable_device,
)
from wardround_client.training.local import Course, Peers, train, trial_of
from wardround_client.training.modes import PLAIN, ForwardMode
from wardround_client.training.prefetch import batches_on
from wardround_common.errors import ConfigError
from wardround_common.modalities.base import IGNORED, Encoded
from wardround_common.shared_model import SharedModel
from wardround_common.spec.lending import Lending
from wardround_common.tasks.loss import cross_entropy, mass

CPU = torch.device("cpu")


def _shared(**training: Any) -> SharedModel:
    """A table model with a hidden layer, trained in full."""
    rates = {"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.5}}
    return SharedModel(
        federation(
            training={"batch_size": 7, "label_smoothing": 0.1, **rates, **training},
            head={"kind": "mlp", "hidden": 5},
            tuning={"method": "full"},
        )
    )


def _data(rows: int = 24) -> EncodedSet:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, 4, generator=generator)
    return EncodedSet(Encoded({"values": values}, (values[:, 0] > 0).long(), torch.arange(rows)))


def _sentences() -> FeatureSet:
    """Token features, sentences of one to six words."""
    lengths = torch.tensor([1, 6, 2, 5, 3, 4, 1, 6, 2])
    features = torch.randn(int(lengths.sum()), 4, generator=torch.Generator().manual_seed(1))
    return FeatureSet(features, (features[:, 1] > 0).long(), torch.arange(9), lengths)


def _course(**fields: Any) -> Course:
    return Course(rounds=range(1, 3), epochs=2, start=1, total=3, seed=5, **fields)


def _trained(
    shared: SharedModel, how: Execution, data: Any = None, peers: Peers | None = None, **course: Any
) -> tuple[dict[str, torch.Tensor], float]:
    shared.reset()
    trained = train(shared, data or _data(), _course(**course), CPU, how=how, peers=peers)
    state = shared.tensors(shared.names(1))
    return {name: tensor.clone() for name, tensor in state.items()}, trained.loss


def _apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# -- batches in parts ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["none", "balanced", [1.0, 3.0]])
@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_in_parts_gives_the_step_of_the_whole(weights: Any, size: int) -> None:
    shared = _shared(class_weights=weights, clip_norm=0.5)
    whole, loss = _trained(shared, AS_ASKED)
    parts, loss_of_parts = _trained(shared, Execution(micro_batch=size))
    assert _apart(whole, parts) < 1e-6
    assert math.isclose(loss, loss_of_parts, rel_tol=1e-5)
    assert _apart(whole, shared.initial) > 1e-2


def test_sentences_in_parts_give_the_step_of_the_whole() -> None:
    shared = _shared(class_weights=[1.0, 3.0])
    whole, _ = _trained(shared, AS_ASKED, _sentences())
    parts, _ = _trained(shared, Execution(micro_batch=2), _sentences())
    assert _apart(whole, parts) < 1e-6


def test_parts_weighted_by_their_number_of_examples_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = _shared(class_weights=[1.0, 3.0])
    whole, _ = _trained(shared, AS_ASKED, _sentences())
    monkeypatch.setattr(local, "mass", lambda targets, weights: torch.tensor(float(len(targets))))
    parts, _ = _trained(shared, Execution(micro_batch=2), _sentences())
    assert _apart(whole, parts) > 1e-3


def test_fedprox_pulls_once_a_step_however_many_parts_it_has() -> None:
    shared = _shared()
    shared.federation = federation(aggregation={"rule": "fedprox", "mu": 1.0})
    anchor = {name: tensor + 0.1 for name, tensor in shared.initial.items()}
    whole, _ = _trained(shared, AS_ASKED, anchor=anchor)
    parts, _ = _trained(shared, Execution(micro_batch=3), anchor=anchor)
    free, _ = _trained(shared, AS_ASKED)
    assert _apart(whole, parts) < 1e-6
    assert _apart(whole, free) > 1e-3


def test_the_masses_of_parts_make_the_mean_of_the_whole() -> None:
    logits = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([[0, 1, IGNORED]] * 2 + [[IGNORED] * 3] + [[3, 2, 2]] * 3)
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0])
    whole = cross_entropy(logits, targets, weights, 0.2)
    parts = [
        cross_entropy(logits[rows], targets[rows], weights, 0.2) * mass(targets[rows], weights)
        for rows in (slice(0, 1), slice(1, 3), slice(3, 6))
    ]
    assert torch.allclose(whole, torch.stack(parts).sum() / mass(targets, weights), rtol=1e-6)
    assert mass(targets[2], weights) == 0
    assert mass(targets, None) == 13


def test_a_batch_without_a_label_moves_nothing() -> None:
    shared = _shared()
    data = EncodedSet(
        Encoded({"values": torch.randn(4, 2, 4)}, torch.full((4, 2), IGNORED), torch.arange(4))
    )
    parts, loss = _trained(shared, Execution(micro_batch=2), data)
    assert _apart(parts, shared.initial) == 0.0
    assert loss == 0.0


def test_each_step_gets_its_parts_in_order() -> None:
    steps = [(torch.tensor([3, 1]), torch.tensor([0])), (torch.tensor([2]),)]
    data = _data()
    got = [[inputs["values"] for inputs, _ in parts] for parts in batches_on(data, steps, CPU)]
    values = data.encoded.tensors["values"]
    assert [[len(part) for part in parts] for parts in got] == [[2, 1], [1]]
    assert torch.equal(got[0][0], values[[3, 1]])


# -- recomputing ---------------------------------------------------------------------------------


class _Deep(nn.Module):
    """Two blocks with dropout; counts how often the first is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3))
        self.two = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
        self.calls = 0
        self.one[0].register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(values))


def _deep() -> tuple[Any, _Deep]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _Deep()
    return SimpleNamespace(block_modules=lambda: (net.one, net.two)), net


def test_recomputed_blocks_give_the_same_gradients_with_dropout() -> None:
    shared, net = _deep()
    values = torch.randn(6, 4)
    gradients = []
    for recomputed in (False, True):
        net.zero_grad()
        net.calls = 0
        torch.manual_seed(4)
        with checkpointed(shared) if recomputed else torch.enable_grad():
            net(values).square().sum().backward()
        assert net.calls == (2 if recomputed else 1)
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_blocks_are_computed_once_again_after_training() -> None:
    shared, net = _deep()
    with checkpointed(shared):
        assert "forward" in vars(net.one)
    assert "forward" not in vars(net.one)


def test_recomputing_is_entered_where_it_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    @contextmanager
    def noted(shared: SharedModel) -> Iterator[None]:
        entered.append(shared)
        yield

    monkeypatch.setattr(local, "checkpointed", noted)
    shared = _shared()
    _trained(shared, AS_ASKED)
    assert entered == []
    _trained(shared, Execution(checkpointing=True))
    assert entered == [shared]


# -- modes ---------------------------------------------------------------------------------------


def _execution(shared: SharedModel, folder: Path, lending: Lending, data: Any = None) -> Execution:
    data = data or _data()
    trial = trial_of(shared, data, 1, CPU)
    return execution_for(shared, data, lending, trial, device=CPU, folder=folder, round_=1)


def test_a_measured_choice_leaves_the_model_and_the_generators_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "processor", lambda: ("", frozenset({"amx_bf16"})))
    shared = _shared(precision="auto")
    shared.reset()
    before = torch.get_rng_state()
    how = _execution(shared, tmp_path, Lending(micro_batch=2))
    assert _apart(shared.tensors(shared.names(1)), shared.initial) == 0.0
    assert torch.equal(before, torch.get_rng_state())
    assert how.micro_batch == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_site_may_insist_on_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "processor", lambda: ("", frozenset({"amx_bf16"})))
    shared = _shared(precision="bf16")
    assert _execution(shared, tmp_path, Lending()).mode == ForwardMode("bf16")
    assert _execution(shared, tmp_path, Lending(precision="fp32")).mode == PLAIN


def test_bfloat16_changes_the_result_a_little_and_keeps_parameters_float32() -> None:
    shared = _shared()
    plain, _ = _trained(shared, AS_ASKED)
    half, _ = _trained(shared, Execution(mode=ForwardMode("bf16")))
    assert 0.0 < _apart(plain, half) < 0.05
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}


def test_a_head_on_cached_features_is_computed_as_asked(tmp_path: Path) -> None:
    shared = _shared(precision="auto")
    how = _execution(shared, tmp_path, Lending(compile="on", checkpointing=True), _sentences())
    assert how == AS_ASKED
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_training_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(
        execution, "log_event", lambda event, **fields: said.append((event, fields))
    )

    def broken(model: nn.Module) -> nn.Module:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    shared = _shared()
    how = _execution(shared, tmp_path, Lending(compile="on"))
    assert how.mode == PLAIN
    assert said == [("compile_failed", {"code": "trained_uncompiled"})]


def test_a_compiled_model_is_used_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def fake(model: nn.Module) -> nn.Module:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", fake)
    shared = _shared()
    how = _execution(shared, tmp_path, Lending(compile="on"))
    assert how.mode == ForwardMode(compiled=True)
    assert compiled == [shared.model]
    assert _execution(shared, tmp_path, Lending()).mode == PLAIN


# -- what does not go together -------------------------------------------------------------------


@pytest.mark.parametrize("lent", [{"micro_batch": 2}, {"checkpointing": True}, {"devices": 2}])
def test_batchnorm_that_learns_needs_whole_batches(tmp_path: Path, lent: dict[str, Any]) -> None:
    shared = _shared()
    shared._shares_batchnorm = True
    _execution(shared, tmp_path, Lending(**lent))
    shared.__dict__["_batchnorms"] = (nn.BatchNorm1d(2),)
    with pytest.raises(ConfigError, match=r"exchange\.batchnorm"):
        _execution(shared, tmp_path, Lending(**lent))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device(Lending(device="cuda", devices=2)) == torch.device("cuda")
    for lending in (Lending(device="cuda", devices=3), Lending(device="cuda:2")):
        with pytest.raises(ConfigError, match="2 GPU"):
            usable_device(lending)


def test_several_devices_exclude_a_numbered_one_and_the_compiler() -> None:
    for fields in ({"device": "cuda:1"}, {"compile": "on"}):
        with pytest.raises(ValueError, match=r"compute\.devices"):
            Lending(devices=2, **fields)


# -- several processes ---------------------------------------------------------------------------


class _Alone:
    """A world of one process, as the loop sees it."""

    rank = 0

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values.clone()


def test_the_exchange_of_gradients_gives_the_step_of_one_process() -> None:
    shared = _shared(class_weights=[1.0, 3.0])
    whole, loss = _trained(shared, AS_ASKED)
    alone, loss_alone = _trained(shared, AS_ASKED, peers=_Alone())
    assert _apart(whole, alone) < 1e-6
    assert math.isclose(loss, loss_alone, rel_tol=1e-5)


def test_without_accelerate_several_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from wardround_client.training import parallel

    monkeypatch.setattr(parallel, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="multi-gpu"):
        _trained(_shared(), Execution(devices=2))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [24, 22])
def test_two_processes_end_where_one_does(rows: int) -> None:
    pytest.importorskip("accelerate")
    shared = _shared(class_weights="balanced", clip_norm=0.5)
    whole, loss = _trained(shared, AS_ASKED, _data(rows))
    together, loss_together = _trained(shared, Execution(devices=2), _data(rows))
    again, _ = _trained(shared, Execution(devices=2), _data(rows))
    assert _apart(whole, together) < 1e-6
    assert _apart(together, again) == 0.0
    assert math.isclose(loss, loss_together, rel_tol=1e-5)
