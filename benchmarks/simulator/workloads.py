"""What is simulated: a model, the sites' data, and the order of examples.

All implementations train the same module on the same examples in the same order, so they must end
in the same parameters up to the rounding of sums.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional

from wardround_client.training.seeds import derive_seed
from wardround_common.model import FineTunedModel, build_head
from wardround_common.spec.federation import FederationSpec, Head

Name = Literal["cnn", "resnet18", "table"]
NAMES: tuple[Name, ...] = ("cnn", "resnet18", "table")
NUM_CLASSES = 10
NUM_COLUMNS = 13
SEED = 7
BATCH_SIZE = 16
RATE = 0.05
_EXAMPLES: dict[Name, int] = {"cnn": 64, "resnet18": 16, "table": 256}
_WIDTHS: dict[Name, int] = {"cnn": 84, "resnet18": 512, "table": NUM_COLUMNS}
_PIXELS = 32


class SmallCnn(nn.Module):
    """Two convolutions and two linear layers: 61,156 parameters; with its head, 62,006."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.linear1 = nn.Linear(400, 120)
        self.linear2 = nn.Linear(120, 84)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features.

        Args:
            pixels: uint8 [B, 3, 32, 32].

        Returns:
            float32 [B, 84].
        """
        values = (pixels.float() - 127.5) / 73.9
        values = functional.max_pool2d(functional.relu(self.conv1(values)), 2)
        values = functional.max_pool2d(functional.relu(self.conv2(values)), 2)
        values = functional.relu(self.linear1(values.flatten(1)))
        return functional.relu(self.linear2(values))


class ResNet18(nn.Module):
    """torchvision's ResNet-18 without its last layer: 11,176,512 parameters, random."""

    blocks = ("net.layer1", "net.layer2", "net.layer3", "net.layer4")

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18(weights=None)
        self.net.fc = nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features, float32 [B, 512], of pixels, uint8 [B, 3, 32, 32]."""
        features: torch.Tensor = self.net((pixels.float() - 127.5) / 73.9)
        return features


class Columns(nn.Module):
    """Features of a table: its columns."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``values``, float32 [B, d]."""
        return values


