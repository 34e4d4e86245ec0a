"""Tuning methods: which parameters of a backbone are trained in which round."""

import pytest
import torch
from torch import nn

from tests.unit.tiny_bert import save_encoder
from wardround_common.backbones.architectures import build_bare
from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.blocks import block_parameters, find_blocks
from wardround_common.backbones.table import load_table
from wardround_common.backbones.text import load_text
from wardround_common.errors import ConfigError
from wardround_common.spec.data import TabularData
from wardround_common.spec.federation import (
    BiasOnly,
    FullTuning,
    GradualUnfreezing,
    HeadOnly,
    LastBlocks,
    Lora,
    TuningMethod,
)
from wardround_common.tuning.registry import tuning_for
from wardround_common.types import Digest

LAST = "net.encoder.layer.2."
BATCH = {
    "input_ids": torch.tensor([[2, 4, 6, 3], [2, 5, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("encoder")
    save_encoder(path)
    return path


@pytest.fixture
def encoder(folder) -> LoadedBackbone:
    return load_text(folder, Digest("0" * 64), 16, tagged=False)


def chosen(method: TuningMethod, backbone: LoadedBackbone, round_: int = 1) -> frozenset[str]:
    tuning = tuning_for(method)
    prepared = tuning.prepare(backbone, 0)
    return tuning.trainable(prepared.module, prepared.blocks, round_)


def parameters(module: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in module.named_parameters())


def test_head_trains_nothing_and_full_everything(encoder: LoadedBackbone) -> None:
    assert chosen(HeadOnly(method="head"), encoder, 5) == frozenset()
    assert chosen(FullTuning(method="full"), encoder) == parameters(encoder.module)


def test_tables_have_nothing_to_train() -> None:
    data = TabularData.model_validate({"modality": "tabular", "label": "y", "numeric": ("age",)})
    assert chosen(FullTuning(method="full"), load_table(data, None)) == frozenset()


def test_last_blocks_are_those_at_the_output(encoder: LoadedBackbone) -> None:
    one = chosen(LastBlocks(method="last-k", blocks=1), encoder)
    assert one == {name for name in parameters(encoder.module) if name.startswith(LAST)}
    three = chosen(LastBlocks(method="last-k", blocks=3), encoder)
    assert one < three
    assert not any("embeddings" in name for name in three)


def test_refuses_more_blocks_than_the_backbone_has_and_lists_them(encoder: LoadedBackbone) -> None:
    with pytest.raises(ConfigError, match=r"has 3: net\.encoder\.layer\.0") as refused:
        chosen(LastBlocks(method="last-k", blocks=4), encoder)
    assert refused.value.code == "tuning_blocks"
    with pytest.raises(ConfigError, match=r"tuning\.unfreeze_at asks for 4"):
        chosen(GradualUnfreezing(method="gradual", unfreeze_at=(1, 2, 3, 4)), encoder)


def test_gradual_unfreezing_thaws_a_block_at_each_round_and_never_freezes_one(
    encoder: LoadedBackbone,
) -> None:
    gradual = GradualUnfreezing(method="gradual", unfreeze_at=(2, 4))
    sets = [chosen(gradual, encoder, round_) for round_ in range(1, 7)]
    last = [chosen(LastBlocks(method="last-k", blocks=count), encoder) for count in (1, 2)]
    assert sets == [frozenset(), last[0], last[0], last[1], last[1], last[1]]


def test_bias_trains_every_bias_and_nothing_else(encoder: LoadedBackbone) -> None:
    names = chosen(BiasOnly(method="bias"), encoder)
    assert names == {name for name in parameters(encoder.module) if name.endswith(".bias")}
    assert f"{LAST}output.LayerNorm.bias" in names


def test_bias_is_refused_where_there_is_none() -> None:
    data = TabularData.model_validate({"modality": "tabular", "label": "y", "numeric": ("age",)})
    with pytest.raises(ConfigError) as refused:
        chosen(BiasOnly(method="bias"), load_table(data, None))
    assert refused.value.code == "tuning_bias"


def test_batchnorm_scale_is_trained_but_its_statistics_are_no_parameters() -> None:
    net = build_bare("timm", "tf_efficientnet_lite0").net
    names = block_parameters(net, find_blocks(net)[-1])
    assert names == {"conv_head.weight", "bn2.weight", "bn2.bias"}


class TestLora:
    def test_leaves_the_features_bit_for_bit_unchanged_at_the_start(
        self, encoder: LoadedBackbone
    ) -> None:
        with torch.no_grad():
            before = encoder.module(**BATCH)
            prepared = tuning_for(Lora(method="lora", rank=2, dropout=0.5)).prepare(encoder, 3)
            assert torch.equal(prepared.module(**BATCH), before)

    def test_its_adapters_do_change_the_features_once_trained(
        self, encoder: LoadedBackbone
    ) -> None:
        with torch.no_grad():
            before = encoder.module(**BATCH)
            module = tuning_for(Lora(method="lora", rank=2)).prepare(encoder, 3).module
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
            assert not torch.equal(module(**BATCH), before)

    def test_trains_two_matrices_a_layer_under_stable_names(self, encoder: LoadedBackbone) -> None:
        names = chosen(Lora(method="lora", rank=2), encoder)
        assert names == {
            f"net.encoder.layer.{layer}.attention.self.{target}.lora_{part}.default.weight"
            for layer in range(3)
            for target in ("query", "value")
            for part in "AB"
        }
        shapes = {name: tuple(encoder.module.get_parameter(name).shape) for name in names}
        assert {shape for name, shape in shapes.items() if "lora_A" in name} == {(2, 16)}
        assert {shape for name, shape in shapes.items() if "lora_B" in name} == {(16, 2)}

    def test_starts_from_the_same_adapters_for_the_same_seed_only(self, folder) -> None:
        def adapters(seed: int, disturb: int) -> dict[str, torch.Tensor]:
            torch.manual_seed(disturb)
            loaded = load_text(folder, Digest("0" * 64), 16, tagged=False)
            module = tuning_for(Lora(method="lora", rank=2)).prepare(loaded, seed).module
            return {n: p.clone() for n, p in module.named_parameters() if "lora_A" in n}

        first, again, other = adapters(3, 0), adapters(3, 1), adapters(4, 0)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not any(torch.equal(first[name], other[name]) for name in first)

    def test_leaves_the_global_random_state_as_it_was(self, encoder: LoadedBackbone) -> None:
        before = torch.random.get_rng_state()
        tuning_for(Lora(method="lora")).prepare(encoder, 3)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_comes_frozen_and_in_evaluation_mode(self, encoder: LoadedBackbone) -> None:
        module = tuning_for(Lora(method="lora", dropout=0.5)).prepare(encoder, 3).module
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(child.training for child in module.modules())

    def test_takes_a_name_as_a_whole_and_not_as_a_part(self, encoder: LoadedBackbone) -> None:
        names = chosen(Lora(method="lora", targets=("dense",)), encoder)
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"dense"}
        assert len(names) == 3 * 3 * 2

    @pytest.mark.parametrize("targets", [("quer",), ("query", "qkv"), ("LayerNorm",), (".*",)])
    def test_refuses_names_that_no_linear_layer_has_and_lists_those_it_has(
        self, encoder: LoadedBackbone, targets: tuple[str, ...]
    ) -> None:
        with pytest.raises(ConfigError, match="it has dense, key, query, value") as refused:
            chosen(Lora(method="lora", targets=targets), encoder)
        assert refused.value.code == "lora_targets"
        assert not any("lora_" in name for name in parameters(encoder.module))
