"""Images named by a column of a table, read relative to the table's folder.

A name that is absolute or climbs out of the folder is refused: a manifest must not be able to
point at the rest of the machine.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from wardround_client.data.columns import Pixels, RawData
from wardround_client.data.findings import Findings
from wardround_client.data.images import UnreadableImageError, decode, stack
from wardround_common.modalities.base import IntArray
from wardround_common.types import sha256_hex


def image_paths(raw: RawData, rows: IntArray, column: str) -> list[Path | None]:
    """The path of each row's image; None where the name leaves the manifest's folder."""
    paths: list[Path | None] = []
    for cell in raw.cells(column, rows):
        name = PurePosixPath(cell.replace("\\", "/"))
        outside = name.is_absolute() or ".." in name.parts or not cell
        paths.append(None if outside else raw.folder / name)
    return paths


def read_images(
    raw: RawData, rows: IntArray, column: str, size: int, found: Findings
) -> tuple[Pixels, tuple[tuple[str, str], ...]]:
    """Read and scale the images of ``rows``.

    Args:
        raw: the manifest.
        rows: int64 [n], the manifest's rows to read.
        column: the column with the images' names.
        size: height and width of the result, in pixels.
        found: receives ``image_outside_folder``, ``missing_image`` and ``unreadable_image``.

    Returns:
        uint8 [n, size, size, C], and (name, SHA-256) of each file that was read.
    """
    places: dict[str, list[int]] = {
        code: [] for code in ("image_outside_folder", "missing_image", "unreadable_image")
    }
    first_reason = ""
    images: list[Pixels] = []
    digests: list[tuple[str, str]] = []
    for place, path in enumerate(image_paths(raw, rows, column)):
        image = np.zeros((size, size, 1), dtype=np.uint8)
        if path is None:
            places["image_outside_folder"].append(place)
        elif not path.is_file():
            places["missing_image"].append(place)
        else:
            data = path.read_bytes()
            digests.append((path.relative_to(raw.folder).as_posix(), sha256_hex(data)))
            try:
                image = decode(data, size)
            except UnreadableImageError as error:
                places["unreadable_image"].append(place)
                first_reason = first_reason or str(error)
        images.append(image)
    messages = {
        "image_outside_folder": "names that are empty, absolute or lead out of the folder",
        "missing_image": "images that are not there, relative to the manifest",
        "unreadable_image": f"images that cannot be used ({first_reason})",
    }
    cells = raw.cells(column, rows)
    for code, wrong in places.items():
        value = cells[wrong[0]] if wrong else None
        found.rows(code, messages[code], column, rows[wrong].tolist(), value=value)
    return stack(images), tuple(digests)
