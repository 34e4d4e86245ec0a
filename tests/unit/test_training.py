"""The local loop: schedules, seeds, class weights, and the cache of features."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support import federation
from wardround_client.training.batches import FeatureSet, in_order, shuffled
from wardround_client.training.features import cached_features
from wardround_client.training.local import Course, class_weights, predict, train
from wardround_client.training.schedule import rate_factor
from wardround_client.training.seeds import derive_seed
from wardround_common.modalities.base import IGNORED, Encoded
from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import (
    ConstantSchedule,
    CosineSchedule,
    StepSchedule,
    Training,
)


def _data(rows: int = 40, width: int = 4, seed: int = 0) -> FeatureSet:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width, generator=generator)
    return FeatureSet(features, (features[:, 0] > 0).long(), torch.arange(rows))


def _course(rounds: range = range(1, 2), **fields: Any) -> Course:
    return Course(rounds=rounds, epochs=2, start=1, total=3, seed=5, **fields)


def _trained(shared: SharedModel, course: Course, data: FeatureSet) -> dict[str, torch.Tensor]:
    shared.reset()
    train(shared, data, course, torch.device("cpu"))
    return {name: tensor.clone() for name, tensor in shared.tensors(shared.names(1)).items()}


# -- schedules -----------------------------------------------------------------------------------


def test_a_constant_schedule_is_one() -> None:
    schedule = ConstantSchedule(kind="constant")
    assert {rate_factor(schedule, round_=r, progress=r / 10) for r in range(1, 10)} == {1.0}


def test_a_step_schedule_drops_every_so_many_rounds() -> None:
    schedule = StepSchedule(kind="step", every_rounds=2, gamma=0.5)
    factors = [rate_factor(schedule, round_=r, progress=0.0) for r in range(1, 6)]
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_a_cosine_schedule_warms_up_and_falls_to_zero() -> None:
    schedule = CosineSchedule(kind="cosine", warmup_fraction=0.2)
    factors = [rate_factor(schedule, round_=1, progress=p / 100) for p in range(100)]
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[20] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.5)
    assert 0.0 < factors[0] <= 0.02
    assert 0.0 <= factors[99] < 0.01
    assert all(0.0 <= factor <= 1.0 for factor in factors)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_cosine_schedule_may_have_no_warm_up_or_nothing_else(fraction: float) -> None:
    schedule = CosineSchedule(kind="cosine", warmup_fraction=fraction)
    for progress in (0.0, 0.5, 0.999):
        assert math.isfinite(rate_factor(schedule, round_=1, progress=progress))


# -- seeds ---------------------------------------------------------------------------------------


def test_seeds_differ_by_purpose_and_are_the_same_everywhere() -> None:
    seeds = {derive_seed(0, *purpose) for purpose in [("a", 1), ("a", 2), ("b", 1), ("a1",), ()]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(42, "train", "cleveland") == 2723951147483748155


# -- the loop ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> SharedModel:
    return SharedModel(federation(head={"dropout": 0.2}))


def test_equal_calls_end_in_equal_bytes_whatever_the_global_generator(shared: SharedModel) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = _trained(shared, _course(), _data())
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator is untouched"
    torch.manual_seed(2)
    second = _trained(shared, _course(), _data())
    other = _trained(shared, Course(range(1, 2), 2, 1, 3, seed=6), _data())
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
    assert any((tensor != other[name]).any() for name, tensor in first.items())


def test_the_loss_falls_and_the_steps_are_counted(shared: SharedModel) -> None:
    shared.reset()
    first = train(shared, _data(), _course(), torch.device("cpu"))
    last = train(shared, _data(), _course(range(2, 12)), torch.device("cpu"))
    assert first.num_steps == 2 * 5
    assert last.num_steps == 10 * 2 * 5
    assert last.loss < first.loss
    assert not shared.model.training


def test_one_example_and_a_last_batch_of_one_are_enough(shared: SharedModel) -> None:
    for rows in (1, 9):
        shared.reset()
        assert math.isfinite(train(shared, _data(rows), _course(), torch.device("cpu")).loss)


def test_rounds_in_one_course_differ_from_rounds_apart_only_by_the_optimizers_memory(
    shared: SharedModel,
) -> None:
    apart = _trained(shared, _course(range(1, 3)), _data())
    kept = _trained(shared, _course(range(1, 3), continuous=True), _data())
    shared.reset()
    for round_ in (1, 2):
        train(shared, _data(), _course(range(round_, round_ + 1)), torch.device("cpu"))
    for name, tensor in shared.tensors(shared.names(1)).items():
        assert torch.equal(tensor, apart[name])
    assert any((tensor != apart[name]).any() for name, tensor in kept.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_heads_own_rate_is_the_heads(optimizer: str) -> None:
    def moved(rate: float, head_rate: float | None) -> float:
        spec = federation(
            training={
                "optimizer": {
                    "name": optimizer,
                    "learning_rate": rate,
                    **({} if head_rate is None else {"head_learning_rate": head_rate}),
                }
            }
        )
        model = SharedModel(spec)
        trained = _trained(model, _course(), _data())
        return float(sum(t.square().sum() for t in trained.values()))

    assert moved(0.5, 0.01) == moved(0.01, None) < moved(0.5, None)


def test_clipping_bounds_a_step() -> None:
    def moved(clip: float | None) -> float:
        training: dict[str, Any] = {
            "batch_size": 1000,
            "optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0},
        }
        if clip is not None:
            training["clip_norm"] = clip
        trained = _trained(
            SharedModel(federation(training=training)),
            Course(range(1, 2), 1, 1, 1, seed=0),
            _data(),
        )
        return math.sqrt(float(sum(t.square().sum() for t in trained.values())))

    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(None) > 0.1


def test_balanced_weights_are_inverse_to_the_sites_counts_with_mean_one() -> None:
    data = FeatureSet(torch.zeros(8, 1), torch.tensor([0] * 6 + [1] * 2), torch.arange(8))
    spec = Training(class_weights="balanced")
    weights = class_weights(spec, data, 2, torch.device("cpu"))
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.5]))
    absent = class_weights(spec, data, 3, torch.device("cpu"))
    assert absent is not None
    torch.testing.assert_close(absent, torch.tensor([0.5, 1.5, 0.0]))
    alone = FeatureSet(torch.zeros(3, 1), torch.tensor([1, 1, 1]), torch.arange(3))
    only = class_weights(spec, alone, 2, torch.device("cpu"))
    assert only is not None
    torch.testing.assert_close(only, torch.tensor([0.0, 1.0]))


def test_predictions_come_in_the_examples_order_and_do_not_train(shared: SharedModel) -> None:
    shared.reset()
    train(shared, _data(), _course(range(1, 9)), torch.device("cpu"))
    before = {n: t.clone() for n, t in shared.tensors(shared.names(1)).items()}
    data = _data(17)
    predictions, loss = predict(shared, data, torch.device("cpu"), batch_size=4)
    whole, same_loss = predict(shared, data, torch.device("cpu"), batch_size=100)
    assert len(predictions) == 17
    assert predictions.metric("accuracy") == whole.metric("accuracy")
    assert predictions.metric("accuracy") is not None
    assert loss == pytest.approx(same_loss, rel=1e-6)
    for name, tensor in shared.tensors(shared.names(1)).items():
        assert torch.equal(tensor, before[name])


# -- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 8, 100, 300])
def test_every_example_is_in_exactly_one_batch(rows: int) -> None:
    plain = _data(rows)
    lengths = torch.arange(rows) % 5 + 1
    for data in (plain, _Sized(lengths)):
        for batches in (in_order(data, 8), shuffled(data, 8, 3)):  # type: ignore[arg-type]
            assert sorted(torch.cat(list(batches)).tolist()) == list(range(rows))
            assert max(len(batch) for batch in batches) <= 8
    order = torch.cat(shuffled(plain, 8, 3)).tolist()
    assert order == torch.cat(shuffled(plain, 8, 3)).tolist()
    assert rows < 8 or order != torch.cat(shuffled(plain, 8, 4)).tolist()


class _Sized:
    def __init__(self, lengths: torch.Tensor) -> None:
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def lengths_hint(self) -> torch.Tensor:
        return self._lengths


def test_features_of_sentences_are_padded_and_their_labels_ignored() -> None:
    data = FeatureSet(
        torch.arange(6.0)[:, None],
        torch.tensor([1, 0, 1, 1, 0, 0]),
        torch.tensor([7, 8, 9]),
        lengths=torch.tensor([1, 3, 2]),
    )
    inputs, targets = data.batch(torch.tensor([2, 0]), torch.device("cpu"))
    assert inputs["features"][:, :, 0].tolist() == [[4.0, 5.0], [0.0, 0.0]]
    assert targets.tolist() == [[0, 0], [1, IGNORED]]
    assert data.examples_of_rows().tolist() == [0, 1, 1, 1, 2, 2]


# -- the cache of features -----------------------------------------------------------------------


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return values.repeat(1, 2) * 3


class _Encoded:
    """Seven examples with values, through :func:`cached_features`."""

    def __init__(self, tmp_path: Path) -> None:
        self.backbone = _Backbone()
        self.folder = tmp_path / "cache"
        self.shared = SimpleNamespace(
            model=SimpleNamespace(backbone=self.backbone, eval=lambda: None),
            feature_dim=4,
            backbone_digest="d" * 64,
            encoder=SimpleNamespace(transform="t/1"),
            federation=SimpleNamespace(training=SimpleNamespace(precision="float32")),
        )

    def features(self, data_sha256: str = "1" * 64, part: str = "train") -> FeatureSet:
        from wardround_client.training.batches import EncodedSet

        values = torch.arange(14.0).view(7, 2)
        encoded = EncodedSet(
            Encoded({"values": values}, torch.tensor([0, 1] * 3 + [0]), torch.arange(7))
        )
        return cached_features(
            self.shared,  # type: ignore[arg-type]
            encoded,
            torch.device("cpu"),
            folder=self.folder,
            data_sha256=data_sha256,
            part=part,
        )


def test_features_are_computed_once(tmp_path: Path) -> None:
    world = _Encoded(tmp_path)
    first = world.features()
    second = world.features()
    assert world.backbone.calls == 1
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.features, torch.arange(14.0).view(7, 2).repeat(1, 2) * 3)
    assert len(list(world.folder.iterdir())) == 1


def test_the_caches_key_binds_data_part_backbone_and_transform(tmp_path: Path) -> None:
    world = _Encoded(tmp_path)
    world.features()
    for change in (
        lambda: world.features(data_sha256="2" * 64),
        lambda: world.features(part="test"),
        lambda: setattr(world.shared, "backbone_digest", "e" * 64) or world.features(),
        lambda: setattr(world.shared.encoder, "transform", "t/2") or world.features(),
    ):
        before = world.backbone.calls
        change()
        assert world.backbone.calls == before + 1


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "shape", "dtype", "name"])
def test_a_damaged_cache_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save

    world = _Encoded(tmp_path)
    wanted = world.features().features
    (path,) = world.folder.iterdir()
    good = path.read_bytes()
    bad = {
        "cut": good[:-1],
        "empty": b"",
        "garbage": np.random.default_rng(0).bytes(300),
        "shape": save({"features": wanted[:6].contiguous()}),
        "dtype": save({"features": wanted.double()}),
        "name": save({"other": wanted}),
    }[damage]
    path.write_bytes(bad)
    calls = world.backbone.calls
    assert torch.equal(world.features().features, wanted)
    assert world.backbone.calls == calls + 1
    assert path.read_bytes() == good
