"""Images and columns from NumPy ``.npz`` files; object arrays (pickles) are refused."""

import io
import zipfile

import numpy as np

from wardround_client.data.columns import Pixels, text_column
from wardround_client.data.images import with_channels
from wardround_common.errors import DataError

Arrays = tuple[Pixels, dict[str, tuple[str, ...]], tuple[str, ...]]
"""Images uint8 [n, H, W, C], the kept columns, and the names of all columns."""


def read_npz(data: bytes, name: str, keep: frozenset[str]) -> Arrays:
    """Read one file: ``images`` and, as columns, every other one-dimensional array of n values.

    Args:
        data: the file's content.
        name: the file's name, for messages.
        keep: columns to keep.

    Raises:
        DataError: ``npz_malformed`` (damaged, not npz, or holding objects), ``missing_images``,
            ``images_shape``.
    """
    try:
        file = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{name}: one array, not an npz file", code="npz_malformed")
        arrays = {key: file[key] for key in file.files if key == "images" or key in keep}
        shapes = {key: _shape(file, key) for key in file.files if key not in arrays}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{name}: not a readable npz file without object arrays; it may be cut short",
            code="npz_malformed",
        ) from error
    if "images" not in arrays:
        raise DataError(
            f"{name}: no array 'images'; it has {sorted(shapes | dict.fromkeys(arrays, ()))}",
            code="missing_images",
        )
    images = with_channels(name, arrays.pop("images"))
    shapes |= {key: array.shape for key, array in arrays.items()}
    available = tuple(key for key, shape in shapes.items() if shape == (len(images),))
    columns = {
        key: text_column(name, key, array.tolist())
        for key, array in arrays.items()
        if key in available
    }
    return images, columns, available


def _shape(file: "np.lib.npyio.NpzFile", key: str) -> tuple[int, ...]:
    """The shape of an array that is not wanted; objects are not an error there."""
    try:
        return tuple(file[key].shape)
    except ValueError:
        return ()
