"""Views of images: drawn once, the same wherever and whenever they are made.

A view follows from the federation's seed, the image's own pixels and the view's number, not from
its place in a file or batch. So a view that is kept as features and one that is made as training
goes along have the same pixels, and a site's views do not change when an image is added.
"""

import hashlib
import importlib
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch

from wardround_client.training.batches import Batch, EncodedSet, TrainingSet
from wardround_client.training.seeds import derive_seed
from wardround_common.canonical import canonical_bytes
from wardround_common.modalities.base import IntArray
from wardround_common.model import FineTunedModel
from wardround_common.spec.federation import Augmentation


@dataclass(frozen=True, slots=True)
class Views:
    """How the views of a federation's images are made.

    Attributes:
        spec: the ``[training.augmentation]`` table.
        seed: the federation's.
    """

    spec: Augmentation
    seed: int

    def describe(self, view: int) -> str:
        """What a view depends on beside the image, in canonical form; for the cache's key."""
        return canonical_bytes(
            {
                "views": "1",
                "view": view,
                "seed": self.seed,
                "transforms": self.spec.model_dump(mode="json", exclude={"views"}),
            }
        ).decode()

    def pixels(self, image: torch.Tensor, view: int) -> torch.Tensor:
        """One view of one image.

        Args:
            image: uint8 [C, H, W].
            view: from 1; view 0 is the image as it is.

        Returns:
            uint8 [C, H, W].
        """
        if view == 0:
            return image
        digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        # Python's generator is specified bit by bit; torch's may differ between versions.
        draw = random.Random(derive_seed(self.seed, "view", view, digest))  # noqa: S311
        return _transformed(image, self.spec, draw)


@dataclass(frozen=True, slots=True)
class AugmentedSet:
    """One view of the examples of an encoded set.

    Attributes:
        plain: the images as they are.
        views: how views are made.
        number: which view.
    """

    plain: EncodedSet
    views: Views
    number: int

    def __len__(self) -> int:
        return len(self.plain)

    @property
    def targets(self) -> torch.Tensor:
        """int64 [n]."""
        return self.plain.targets

    @property
    def subjects(self) -> torch.Tensor:
        """int64 [n]."""
        return self.plain.subjects

    @property
    def missed(self) -> IntArray | None:
        """None: images are not cut off."""
        return self.plain.missed

    def made(self) -> TrainingSet:
        """Itself."""
        return self

    def batch(self, rows: torch.Tensor, device: torch.device) -> Batch:
        """The view's pixels and the targets of the examples at ``rows``."""
        inputs, targets = self.plain.batch(rows, torch.device("cpu"))
        pixels = torch.stack([self.views.pixels(image, self.number) for image in inputs["pixels"]])
        return {"pixels": pixels.to(device)}, targets.to(device)

    def logits(self, model: FineTunedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits through backbone and head."""
        return self.plain.logits(model, inputs)

    def class_counts(self, num_outputs: int) -> torch.Tensor:
        """int64 [num_outputs]."""
        return self.plain.class_counts(num_outputs)

    def lengths_hint(self) -> None:
        """All images cost the same."""

    def view(self, epoch: int) -> TrainingSet:  # noqa: ARG002
        """The same in every epoch: this is one view."""
        return self


@lru_cache(maxsize=1)
def _functional() -> ModuleType:
    """Torchvision's transforms; imported at the first view, since the import takes a while."""
    return importlib.import_module("torchvision.transforms.v2.functional")


def _transformed(image: torch.Tensor, spec: Augmentation, draw: random.Random) -> torch.Tensor:
    """Crop, flips, rotation, brightness, contrast; every draw is made, whatever is switched on."""
    functional = _functional()
    area, left, top = draw.uniform(*spec.scale), draw.random(), draw.random()
    mirrored, upside_down = draw.random() < 0.5, draw.random() < 0.5
    angle = draw.uniform(-spec.rotation_degrees, spec.rotation_degrees)
    brightness = 1.0 + draw.uniform(-spec.brightness, spec.brightness)
    contrast = 1.0 + draw.uniform(-spec.contrast, spec.contrast)
    size = image.shape[-1]
    side = max(1, round(size * math.sqrt(area)))
    if side < size:
        x, y = int(left * (size - side + 1)), int(top * (size - side + 1))
        image = functional.resized_crop(image, y, x, side, side, [size, size], antialias=True)
    if spec.horizontal_flip and mirrored:
        image = functional.horizontal_flip(image)
    if spec.vertical_flip and upside_down:
        image = functional.vertical_flip(image)
    if spec.rotation_degrees:
        bilinear = _bilinear()
        image = functional.rotate(image, angle, interpolation=bilinear)
    if spec.brightness:
        image = functional.adjust_brightness(image, brightness)
    if spec.contrast:
        image = functional.adjust_contrast(image, contrast)
    return image.contiguous()


@lru_cache(maxsize=1)
def _bilinear() -> object:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode.BILINEAR