@dataclass(frozen=True, slots=True)
class Workload:
    """One federation to simulate.

    Attributes:
        name: ``cnn`` and ``resnet18``, every parameter trained (and BatchNorm's statistics
            averaged), or ``table``, a linear model.
        num_sites: sites, all of them in every round.
        num_rounds: rounds; the first one warms up and is not counted.
    """

    name: Name
    num_sites: int
    num_rounds: int

    @property
    def sites(self) -> tuple[str, ...]:
        """The roster."""
        return tuple(f"site-{place}" for place in range(self.num_sites))

    @property
    def amplifies(self) -> bool:
        """Whether last bits grow from round to round.

        ResNet-18 with random weights and batch statistics of 16 images does: two ways that differ by
        1e-7 after a round differ by 1e-3 after five, whoever is compared with whom.
        """
        return self.name == "resnet18"

    @property
    def num_examples(self) -> int:
        """Training examples of each site."""
        return _EXAMPLES[self.name]

    def backbone(self) -> nn.Module:
        """The model without its head, with its initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return {"cnn": SmallCnn, "resnet18": ResNet18, "table": Columns}[self.name]()

    def model(self) -> FineTunedModel:
        """The whole model with its initial weights, as the product builds it."""
        head = build_head(Head(), self.feature_dim, NUM_CLASSES, SEED)
        return FineTunedModel(self.backbone(), head)

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return _WIDTHS[self.name]

    @property
    def has_images(self) -> bool:
        """Whether examples are images."""
        return self.name != "table"

    def arrays(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of one site, drawn at random.

        Returns:
            uint8 [n, 32, 32, 3] (images) or float64 [256, 13] with four decimals (``table``);
            int64 labels.
        """
        rng = np.random.Generator(np.random.PCG64([SEED, place]))
        labels = rng.integers(0, NUM_CLASSES, self.num_examples)
        if self.has_images:
            shape = (self.num_examples, _PIXELS, _PIXELS, 3)
            return rng.integers(0, 256, shape, dtype=np.uint8), labels
        return rng.normal(size=(self.num_examples, NUM_COLUMNS)).round(4), labels

    def tensors(self, place: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The same as the model takes it: inputs by name, and targets."""
        inputs, labels = self.arrays(place)
        targets = torch.from_numpy(labels)
        if self.has_images:
            pixels = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
            return {"pixels": torch.from_numpy(pixels)}, targets
        return {"values": torch.from_numpy(inputs.astype(np.float32))}, targets

    def batches(self, place: int, round_: int) -> tuple[torch.Tensor, ...]:
        """The examples of one site in the order of one round, in batches."""
        seed = derive_seed(SEED, "train", self.sites[place])
        generator = torch.Generator().manual_seed(derive_seed(seed, "shuffle", round_, 0))
        return torch.split(torch.randperm(self.num_examples, generator=generator), BATCH_SIZE)

    def federation(self) -> FederationSpec:
        """The federation file: training rounds and nothing beside them."""
        optimizer = {"name": "sgd", "learning_rate": RATE, "momentum": 0.0}
        tables: dict[str, Any] = {
            "federation": {"name": "benchmark", "sites": self.sites, "seed": SEED},
            "task": {"kind": "classification", "labels": _labels()},
            "training": {"batch_size": BATCH_SIZE, "optimizer": optimizer},
            "rounds": {"count": self.num_rounds},
            "exact_head": {"enabled": False},
            "evaluation": {"compare": False, "bootstrap": 100},
            "simulation": {
                "dataset": ".",
                "pooled": False,
                "threads": 1,
                "partition": {
                    "kind": "column",
                    "column": "hospital",
                    "values": {site: [site] for site in self.sites},
                },
            },
        }
        split = {"kind": "column", "column": "split"}
        data = {"label": "label", "split": split}
        if self.has_images:
            tables["data"] = {**data, "modality": "image", "size": _PIXELS}
            tables["backbone"] = {"ref": "file:small-cnn#small-cnn", "sha256": "0" * 64}
            tables["tuning"] = {"method": "full"}
            tables["exchange"] = {"batchnorm": "shared"}
            tables["limits"] = {"update_norm": 1e6}
        else:
            columns = {"numeric": _columns(), "standardise": "none"}
            tables["data"] = {**data, **columns, "modality": "tabular"}
        return FederationSpec.model_validate_json(json.dumps(tables))

    def write(self, folder: Path) -> None:
        """Write the sites' examples, and one held out for each, as a prepared set.

        Args:
            folder: receives the data and ``dataset.toml``.
        """
        sites = [self.arrays(place) for place in range(self.num_sites)]
        inputs = np.concatenate([array for pair in sites for array in (pair[0], pair[0][:1])])
        labels = np.concatenate([array for pair in sites for array in (pair[1], pair[1][:1])])
        each = self.num_examples + 1
        hospital = np.repeat(np.array(self.sites), each)
        split = np.tile(["train"] * self.num_examples + ["test"], self.num_sites)
        named = np.array(_labels())[labels]
        if self.has_images:
            np.savez(
                folder / "data.npz", images=inputs, label=named, hospital=hospital, split=split
            )
        else:
            with (folder / "data.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([*_columns(), "label", "hospital", "split"])
                writer.writerows(zip(*inputs.T.tolist(), named, hospital, split, strict=True))
        kind = "npz" if self.has_images else "csv"
        text = f'format = "{kind}"\npath = "data.{kind}"\n'
        (folder / "dataset.toml").write_text(text)


def train_site(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    targets: torch.Tensor,
    batches: tuple[torch.Tensor, ...],
) -> None:
    """One local epoch of SGD, written plainly: what both baselines do at a site."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for rows in batches:
        optimizer.zero_grad()
        logits = model(**{name: tensor[rows] for name, tensor in inputs.items()})
        torch.autograd.backward(functional.cross_entropy(logits, targets[rows]))
        optimizer.step()


def flat(state: dict[str, torch.Tensor]) -> np.ndarray:
    """All parameters and statistics in model order, float32 [n]; counters are left out."""
    kept = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    return torch.cat([tensor.detach().flatten() for tensor in kept]).float().numpy()


def _labels() -> list[str]:
    return [f"class{label}" for label in range(NUM_CLASSES)]


def _columns() -> list[str]:
    return [f"x{column}" for column in range(NUM_COLUMNS)]
