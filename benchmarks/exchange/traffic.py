"""Bytes a site and round, as sent: from real training steps of federations over random images.

Backbones have random weights: bytes do not depend on them, and nothing is downloaded.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from benchmarks.exchange.models import simulate
from wardround_common.backbones.architectures import build_bare
from wardround_common.backbones.refs import Library
from wardround_common.backbones.store import file_digest
from wardround_common.spec.exchange import Exchange
from wardround_common.spec.federation import FederationSpec
from wardround_common.wire.codecs.registry import codec_for
from wardround_common.wire.layout import Layout

NUM_CLASSES = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One federation.

    Attributes:
        name: for the table.
        library: whose architecture.
        architecture: its name there.
        size: images are of so many pixels squared.
        tuning: what is trained.
        coding: how updates travel.
        most_bytes: a site may send so many a round.
    """

    name: str
    library: Library
    architecture: str
    size: int
    tuning: dict[str, Any]
    coding: str
    most_bytes: int


_LORA = {"method": "lora", "rank": 8, "alpha": 16.0, "targets": ["qkv"]}
_VIT: tuple[Library, str, int] = ("timm", "vit_base_patch16_224", 224)
CASES = (
    Case("ResNet-18, head", "torchvision", "resnet18", 64, {"method": "head"}, "fp32", 18_000),
    Case("ViT-B/16, LoRA r = 8 on qkv, head", *_VIT, _LORA, "fp32", 1_250_000),
    Case("ViT-B/16, LoRA r = 8 on qkv, head", *_VIT, _LORA, "int8", 330_000),
)


def measure(case: Case) -> dict[str, Any]:
    """Run one round and count.

    Returns:
        Bytes from and to the site, receipt and manifest among them, as the engine counts them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "weights.safetensors"
        net = build_bare(case.library, case.architecture).net
        save_file({n: t.contiguous() for n, t in net.state_dict().items()}, weights)
        _write_images(folder, case.size)
        (train,) = simulate(_federation(case, weights), folder, folder)
    return {
        "name": case.name,
        "coding": case.coding,
        "bytes_up": train.bytes_up,
        "bytes_array": _array_bytes(case, train.manifest.reply_layout),
        "bytes_down": train.bytes_down,
        "most_bytes": case.most_bytes,
    }


def _array_bytes(case: Case, layout: Layout) -> int:
    coding = Exchange.model_validate({"update": {"coding": case.coding}}).update
    codec = codec_for(coding, layout)
    return layout.num_bytes if codec is None else codec.num_bytes


def _write_images(folder: Path, size: int) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    images = rng.integers(0, 256, (NUM_CLASSES + 2, size, size, 3), dtype=np.uint8)
    labels = [f"class{place % NUM_CLASSES}" for place in range(len(images))]
    split = ["train"] * NUM_CLASSES + ["test"] * 2
    np.savez(
        folder / "data.npz", images=images, label=labels, hospital=["a"] * len(images), split=split
    )
    (folder / "dataset.toml").write_text('format = "npz"\npath = "data.npz"\n')


def _federation(case: Case, weights: Path) -> FederationSpec:
    tables: dict[str, Any] = {
        "federation": {"name": "traffic", "sites": ["a"]},
        "data": {
            "modality": "image",
            "label": "label",
            "size": case.size,
            "split": {"kind": "column", "column": "split"},
        },
        "task": {
            "kind": "classification",
            "labels": [f"class{place}" for place in range(NUM_CLASSES)],
        },
        "backbone": {
            "ref": f"file:{weights}#{case.library}:{case.architecture}",
            "sha256": file_digest(weights),
        },
        "tuning": case.tuning,
        "training": {"batch_size": 4},
        "rounds": {"count": 1},
        "exchange": {"update": {"coding": case.coding}},
        "exact_head": {"enabled": False},
        "evaluation": {"compare": False, "bootstrap": 100},
        "simulation": {
            "dataset": ".",
            "pooled": False,
            "threads": 1,
            "partition": {"kind": "column", "column": "hospital", "values": {"a": ["a"]}},
        },
    }
    return FederationSpec.model_validate_json(json.dumps(tables))
