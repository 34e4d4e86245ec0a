"""The command ``wardround`` and the verbs that need no model: explain, schema, validate.

1. Verbs are entry points of the group ``wardround.verbs``. A verb's module is imported only when
   the verb runs or its own help is shown, so ``wardround --help`` imports no torch.
2. Telemetry, update checks and downloads of the libraries are off before any verb is imported.
3. Exit status: 0 done, 1 the run failed or was abandoned, 2 bad input (a message, no traceback),
   130 interrupted. With ``--json`` an error is one JSON object on standard error.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

import click

from wardround_common import __version__
from wardround_common.errors import ConfigError, WardroundError
from wardround_common.spec import explain as documentation
from wardround_common.spec.load import load_federation
from wardround_common.spec.outline import FileKind
from wardround_common.spec.summary import summarise, summary_text

ENVIRONMENT: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
VERB_GROUP: Final = "wardround.verbs"
# What each verb does, here so that the list of verbs imports none of them.
VERBS: Final = {
    "validate": "Check a federation file and say what it asks for.",
    "simulate": "Run a whole federation on this machine.",
    "report": "Make the report of a run again.",
    "site": "Run a hospital's worker and node, and see how they are.",
    "aggregator": "Run a federation over the network.",
    "audit": "Show, verify and export an audit log.",
    "data": "List and fetch public data sets.",
    "backbone": "List, import and show pretrained models.",
    "explain": "Print the documentation of a key.",
    "schema": "Print the JSON Schema of a file.",
}


class VerbGroup(click.Group):
    """The verbs that are installed, found by name and imported late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed verbs: the known ones in order of use, then any others."""
        del ctx
        installed = {entry.name for entry in _verbs()}
        return [name for name in VERBS if name in installed] + sorted(installed - set(VERBS))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb.

        Raises:
            ConfigError: the part of the product that has the verb is not installed.
        """
        del ctx
        entry = next((entry for entry in _verbs() if entry.name == cmd_name), None)
        return None if entry is None else _imported(entry)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        rows = [(name, VERBS.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)


def _verbs() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=VERB_GROUP))


def _imported(entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("wardround_"):
            raise ConfigError(
                f"{entry.name}: this installation lacks the part that has this verb",
                code="verb_not_installed",
            ) from None
        raise
    assert isinstance(command, click.Command)
    return command


@click.group(
    cls=VerbGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="wardround")
def wardround() -> None:
    """Federated fine-tuning for hospitals: one shared model, no patient data moved.

    `wardround VERB --help` explains a verb.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: the words behind ``wardround``.

    Returns:
        The exit status.
    """
    os.environ.update(ENVIRONMENT)
    as_json = "--json" in arguments
    try:
        status = wardround.main(args=list(arguments), standalone_mode=False)
    except WardroundError as error:
        _show_error(str(error), error.code, as_json=as_json)
        return error.exit_status
    except click.UsageError as error:
        if as_json:
            _show_error(error.format_message(), "usage", as_json=True)
        else:
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _show_error("interrupted", "interrupted", as_json=as_json)
        return 130
    return status if isinstance(status, int) else 0


def _show_error(message: str, code: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": {"code": code, "message": message}}), err=True)
        return
    for line in message.splitlines() or [code]:
        click.echo(f"error: {line}", err=True)


def main() -> None:
    """The command ``wardround``."""
    sys.exit(run(sys.argv[1:]))


@click.command()
@click.argument("federation_file", type=click.Path(path_type=Path), metavar="FED.toml")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate(federation_file: Path, *, as_json: bool) -> None:
    """Check a federation file and say what it asks for.

    Prints who takes part, what is trained, what crosses the wire, and the digest that names this
    federation in every report. Exit status 2 and one line per problem if the file is wrong.
    """
    summary = summarise(load_federation(federation_file))
    click.echo(json.dumps(summary, indent=2) if as_json else summary_text(summary))


@click.command()
@click.argument("key", default="", metavar="[KEY]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(key: str, *, as_json: bool) -> None:
    """Print the documentation of a key of a federation or site file.

    KEY is dotted, as in rounds.quorum_sites, tuning.lora.rank or tuning. Keys of site.toml start
    with `site.`, those of policy.toml with `policy.`. Without KEY the tables are listed.
    """
    text = documentation.explain(key)
    click.echo(json.dumps({"key": key, "text": text}, indent=2) if as_json else text)


@click.command()
@click.argument("file", type=click.Choice(["federation", "site", "policy"]))
@click.option("--json", "as_json", is_flag=True, help="Accepted; the output is JSON anyway.")
def schema(file: FileKind, *, as_json: bool) -> None:
    """Print the JSON Schema of federation.toml, site.toml or policy.toml, for editors."""
    del as_json
    click.echo(documentation.schema_json(file))
