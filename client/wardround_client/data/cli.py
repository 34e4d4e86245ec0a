"""``wardround data``: which public sets there are, and preparing one."""

import json
from pathlib import Path

import click

from wardround_client.data import catalogue
from wardround_client.data.entries import ENTRIES, Entry

_RAW = click.option(
    "--from",
    "--data",
    "raw",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder with local copies of source files [default: WARDROUND_DATA].",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def data() -> None:
    """Public data sets for simulations."""


@data.command("list")
@_RAW
@_JSON
def list_sets(raw: Path | None, *, as_json: bool) -> None:
    """Show the sets, their licences and whether they are at hand."""
    rows = [_row(entry, raw) for entry in ENTRIES.values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:<11} {row['title']}")
        for key in ("size", "sites", "licence", "source", "citation", "note", "state"):
            if row[key]:
                click.echo(f"            {key + ':':<10}{row[key]}")


def _row(entry: Entry, raw: Path | None) -> dict[str, str]:
    """One set for printing."""
    return {
        "name": entry.name,
        "title": entry.title,
        "size": entry.size,
        "sites": entry.sites,
        "licence": entry.licence,
        "source": entry.url,
        "citation": entry.citation,
        "note": entry.note,
        "state": _state(entry, raw),
    }


def _state(entry: Entry, raw: Path | None) -> str:
    """Prepared, available, or what to do."""
    if catalogue.ready(entry) is not None:
        return "prepared"
    if all(path is not None for path in catalogue.source_paths(entry, raw).values()):
        return f"available: wardround data get {entry.name}"
    return f"missing: {entry.obtain}"


@data.command("get")
@click.argument("name")
@_RAW
@_JSON
def get(name: str, raw: Path | None, *, as_json: bool) -> None:
    """Prepare the set NAME from an installed package or from local copies."""
    prepared = catalogue.find(name, raw)
    about = prepared.description
    result = {
        "name": prepared.name,
        "format": prepared.format,
        "path": str(prepared.path),
        "licence": about.licence,
        "citation": about.citation,
        "note": about.note,
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for key, value in result.items():
        if value:
            click.echo(f"{key + ':':<10}{value}")
