"""Reads a site's data in any of its formats into :class:`RawData`.

Every file is read once into memory and hashed there, so that what was parsed is what the digest
says, even if somebody replaces the file meanwhile.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wardround_client.data.arrays import read_npz
from wardround_client.data.columns import Pixels, RawData
from wardround_client.data.conll import read_conll
from wardround_client.data.images import resize_all, stack
from wardround_client.data.tables import TABLE_READERS
from wardround_common.errors import DataError
from wardround_common.spec.site import SiteData, resolve
from wardround_common.types import sha256_hex

PART = "part"
"""Column with the stem of the file that a row came from (npz and conll)."""
DOCUMENT = "document"
"""Column with the document of a sentence, where ``-DOCSTART-`` lines mark documents."""
_SUFFIXES = {
    "npz": frozenset({".npz"}),
    "conll": frozenset({".conll", ".tsv", ".txt", ".iob", ".iob2", ".bio"}),
}


def source_files(site: SiteData, base: Path) -> tuple[Path, ...]:
    """The files that the site's data is read from, in reading order.

    Raises:
        DataError: ``missing_file``, ``folder_not_allowed``, ``empty_folder``.
    """
    path = resolve(base, site.path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder (data.path = {site.path!r})", code="missing_file"
        )
    if not path.is_dir():
        return (path,)
    suffixes = _SUFFIXES.get(site.format)
    if suffixes is None:
        raise DataError(
            f"{path}: a folder, but data.format = {site.format!r} needs a file; "
            f"folders are read for {', '.join(_SUFFIXES)}",
            code="folder_not_allowed",
        )
    files = sorted(
        file for file in path.iterdir() if file.suffix in suffixes and file.name[0] != "."
    )
    if not files:
        raise DataError(
            f"{path}: no file ending in {', '.join(sorted(suffixes))}", code="empty_folder"
        )
    return tuple(files)


def read(site: SiteData, base: Path, wanted: frozenset[str], image_size: int | None) -> RawData:
    """Read a site's data.

    Args:
        site: where the data is and in which format.
        base: folder of the file that says so.
        wanted: columns of the federation's schema; others are skipped.
        image_size: height and width that npz images are scaled to; None leaves them.

    Returns:
        The data with renamed columns.

    Raises:
        DataError: a file is missing, damaged or malformed; ``rename_missing_column`` and
            ``rename_collision`` for a ``data.rename`` that does not fit the file.
    """
    files = source_files(site, base)
    backwards = {schema: column for column, schema in site.rename.items()}
    keep = frozenset(backwards.get(column, column) for column in wanted)
    contents = [(file, _content(file)) for file in files]
    if site.format == "npz":
        raw = _read_images(contents, keep, image_size)
    elif site.format == "conll":
        raw = _read_sentences(contents)
    else:
        file, data = contents[0]
        num_rows, columns, available = TABLE_READERS[site.format](data, file.name, keep)
        raw = RawData(file.name, file.parent, num_rows, columns, available)
    digests = tuple((file.name, sha256_hex(data)) for file, data in contents)
    return dataclasses.replace(_renamed(raw, site.rename), digests=digests)


def _content(file: Path) -> bytes:
    """The bytes of a file."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", code="unreadable_file") from error


def _renamed(raw: RawData, rename: Mapping[str, str]) -> RawData:
    """``raw`` under the federation's column names."""
    for column, schema in rename.items():
        if column not in raw.available:
            raise DataError(
                f"{raw.name}: data.rename names column {column!r}, which the file has not; "
                f"it has {list(raw.available)}",
                code="rename_missing_column",
            )
        if schema in raw.available and schema not in rename:
            raise DataError(
                f"{raw.name}: data.rename turns {column!r} into {schema!r}, "
                "but the file has a column of that name already",
                code="rename_collision",
            )
    if len(set(rename.values())) != len(rename):
        raise DataError(
            f"{raw.name}: data.rename turns two columns into one", code="rename_collision"
        )
    columns = {rename.get(column, column): cells for column, cells in raw.columns.items()}
    available = tuple(rename.get(column, column) for column in raw.available)
    return dataclasses.replace(raw, columns=columns, available=available)


def _read_images(
    contents: list[tuple[Path, bytes]], keep: frozenset[str], size: int | None
) -> RawData:
    """All npz files, one after the other."""
    stacks: list[Pixels] = []
    tables: list[dict[str, tuple[str, ...]]] = []
    common: list[str] = []
    for file, data in contents:
        images, columns, available = read_npz(data, file.name, keep)
        stacks.append(images if size is None else resize_all(images, size))
        part = {} if PART in available else {PART: (file.stem,) * len(images)}
        tables.append(columns | part)
        names = [*available, *part]
        common = names if len(tables) == 1 else [name for name in common if name in names]
    columns = {
        name: tuple(cell for table in tables for cell in table[name])
        for name in common
        if name in tables[0]
    }
    first = contents[0][0]
    name = first.name if len(contents) == 1 else first.parent.name
    pixels = _joined(name, stacks)
    return RawData(name, first.parent, len(pixels), columns, tuple(common), images=pixels)


def _joined(name: str, stacks: list[Pixels]) -> Pixels:
    """The images of several files in one array; colour if any file is in colour."""
    if len(stacks) == 1:
        return stacks[0]
    if len({images.shape[1:3] for images in stacks}) > 1:
        raise DataError(f"{name}: the files' images differ in size", code="images_shape")
    if len({images.shape[3] for images in stacks}) > 1:
        return stack([image for images in stacks for image in images])
    return np.concatenate(stacks)


def _read_sentences(contents: list[tuple[Path, bytes]]) -> RawData:
    """All files of tagged words, one after the other."""
    words: list[tuple[str, ...]] = []
    tags: list[tuple[str, ...]] = []
    parts: list[str] = []
    documents: list[str] = []
    for file, data in contents:
        sentences = read_conll(data, file.name)
        words += sentences.words
        tags += sentences.tags
        parts += [file.stem] * len(sentences.words)
        documents += [f"{file.stem}:{number}" if number else "" for number in sentences.documents]
    columns = {PART: tuple(parts)}
    if documents and all(documents):
        columns[DOCUMENT] = tuple(documents)
    first = contents[0][0]
    name = first.name if len(contents) == 1 else first.parent.name
    return RawData(
        name,
        first.parent,
        len(words),
        columns,
        tuple(columns),
        words=tuple(words),
        tags=tuple(tags),
    )
