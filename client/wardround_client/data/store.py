"""Where prepared data lies, and how it gets there whole.

A prepared set is a folder with ``dataset.toml``, which names the format, the file and the digest
of every file. It is written under a temporary name and renamed when complete: a folder without a
readable ``dataset.toml``, or with a file that does not match it, is never taken for done.
"""

import json
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from wardround_common.cache import cache_folder
from wardround_common.durable import fsync_folder, write_file
from wardround_common.errors import DataError
from wardround_common.spec.base import Table
from wardround_common.spec.site import DataFormat
from wardround_common.types import sha256_hex

DESCRIPTION = "dataset.toml"


class DatasetFile(Table):
    """``dataset.toml``."""

    format: DataFormat = Field(description="As data.format of a site file.")
    path: str = Field(min_length=1, description="The data, relative to this file.")
    name: str = ""
    title: str = ""
    source: str = ""
    licence: str = ""
    citation: str = ""
    sites: str = ""
    note: str = ""
    recipe: str = Field("", description="What it was made from and how; set by Wardround.")
    files: dict[str, str] = Field(
        default_factory=dict, description="File, relative to this one -> its SHA-256."
    )


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """Data that a simulation can use.

    Attributes:
        name: the public set's name, or the folder's.
        folder: where ``dataset.toml`` is.
        format: as ``data.format`` of a site file.
        path: the data, absolute.
        description: the whole of ``dataset.toml``.
    """

    name: str
    folder: Path
    format: DataFormat
    path: Path
    description: DatasetFile


def store_folder() -> Path:
    """The folder of prepared sets: ``$WARDROUND_CACHE/data`` or ``~/.cache/wardround/data``."""
    return cache_folder() / "data"


def open_set(folder: Path) -> PreparedSet:
    """Open prepared data and check the digests that its description lists.

    Raises:
        DataError: ``missing_dataset``, ``dataset_malformed``, ``dataset_damaged``.
    """
    file = folder / DESCRIPTION
    try:
        description = DatasetFile.model_validate(tomllib.loads(file.read_text("utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file", code="missing_dataset") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{file}: {key}: {first['msg']}", code="dataset_malformed") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a readable TOML file", code="dataset_malformed") from error
    for name, digest in description.files.items():
        content = folder / name
        if not content.is_file() or sha256_hex(content.read_bytes()) != digest:
            raise DataError(
                f"{content}: missing, or not the file that {DESCRIPTION} describes "
                f"(sha256 {digest}); prepare the set again",
                code="dataset_damaged",
            )
    path = (folder / description.path).resolve()
    if not path.exists():
        raise DataError(f"{file}: path: {path} does not exist", code="dataset_damaged")
    name = description.name or folder.name
    return PreparedSet(name, folder, description.format, path, description)


def write_set(folder: Path, files: Mapping[str, bytes], description: Mapping[str, str]) -> None:
    """Write a prepared set so that it is there whole or not at all.

    Args:
        folder: its final place; what is there already is replaced.
        files: path relative to ``folder`` -> content.
        description: the text fields of ``dataset.toml``.

    Raises:
        DataError: ``store_not_writable``.
    """
    digests = {name: str(sha256_hex(data)) for name, data in files.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            fresh = Path(place) / "new"
            fresh.mkdir()
            for name, data in files.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                write_file(fresh / name, data)
            write_file(fresh / DESCRIPTION, _description_bytes(description, digests))
            if folder.exists():
                folder.rename(Path(place) / "old")
            fresh.rename(folder)
            fsync_folder(folder.parent)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); set WARDROUND_CACHE to a folder "
            "of yours",
            code="store_not_writable",
        ) from error


def _description_bytes(description: Mapping[str, str], digests: Mapping[str, str]) -> bytes:
    """``dataset.toml``; a JSON string in ASCII is a TOML string."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in description.items()]
    lines += ["", "[files]"]
    lines += [f"{json.dumps(name)} = {json.dumps(digest)}" for name, digest in digests.items()]
    return ("\n".join(lines) + "\n").encode("ascii")
