"""A backbone cut in two gives its features to the bit, or is not cut."""

import pytest
import torch
from torch import nn

from tests.unit.tiny_bert import save_encoder
from wardround_common.backbones.architectures import build_bare
from wardround_common.backbones.blocks import find_blocks
from wardround_common.backbones.image import ImageBackbone
from wardround_common.backbones.split import HIDDEN, modules_before, split_at
from wardround_common.backbones.table import TableBackbone
from wardround_common.backbones.text import TextBackbone, load_text
from wardround_common.types import Digest

CUT = [
    ("torchvision", "resnet18", 32),
    ("torchvision", "densenet121", 32),
    ("torchvision", "efficientnet_b0", 32),
    ("torchvision", "mobilenet_v3_small", 32),
    ("torchvision", "convnext_tiny", 32),
    ("torchvision", "vgg11_bn", 32),
    ("torchvision", "vit_b_32", 224),
    ("torchvision", "swin_t", 32),
    ("timm", "test_resnet", 32),
    ("timm", "tf_efficientnet_lite0", 32),
    ("timm", "test_vit", 160),
    ("timm", "test_convnext", 160),
]


def image_backbone(library, name: str) -> ImageBackbone:
    bare = build_bare(library, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for norm in bare.net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                # Statistics that a batch's own would not give.
                nn.init.normal_(norm.running_mean)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return ImageBackbone(bare.net, bare.scale).eval().requires_grad_(False)


def pixels(size: int, count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size, size)
    return {"pixels": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}


@pytest.mark.parametrize(("library", "name", "size"), CUT)
def test_both_halves_of_an_image_backbone_give_the_whole_to_the_bit(library, name, size) -> None:
    backbone = image_backbone(library, name)
    batch = pixels(size, 3)
    with torch.no_grad():
        whole = backbone(**batch)
        for block in find_blocks(backbone.net, "net.")[-2:]:
            split = split_at(backbone, block, pixels(size))
            assert split is not None, block
            tensors = split.prefix(batch)
            assert tensors[HIDDEN].shape == (3, *split.shape)
            assert torch.equal(split.suffix(tensors), whole), block
            assert not torch.equal(split.suffix({HIDDEN: tensors[HIDDEN] + 1.0}), whole)


@pytest.mark.parametrize("tagged", [False, True])
def test_both_halves_of_a_text_encoder_give_the_whole_to_the_bit(tmp_path, tagged: bool) -> None:
    save_encoder(tmp_path)
    loaded = load_text(tmp_path, Digest("0" * 64), 16, tagged=tagged)
    batch = {
        "input_ids": torch.tensor([[2, 4, 6, 3], [2, 5, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    assert isinstance(loaded.module, TextBackbone)
    for block in loaded.blocks[1:]:
        split = split_at(loaded.module, block, batch)
        assert split is not None
        tensors = split.prefix(batch)
        with torch.no_grad():
            whole = loaded.module(**batch)
            assert torch.equal(split.suffix(tensors), whole)
            unmasked = tensors | {"attention_mask": torch.ones(2, 4, dtype=torch.int64)}
            assert not torch.equal(split.suffix(unmasked), whole), "the mask does its part"


class _Branching(nn.Module):
    """Uses its input again at the end, past every block: it cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.second(self.first(images)) + images).mean(dim=(2, 3))


def test_a_network_whose_start_is_used_again_is_not_cut() -> None:
    scale = image_backbone("timm", "test_resnet")._scale
    backbone = ImageBackbone(_Branching(), scale).eval()
    assert split_at(backbone, "net.second", pixels(8)) is None


def test_a_backbone_of_another_kind_is_not_cut() -> None:
    assert split_at(TableBackbone().eval(), "net", {"values": torch.ones(2, 3)}) is None


def test_the_prefix_refuses_to_run_in_training_mode() -> None:
    backbone = image_backbone("timm", "test_resnet")
    split = split_at(backbone, "net.layer4", pixels(32))
    assert split is not None
    backbone.train()
    with pytest.raises(AssertionError, match="evaluation mode"):
        split.prefix(pixels(32))


def test_the_halves_follow_the_mode_and_the_weights_of_the_whole() -> None:
    backbone = image_backbone("timm", "test_resnet")
    split = split_at(backbone, "net.layer4", pixels(32))
    assert split is not None
    tensors = split.prefix(pixels(32))
    with torch.no_grad():
        before = split.suffix(tensors)
        for parameter in backbone.net.layer4.parameters():
            parameter.add_(0.5)
        assert torch.equal(split.suffix(tensors), backbone(**pixels(32)))
        assert not torch.equal(split.suffix(tensors), before)


def test_what_comes_before_a_block_is_named_without_what_contains_it() -> None:
    backbone = image_backbone("timm", "test_resnet")
    before = modules_before(backbone, "net.layer4")
    assert backbone.net.layer3 in before
    assert backbone.net.conv1 in before
    assert backbone.net not in before
    assert backbone.net.layer4 not in before
