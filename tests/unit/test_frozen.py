"""How a frozen network is given its examples: a rule, and one that the network really sees."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from wardround_client.training import frozen
from wardround_client.training.batches import EncodedSet
from wardround_client.training.frozen import frozen_batches
from wardround_client.training.modes import PLAIN
from wardround_common.backbones.image import ImageBackbone
from wardround_common.modalities.base import Encoded
from wardround_common.modalities.image import PixelScale

CPU = torch.device("cpu")


class Convolution(nn.Module):
    """Pooled features of one convolution, which remembers how its images lay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.channels_last: list[bool] = []

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """float32 [B, 3, H, W] -> [B, 4]."""
        self.channels_last.append(values.is_contiguous(memory_format=torch.channels_last))
        features: torch.Tensor = self.convolution(values).mean(dim=(2, 3))
        return features


def encoded(tensors: dict[str, torch.Tensor]) -> EncodedSet:
    count = len(next(iter(tensors.values())))
    return EncodedSet(Encoded(tensors, torch.arange(count), torch.arange(count)))


@pytest.fixture
def images() -> EncodedSet:
    pixels = np.random.default_rng(0).integers(0, 256, (35, 3, 9, 9), dtype=np.uint8)
    return encoded({"pixels": torch.from_numpy(pixels)})


@torch.no_grad()
def features(data: EncodedSet, net: Convolution) -> torch.Tensor:
    backbone = ImageBackbone(net, PixelScale((0.5, 0.5, 0.5), (0.3, 0.3, 0.3)))
    return torch.cat([backbone(**inputs) for _, inputs, _ in frozen_batches(data, CPU)])


def test_convolutions_see_images_channels_last(images: EncodedSet) -> None:
    net, plain = Convolution(), Convolution()
    found = features(images, net)
    assert all(net.channels_last)
    with patch.object(frozen, "_ON_PROCESSOR", PLAIN):
        expected = features(images, plain)
    assert not any(plain.channels_last), "the probe would not notice"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_every_example_comes_once_with_its_target(images: EncodedSet) -> None:
    rows, targets = zip(*((r, t) for r, _, t in frozen_batches(images, CPU)), strict=True)
    assert torch.cat(rows).tolist() == list(range(35))
    assert torch.cat(targets).tolist() == list(range(35))
    assert [len(part) for part in rows] == [16, 16, 3]


def test_texts_come_in_batches_of_their_own_size() -> None:
    mask = torch.ones(40, 5, dtype=torch.int64)
    texts = encoded({"input_ids": mask.clone(), "attention_mask": mask})
    assert [len(rows) for rows, _, _ in frozen_batches(texts, CPU)] == [32, 8]
