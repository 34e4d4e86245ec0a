"""Images as pixels.

Pixels stay ``uint8`` until the backbone scales them in its own forward pass: a quarter of the
memory, and one place that knows the scale.
"""

from dataclasses import dataclass

import numpy as np
import torch

from wardround_common.canonical import canonical_bytes
from wardround_common.errors import DataError
from wardround_common.modalities.base import (
    Encoded,
    Examples,
    ImageInputs,
    subjects_tensor,
    targets_1d,
)


@dataclass(frozen=True, slots=True)
class PixelScale:
    """The backbone sees ``(pixel - mean) / deviation``.

    Attributes:
        mean: for red, green and blue, in pixel units (0 to 255).
        deviation: likewise; above 0.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


class ImageEncoder:
    """Encodes images.

    Args:
        size: height and width in pixels that every image must have.
        scale: what the backbone does to the pixels; only described here.
    """

    def __init__(self, size: int, scale: PixelScale) -> None:
        self._size = size
        self._scale = scale

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self._size

    @property
    def transform(self) -> str:
        """Size and scale in canonical form."""
        return canonical_bytes(
            {
                "encoder": "image/1",
                "size": self._size,
                "mean": self._scale.mean,
                "deviation": self._scale.deviation,
            }
        ).decode()

    def encode(self, examples: Examples) -> Encoded:
        """Encode all images.

        Args:
            examples: their inputs are ``ImageInputs`` of the declared size.

        Returns:
            ``pixels`` uint8 [n, 3, size, size], a grey image repeated in three channels (as a
            view of the one); targets int64 [n].

        Raises:
            DataError: the inputs are no images, or not of the declared size.
        """
        if not isinstance(examples.inputs, ImageInputs):
            raise DataError("the data is not images (modality image)", code="wrong_modality")
        pixels = examples.inputs.pixels
        self._check(pixels.shape, pixels.dtype)
        channels_first = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        return Encoded(
            {"pixels": channels_first.expand(-1, 3, -1, -1)},
            targets_1d(examples),
            subjects_tensor(examples),
        )

    def _check(self, shape: tuple[int, ...], dtype: np.dtype[np.uint8]) -> None:
        fits = len(shape) == 4 and shape[1:3] == (self._size, self._size) and shape[3] in {1, 3}
        if not fits or dtype != np.uint8:
            raise DataError(
                f"images of shape {shape}, {dtype}; data.size = {self._size} needs uint8 "
                f"[n, {self._size}, {self._size}, 1 or 3]",
                code="wrong_image_shape",
            )
