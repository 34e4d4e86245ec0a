"""Loads a site's examples: read, check, deal out (simulation), split.

A file is parsed once a process, however many simulated sites share it: parsed data is kept under
its path and what is asked of it, and is used again only while every file that it came from has the
size and time of change that it had.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wardround_client.data.findings import Finding
from wardround_client.data.readers import read, source_files
from wardround_client.data.remarks import part_warnings
from wardround_client.data.schema import Checked, check, columns_needed
from wardround_client.data.shared import share_out, sharing_warnings, whole
from wardround_client.data.split import Parts, SiteExamples
from wardround_client.data.subjects import tabulate
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import ConfigError, DataError
from wardround_common.modalities.base import Examples, IntArray
from wardround_common.spec.data import ColumnPartition, ImageData
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.site import SharedPart, SiteData, SiteSpec, resolve
from wardround_common.types import Digest, sha256_hex

_KEPT = 4
_Stamps = tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class _Parsed:
    """Checked data, the state of its files when it was read, and the plans made of it."""

    checked: Checked
    stamps: _Stamps
    plans: dict[bytes, tuple[Parts, ...]] = field(default_factory=dict)


_parsed: OrderedDict[bytes, _Parsed] = OrderedDict()
_lock = threading.Lock()


def load_site(federation: FederationSpec, site: SiteSpec, base: Path) -> SiteExamples:
    """The examples of one site.

    Args:
        federation: the schema and task.
        site: the site's own file (or the simulator's description of it).
        base: folder that ``site.data.path`` is relative to.

    Returns:
        Training, validation and test part, with warnings.

    Raises:
        DataError: the data is missing, damaged or not as declared.
        ConfigError: the site's share of shared data is impossible.
    """
    shared = site.data.shared_part
    with _lock:
        parsed = _parse(federation, site.data, base)
        if shared is None:
            parts = whole(parsed.checked, federation.data)
        else:
            parts = _plan(parsed, federation, shared)[_place(site.name, shared)]
    if not len(parts.train):
        raise DataError(
            f"{site.data.path}: no training row; look at data.split and its column",
            code="no_training_rows",
        )
    owner = None if shared is None else site.name
    return _site_examples(parsed.checked, [parts], federation, site.data, owner)


def load_pooled(federation: FederationSpec, site: SiteSpec, base: Path) -> SiteExamples:
    """The examples of all sites together: the reference that only a simulation can have.

    Args:
        federation: the schema and task.
        site: any site of the simulation; its ``data.shared_part`` names the roster.
        base: folder that ``site.data.path`` is relative to.

    Returns:
        Each part is the sites' parts one after the other in roster order; subjects of different
        sites have different codes.

    Raises:
        DataError: as for :func:`load_site`.
        ConfigError: ``not_shared`` where the site's data is its own.
    """
    shared = site.data.shared_part
    if shared is None:
        raise ConfigError(
            "pooled training needs shared data (data.shared_part); real sites cannot be pooled",
            code="not_shared",
        )
    with _lock:
        parsed = _parse(federation, site.data, base)
        plan = _plan(parsed, federation, shared)
    return _site_examples(parsed.checked, plan, federation, site.data, None)


def _site_examples(
    checked: Checked,
    parts: Sequence[Parts],
    federation: FederationSpec,
    site: SiteData,
    owner: str | None,
) -> SiteExamples:
    """The union of ``parts`` with fresh subject codes."""
    train = _joined(checked.examples, [each.train for each in parts])
    validation = _joined(checked.examples, [each.validation for each in parts])
    test = _joined(checked.examples, [each.test for each in parts])
    shared_warnings: tuple[Finding, ...] = ()
    if site.shared_part is not None:
        shared_warnings = sharing_warnings(checked, site.shared_part)
    findings = (
        *checked.findings,
        *shared_warnings,
        *part_warnings(train, validation, test, federation.task),
    )
    digest = _digest(checked, federation, site, owner, parts)
    return SiteExamples(train, validation, test, findings, digest)


def _joined(examples: Examples, rows: Sequence[IntArray]) -> Examples:
    """``examples`` at all ``rows``; subjects numbered afresh, apart for each site."""
    sites = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    selected = examples.select(np.concatenate(rows))
    apart = selected.subjects * len(rows) + sites
    codes = tabulate(apart, np.zeros(len(apart), dtype=np.int64)).codes
    return Examples(selected.inputs, selected.targets, codes, selected.identities)


def _place(name: str, shared: SharedPart) -> int:
    """The place of a site in the roster."""
    if name not in shared.sites:
        raise ConfigError(
            f"site {name!r} is not among data.shared_part.sites {list(shared.sites)}",
            code="unknown_site",
        )
    return shared.sites.index(name)


def _plan(parsed: _Parsed, federation: FederationSpec, shared: SharedPart) -> tuple[Parts, ...]:
    """The parts of all sites; made once for each way of sharing."""
    key = canonical_bytes(shared.model_dump(mode="json"))
    if key not in parsed.plans:
        parsed.plans[key] = share_out(parsed.checked, federation.data, shared)
    return parsed.plans[key]


def _parse(federation: FederationSpec, site: SiteData, base: Path) -> _Parsed:
    """The checked data, from memory where its files have not changed."""
    data, task = federation.data, federation.task
    extra = _extra_columns(site)
    key = canonical_bytes(
        {
            "path": str(resolve(base, site.path)),
            "site": site.model_dump(mode="json", exclude={"shared_part", "path"}),
            "extra": list(extra),
            "data": data.model_dump(mode="json"),
            "task": task.model_dump(mode="json"),
        }
    )
    known = _parsed.get(key)
    files = source_files(site, base)
    if known is not None and known.stamps == _stamps(files, known.checked):
        _parsed.move_to_end(key)
        return known
    wanted = frozenset((*columns_needed(data), *extra))
    before = _stamps(files, None)
    size = data.size if isinstance(data, ImageData) else None
    checked = check(read(site, base, wanted, size), data, task, extra)
    if _stamps(files, None) != before:
        raise DataError(
            f"{site.path}: changed while it was read; start again", code="changed_while_read"
        )
    _parsed[key] = parsed = _Parsed(checked, _stamps(files, checked))
    while len(_parsed) > _KEPT:
        _parsed.popitem(last=False)
    return parsed


def _extra_columns(site: SiteData) -> tuple[str, ...]:
    """Columns that only the partition needs."""
    partition = site.shared_part.partition if site.shared_part is not None else None
    return (partition.column,) if isinstance(partition, ColumnPartition) else ()


def _stamps(files: Sequence[Path], checked: Checked | None) -> _Stamps:
    """Name, size and time of change of every file, images of a manifest included."""
    names = {file.name for file in files}
    folder = files[0].parent
    images = [] if checked is None else [folder / n for n, _ in checked.digests if n not in names]
    stamps: list[tuple[str, int, int]] = []
    for file in (*files, *images):
        try:
            status = file.stat()
        except OSError:
            stamps.append((str(file), -1, -1))
        else:
            stamps.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(stamps)


def _digest(
    checked: Checked,
    federation: FederationSpec,
    site: SiteData,
    owner: str | None,
    parts: Sequence[Parts],
) -> Digest:
    """Names what was read and which rows of it are in which part, wherever the files lie."""
    rows = [row for each in parts for row in (each.train, each.validation, each.test)]
    shared = None if site.shared_part is None else site.shared_part.model_dump(mode="json")
    value = {
        "files": [list(pair) for pair in checked.digests],
        "format": site.format,
        "rename": site.rename,
        "data": federation.data.model_dump(mode="json"),
        "task": federation.task.model_dump(mode="json"),
        "shared": shared,
        "owner": owner,
        "rows": [sha256_hex(np.ascontiguousarray(part, dtype="<i8").tobytes()) for part in rows],
    }
    return sha256_hex(canonical_bytes(value))
