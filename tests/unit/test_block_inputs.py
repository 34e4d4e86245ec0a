"""Kept inputs of the first trained block: the same results, bound to everything they depend on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from tests.unit.tiny_bert import save_encoder, text_federation
from wardround_client.data.split import SiteExamples
from wardround_client.training.batches import EncodedSet, ViewedSet
from wardround_client.training.block_inputs import BlockInputSet
from wardround_client.training.local import Course, predict, train
from wardround_client.worker.datasets import SiteDatasets
from wardround_common.backbones.split import HIDDEN, SplitBackbone
from wardround_common.modalities.base import Examples, ImageInputs, TextInputs
from wardround_common.shared_model import SharedModel

CPU = torch.device("cpu")
COURSE = Course(range(1, 3), 2, 1, 2, seed=3)
WORDS = ("heart clear", "lung clear a", "a heart lung", "acetamol", "clear", "heart heart lung a")


def examples(inputs: Any, classes: int = 2) -> Examples:
    count = len(inputs)
    return Examples(
        inputs, tuple(np.array([row % classes]) for row in range(count)), np.arange(count)
    )


def site(inputs: Any, test: Any, digest: str = "1" * 64) -> SiteExamples:
    return SiteExamples(examples(inputs), examples(test), examples(test), (), digest)


def images(count: int, seed: int = 0) -> ImageInputs:
    shape = (count, 32, 32, 3)
    return ImageInputs(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def texts(count: int) -> TextInputs:
    return TextInputs(tuple(WORDS[row % len(WORDS)] for row in range(count)))


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    folder = tmp_path_factory.mktemp("encoder")
    digest = save_encoder(folder)
    return SharedModel(
        text_federation(f"hf:{folder}", digest, tuning={"method": "last-k", "blocks": 1})
    )


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    return make_image_model(tmp_path_factory.mktemp("weights"))


def make_image_model(folder: Path, seed: int = 0, **tables: Any) -> SharedModel:
    from safetensors.torch import save_file

    from wardround_common.backbones.architectures import build_bare
    from wardround_common.backbones.store import file_digest

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(build_bare("timm", "test_resnet").net.state_dict(), folder / f"w{seed}")
    path = folder / f"w{seed}"
    data = {"modality": "image", "label": "finding", "size": 32}
    tuning = {"method": "last-k", "blocks": 2}
    raw = {"data": data, "tuning": tuning} | tables
    return SharedModel(text_federation(f"file:{path}#timm:test_resnet", file_digest(path), **raw))


def datasets(
    shared: SharedModel, cache: Path, *, gib: float = 1.0, digest: str = "1" * 64
) -> SiteDatasets:
    text = shared.federation.data.modality == "text"
    own = site(texts(13), texts(5), digest) if text else site(images(13), images(5, 1), digest)
    return SiteDatasets(shared, own, cache, CPU, cache_gib=gib)


def trained(shared: SharedModel, data: SiteDatasets) -> tuple[torch.Tensor, float]:
    training, test = (data.training_set(part, None, 1) for part in ("train", "test"))
    shared.reset()
    train(shared, training, COURSE, CPU)
    _, loss = predict(shared, test, CPU)
    state = shared.tensors(shared.names(1)).values()
    return torch.cat([tensor.flatten() for tensor in state]).clone(), loss


@pytest.mark.parametrize("kind", ["text_model", "image_model"])
def test_a_round_on_kept_inputs_ends_where_the_whole_forward_does(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shared: SharedModel = request.getfixturevalue(kind)
    kept = datasets(shared, tmp_path)
    assert isinstance(kept.training_set("train", None, 1), BlockInputSet)
    whole = datasets(shared, tmp_path, gib=0.0)
    assert isinstance(whole.training_set("train", None, 1), EncodedSet)
    (ours, our_loss), (theirs, loss) = trained(shared, kept), trained(shared, whole)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert our_loss == pytest.approx(loss, rel=1e-3)
    shared.reset()
    start = torch.cat([t.flatten() for t in shared.tensors(shared.names(1)).values()])
    assert (ours - start).abs().max() > 1e-3, "nothing was trained, so nothing was compared"


@pytest.mark.parametrize("kind", ["text_model", "image_model"])
def test_what_is_read_back_trains_to_the_same_bytes_as_what_was_just_computed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shared: SharedModel = request.getfixturevalue(kind)
    first = trained(shared, datasets(shared, tmp_path))
    second = trained(shared, datasets(shared, tmp_path))
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


def prefixes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches that went through a prefix from now on."""
    calls: list[int] = []
    original = SplitBackbone.prefix

    def counted(self: SplitBackbone, inputs: Any) -> Any:
        calls.append(1)
        return original(self, inputs)

    monkeypatch.setattr(SplitBackbone, "prefix", counted)
    return calls


