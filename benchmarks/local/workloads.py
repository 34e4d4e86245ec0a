"""What is trained: a large network with random weights, random examples, and their order."""

import json
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import timm
import torch
import torchvision
from torch import nn

from wardround_client.training.batches import EncodedSet
from wardround_client.training.local import Course
from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.blocks import find_blocks
from wardround_common.backbones.text import TextBackbone
from wardround_common.modalities.base import Encoded
from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import Digest

Name = Literal["resnet50", "vit", "bert", "lora"]
NAMES: tuple[Name, ...] = ("resnet50", "vit", "bert", "lora")
NUM_CLASSES = 8
SEED = 7
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Size:
    """How large a case is: examples a step, steps, pixels of a side or tokens, and layers."""

    batch: int
    steps: int
    length: int
    layers: int
    width: int


_FULL: dict[Name, Size] = {
    "resnet50": Size(32, 10, 224, 0, 0),
    "vit": Size(32, 10, 224, 12, 768),
    "bert": Size(16, 10, 128, 12, 768),
    "lora": Size(16, 10, 128, 6, 384),
}
_QUICK: dict[Name, Size] = {
    "resnet50": Size(4, 4, 64, 0, 0),
    "vit": Size(4, 24, 64, 4, 192),
    "bert": Size(4, 16, 32, 2, 256),
    "lora": Size(8, 4, 64, 6, 384),
}


class Images(nn.Module):
    """An image network without its classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of ``pixels``, float32 [B, 3, H, W]."""
        features: torch.Tensor = self.net(pixels)
        return features.float()


class NoEncoder:
    """The examples are tensors already."""

    transform = "none"

    def encode(self, examples: Any) -> Encoded:
        """Never asked for."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Workload:
    """One training: ``lora`` is a small BERT with adapters, the others train every parameter."""

    name: Name
    quick: bool

    @property
    def size(self) -> Size:
        """The sizes of this case."""
        return (_QUICK if self.quick else _FULL)[self.name]

    @property
    def rate(self) -> float:
        """The learning rate; ResNet-50 with random weights and frozen statistics diverges at 0.01."""
        return 1e-4 if self.name == "resnet50" else 0.01

    @property
    def images(self) -> bool:
        """Whether the inputs are images."""
        return self.name in {"resnet50", "vit"}

    def shared(self) -> SharedModel:
        """The product's model around the network."""
        net, width = self._net()
        digest = Digest("0" * 64)
        loaded = LoadedBackbone(net, width, find_blocks(net.net, "net."), digest, NoEncoder())
        with patch("wardround_common.shared_model.load_backbone", lambda _: loaded):
            return SharedModel(self.federation())

    def _net(self) -> tuple[Any, int]:
        size = self.size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            if self.name == "resnet50":
                net: nn.Module = torchvision.models.resnet50(weights=None)
                net.fc = nn.Identity()
                return Images(net).eval(), 2048
            if self.name == "vit":
                heads, shape = size.width // 64, {"depth": size.layers, "embed_dim": size.width}
                net = timm.create_model(
                    "vit_base_patch16_224",
                    num_classes=0,
                    img_size=size.length,
                    num_heads=heads,
                    **shape,
                )
                return Images(net).eval(), size.width
            from transformers import BertConfig, BertModel

            config = BertConfig(
                hidden_size=size.width,
                num_hidden_layers=size.layers,
                num_attention_heads=size.width // 32,
                intermediate_size=4 * size.width,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
            net = BertModel(config, add_pooling_layer=False)
            return TextBackbone(net, pooled=True).eval(), size.width

    def data(self) -> EncodedSet:
        """The examples, drawn at random."""
        size, rows = self.size, self.size.batch * self.size.steps
        generator = torch.Generator().manual_seed(SEED)
        targets = torch.randint(NUM_CLASSES, (rows,), generator=generator)
        if self.images:
            inputs = {"pixels": torch.randn(rows, 3, size.length, size.length, generator=generator)}
        else:
            ids = torch.randint(30_000, (rows, size.length), generator=generator)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return EncodedSet(Encoded(inputs, targets, torch.arange(rows)))

    def course(self) -> Course:
        """One epoch."""
        return Course(range(1, 2), epochs=1, start=1, total=1, seed=SEED)

    def federation(self) -> FederationSpec:
        """The federation file."""
        tables: dict[str, Any] = {
            "federation": {"name": "benchmark", "sites": ["a", "b"], "seed": SEED},
            "data": {"modality": "text", "text": "text", "label": "label"},
            "task": {
                "kind": "classification",
                "labels": [f"class{label}" for label in range(NUM_CLASSES)],
            },
            "backbone": {"ref": "file:net#net", "sha256": "0" * 64},
            "tuning": {"method": "full"},
            "training": {
                "batch_size": self.size.batch,
                "precision": "auto",
                "optimizer": {"name": "sgd", "learning_rate": self.rate, "momentum": MOMENTUM},
            },
            "exact_head": {"enabled": False},
            "rounds": {"count": 1},
        }
        if self.images:
            tables["data"] = {"modality": "image", "label": "label", "size": self.size.length}
        if self.name == "lora":
            tables["tuning"] = {"method": "lora", "targets": ["query", "value"]}
        return FederationSpec.model_validate_json(json.dumps(tables))
