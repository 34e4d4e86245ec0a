"""``wardround backbone``: which pretrained weights are on this machine."""

import dataclasses
import json
from pathlib import Path

import click

from wardround_common.backbones.refs import Ref, parse_ref
from wardround_common.backbones.store import Entry, entries, file_digest
from wardround_common.errors import BackboneError, ConfigError
from wardround_common.types import Digest

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def backbone() -> None:
    """List, show and import pretrained backbones."""


@backbone.command("list")
@_json
def list_(as_json: bool) -> None:
    """List the known packages and the imported weights."""
    rows = [*_package_rows(), *(_entry_row(entry) for entry in entries() if not _packaged(entry))]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['ref']:<48} {row['state']:<14} {row['licence'] or '':<12} {row['sha256'] or ''}"
        )


@backbone.command("show")
@click.argument("ref")
@click.option("--sha256", help="Which weights, where several are imported for one architecture.")
@_json
def show(ref: str, sha256: str | None, as_json: bool) -> None:
    """Show the digest, size and blocks of the backbone REF."""
    from wardround_common.backbones.registry import describe

    info = dataclasses.asdict(describe(ref, sha256))
    info["path"] = str(info["path"])
    if as_json:
        click.echo(json.dumps(info, indent=2))
        return
    info["blocks"] = ", ".join(info["blocks"])
    info["licence"] = info["licence"] or "unknown"
    for key, value in info.items():
        click.echo(f"{key:<12} {value}")


@backbone.command("import")
@click.argument("ref")
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path),
    help="Safetensors file with the weights of a timm: or torchvision: architecture.",
)
@_json
def import_(ref: str, file: Path | None, as_json: bool) -> None:
    """Take weights into the store and print the digest to pin.

    timm:ARCHITECTURE and torchvision:ARCHITECTURE need --from FILE. package:NAME converts the
    checkpoint that the installed package holds.
    """
    text, sha256 = _import(parse_ref(ref), file)
    if as_json:
        click.echo(json.dumps({"ref": text, "sha256": sha256}, indent=2))
    else:
        click.echo(f'ref = "{text}"\nsha256 = "{sha256}"')


def _import(ref: Ref, file: Path | None) -> tuple[str, Digest]:
    """The reference and the digest to pin."""
    from wardround_common.backbones.sources import import_file, import_package

    match ref.scheme:
        case "timm" | "torchvision" if file is not None:
            return ref.text, import_file(ref, ref.scheme, file).sha256
        case "package" if file is None:
            return ref.text, import_package(ref)
        case "timm" | "torchvision":
            message = f"{ref.text}: name the weights with --from FILE.safetensors"
        case "package":
            message = f"{ref.text}: --from is for timm: and torchvision: only"
        case _:
            message = f"{ref.text} is read where it is; only timm:, torchvision: and package: are imported"
    raise ConfigError(message, code="backbone_import")


def _package_rows() -> list[dict[str, str | None]]:
    from wardround_common.backbones.packages import PACKAGES

    return [
        {
            "ref": f"package:{name}",
            "state": "installed" if (digest := _packaged_digest(name)) else "not installed",
            "licence": known.licence,
            "sha256": digest,
        }
        for name, known in PACKAGES.items()
    ]


def _packaged_digest(name: str) -> Digest | None:
    from wardround_common.backbones.packages import packaged_file

    try:
        return file_digest(packaged_file(name))
    except BackboneError:
        return None


def _entry_row(entry: Entry) -> dict[str, str | None]:
    return {"ref": entry.ref, "state": "imported", "licence": None, "sha256": entry.sha256}


def _packaged(entry: Entry) -> bool:
    return entry.ref.startswith("package:")