def test_inputs_are_computed_once_and_a_cached_run_encodes_nothing(
    image_model: SharedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets(image_model, tmp_path).training_set("train", None, 1)
    calls = prefixes(monkeypatch)

    def refuse(self: object, examples: Examples) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr(type(image_model.encoder), "encode", refuse)
    datasets(image_model, tmp_path).training_set("train", None, 1)
    assert calls == []
    with pytest.raises(AssertionError, match="encoded"):
        datasets(image_model, tmp_path, digest="2" * 64).training_set("train", None, 1)


def test_kept_inputs_of_other_data_part_weights_or_block_are_not_used(
    image_model: SharedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets(image_model, tmp_path).training_set("train", None, 1)
    calls = prefixes(monkeypatch)
    deeper = {"method": "last-k", "blocks": 1}
    for change in (
        lambda: datasets(image_model, tmp_path, digest="2" * 64).training_set("train", None, 1),
        lambda: datasets(image_model, tmp_path).training_set("test", None, 1),
        lambda: datasets(make_image_model(tmp_path, 1), tmp_path).training_set("train", None, 1),
        lambda: datasets(make_image_model(tmp_path, 0, tuning=deeper), tmp_path).training_set(
            "train", None, 1
        ),
    ):
        before = len(calls)
        change()
        assert len(calls) > before


@pytest.mark.parametrize("damage", ["cut", "empty", "shape", "dtype", "name"])
def test_a_damaged_file_is_computed_again(
    image_model: SharedModel, tmp_path: Path, damage: str
) -> None:
    datasets(image_model, tmp_path).training_set("train", None, 1)
    (path,) = tmp_path.glob("*.safetensors")
    good = path.read_bytes()
    rows = load_file(path)[HIDDEN]
    bad = {
        "cut": good[:-1],
        "empty": b"",
        "shape": save({HIDDEN: rows[:-1].contiguous()}),
        "dtype": save({HIDDEN: rows.double()}),
        "name": save({"other": rows}),
    }[damage]
    path.unlink()
    path.write_bytes(bad)
    again = datasets(image_model, tmp_path).training_set("train", None, 1)
    assert isinstance(again, BlockInputSet)
    assert path.read_bytes() == good


def test_inputs_that_would_take_more_than_the_limit_are_not_kept(
    image_model: SharedModel, tmp_path: Path
) -> None:
    kept = datasets(image_model, tmp_path).training_set("train", None, 1)
    assert isinstance(kept, BlockInputSet)
    size = 4 * kept.hidden.numel() / 2**30
    tight = datasets(image_model, tmp_path, gib=size).training_set("train", None, 1)
    assert isinstance(tight, BlockInputSet)
    over = datasets(image_model, tmp_path, gib=size * 0.999).training_set("train", None, 1)
    assert isinstance(over, EncodedSet), "although the file of the first call is there"


def test_what_is_before_the_first_trained_block_stays_in_evaluation_mode(
    text_model: SharedModel,
) -> None:
    text_model.reset()
    text_model.train_mode(1)
    layers = text_model.model.backbone.net.encoder.layer
    modes = [{m.training for m in layer.modules() if isinstance(m, nn.Dropout)} for layer in layers]
    assert modes == [{False}, {False}, {True}]
    text_model.eval_mode()
    assert not any(module.training for module in text_model.model.modules())


def test_full_tuning_keeps_nothing(tmp_path: Path) -> None:
    shared = make_image_model(tmp_path, tuning={"method": "full"})
    assert shared.first_trained(1) is None
    assert isinstance(datasets(shared, tmp_path).training_set("train", None, 1), EncodedSet)


def test_gradual_unfreezing_moves_the_cut_towards_the_input(tmp_path: Path) -> None:
    shared = make_image_model(tmp_path, tuning={"method": "gradual", "unfreeze_at": (2, 3)})
    assert [shared.first_trained(r) for r in (1, 2, 3)] == [None, "net.layer4", "net.layer3"]
    assert shared.head_only(1)


def test_moving_statistics_before_the_block_forbid_the_cut(tmp_path: Path) -> None:
    shared = make_image_model(tmp_path, exchange={"batchnorm": "shared"})
    assert shared.first_trained(1) is None


def test_views_are_kept_apart_and_epochs_take_turns(tmp_path: Path) -> None:
    training = {"augmentation": {"views": 3, "horizontal_flip": True, "rotation_degrees": 20.0}}
    shared = make_image_model(tmp_path, training=training)
    sets = datasets(shared, tmp_path).training_set("train", None, 1)
    assert isinstance(sets, ViewedSet)
    views = [sets.view(epoch) for epoch in range(4)]
    assert views[3] is views[0]
    hidden = [view.hidden for view in views[:3] if isinstance(view, BlockInputSet)]
    assert len(hidden) == 3
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[1], hidden[2])
    assert isinstance(datasets(shared, tmp_path).training_set("test", None, 1), BlockInputSet)
