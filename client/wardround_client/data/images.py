"""Pixels: decoding, scaling, and stacks of images.

Grey images stay one channel and colour images three; a set that mixes both becomes colour. Nothing
but 8-bit pixels is accepted: how 12 or 16 bits map to 8 is a clinical choice (the window), so it is
not made silently here.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from wardround_client.data.columns import Pixels
from wardround_common.errors import DataError

MAX_PIXELS = 100_000_000
"""An image with more pixels than this is refused before it is decoded."""
_GREY = frozenset({"1", "L", "LA"})
_DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


class UnreadableImageError(Exception):
    """An image cannot be used; the text says why, without the image's name."""


def decode(data: bytes, size: int) -> Pixels:
    """Decode and scale one image file.

    Args:
        data: the file's content (PNG, JPEG, and what else Pillow reads).
        size: height and width of the result, in pixels.

    Returns:
        uint8 [size, size, C], C 1 for grey and 3 for colour.

    Raises:
        UnreadableImageError: not an image, damaged, too large, or deeper than 8 bits.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse_unfit(image)
            return _scale(image.convert("L" if image.mode in _GREY else "RGB"), size)
    except UnreadableImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError("not a readable image") from error


def _refuse_unfit(image: Image.Image) -> None:
    """Refuse by the header alone, before the pixels are decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"more than {MAX_PIXELS} pixels")
    if image.mode in _DEEP:
        raise UnreadableImageError("more than 8 bits a pixel: choose a window, save 8 bits")


def _scale(image: Image.Image, size: int) -> Pixels:
    """Bilinear scaling to size x size: uint8 [size, size, C]."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def stack(images: Sequence[Pixels]) -> Pixels:
    """One array of images of equal size: uint8 [n, size, size, C]; colour if any image is."""
    channels = max(image.shape[2] for image in images)
    shape = (len(images), *images[0].shape[:2], channels)
    pixels = np.empty(shape, dtype=np.uint8)
    for place, image in enumerate(images):
        pixels[place] = image  # a grey image is broadcast to three equal channels
    return pixels


def resize_all(pixels: Pixels, size: int) -> Pixels:
    """Scale a stack.

    Args:
        pixels: uint8 [n, H, W, C].
        size: height and width of the result, in pixels.

    Returns:
        uint8 [n, size, size, C]; the same array where it already has that size.
    """
    if pixels.shape[1:3] == (size, size) or not len(pixels):
        return pixels
    grey = pixels.shape[3] == 1
    return stack([_scale(Image.fromarray(one[:, :, 0] if grey else one), size) for one in pixels])


def with_channels(name: str, images: np.ndarray) -> Pixels:
    """An ``images`` array as uint8 [n, H, W, C].

    Args:
        name: the file, for the message.
        images: [n, H, W] or [n, H, W, 1 or 3].

    Raises:
        DataError: ``images_shape``, another type or shape.
    """
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[..., None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in {1, 3}:
        return images
    raise DataError(
        f"{name}: array 'images' is {images.dtype} {list(images.shape)}; "
        "uint8 [n, H, W] or [n, H, W, 3] is needed",
        code="images_shape",
    )
