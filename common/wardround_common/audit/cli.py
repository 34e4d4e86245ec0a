"""``wardround audit``: what has left, what was refused, and whether the log is what it was."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click

from wardround_common.audit.entries import Entry
from wardround_common.audit.heads import SignedHead, parse_head
from wardround_common.audit.verify import HEAD, LOG, Verified, verified
from wardround_common.errors import ConfigError

_FOLDER = click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def audit() -> None:
    """An audit log: DIR is the folder `audit` of a site's worker, an aggregator or one of its runs."""


@audit.command()
@_FOLDER
@click.option("--run", default="", help="Only of this run.")
@click.option("--event", default="", help="Only of this kind, such as update_released.")
@_JSON
def show(folder: Path, run: str, event: str, *, as_json: bool) -> int:
    """Print the entries, the oldest first. Exit status 1 if the log is damaged."""
    found = _verified(folder, ())
    for entry in found.entries:
        if (run and entry.fields.get("run") != run) or (event and entry.event != event):
            continue
        click.echo(json.dumps(_flat(entry)) if as_json else _line(entry))
    return _told(found, as_json=True) if found.bad is not None else 0


@audit.command()
@_FOLDER
@click.option(
    "--head",
    "heads",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="A head of this log that somebody else has kept; may be given several times.",
)
@_JSON
def verify(folder: Path, heads: tuple[Path, ...], *, as_json: bool) -> int:
    """Check every entry, the log's own head, and heads that others have kept.

    Names the first bad entry. Exit status 1 if there is one.
    """
    return _told(_verified(folder, heads), as_json=as_json)


@audit.command()
@_FOLDER
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.csv")
@_JSON
def export(folder: Path, out: Path, *, as_json: bool) -> int:
    """Write the entries as a table for a spreadsheet, and beside it the signed head."""
    found = _verified(folder, ())
    rows = [_flat(entry) for entry in found.entries]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    out.write_text(text.getvalue())
    head = folder / HEAD
    if head.exists():
        out.with_suffix(".head.json").write_bytes(head.read_bytes())
    words = f"{out}: {len(rows)} entries"
    click.echo(json.dumps({"file": str(out), "entries": len(rows)}) if as_json else words)
    return _told(found, as_json=as_json) if found.bad is not None else 0


@audit.command()
@_FOLDER
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.html")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last day.")
@_JSON
def review(
    folder: Path, out: Path, since: datetime | None, until: datetime | None, *, as_json: bool
) -> int:
    """Write a page for a privacy officer: what left, what was refused, what was decided."""
    from wardround_common.audit.review import render_review

    found = _verified(folder, ())
    first, last = (f"{day:%Y-%m-%d}" if day else "" for day in (since, until))
    out.write_text(render_review(found, folder, since=first, until=last))
    words = f"{out}: a review of {len(found.entries)} entries"
    click.echo(json.dumps({"file": str(out), "entries": len(found.entries)}) if as_json else words)
    return _told(found, as_json=as_json) if found.bad is not None else 0


def _verified(folder: Path, heads: tuple[Path, ...]) -> Verified:
    if not (folder / LOG).exists():
        raise ConfigError(
            f"{folder}: there is no {LOG}; name a folder `audit`: of a worker's state, an "
            "aggregator or one of its runs",
            code="no_audit_log",
        )
    return verified(folder, list(_heads(heads)))


def _heads(files: tuple[Path, ...]) -> Iterator[SignedHead]:
    for file in files:
        try:
            yield parse_head(file.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"{file}: cannot be read: {error.strerror}", code="audit_unreadable"
            ) from None


def _told(found: Verified, *, as_json: bool) -> int:
    size, root = found.tree.size, found.tree.root.hex()
    bad = None if found.bad is None else {"index": found.bad.index, "code": found.bad.code}
    if as_json:
        click.echo(
            json.dumps(
                {
                    "entries": size,
                    "root": root,
                    "gone": found.num_gone,
                    "unchecked": found.num_unchecked,
                    "bad": bad,
                }
            )
        )
    elif found.bad is None:
        click.echo(f"{size} entries, all as they were written; root {root}")
    else:
        click.echo(f"entry {found.bad.index} is bad ({found.bad.code}); {found.bad.index} are good")
    if found.num_gone and not as_json:
        click.echo(f"{found.num_gone} entries before them were let go by the retention setting")
    if found.num_unchecked and not as_json:
        click.echo(f"{found.num_unchecked} of the heads are of those: nothing can be said by them")
    if found.has_torn_line and not as_json:
        click.echo("the last line has no end: a crash, before anybody was told of it")
    return int(found.bad is not None)


def _flat(entry: Entry) -> dict[str, object]:
    return {"index": entry.index, "at": entry.at, "event": entry.event, **entry.fields}


def _line(entry: Entry) -> str:
    fields = "  ".join(f"{key}={_short(value)}" for key, value in entry.fields.items())
    return f"{entry.index:6} {entry.at[:19]}  {entry.event:16} {fields}"


def _short(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
