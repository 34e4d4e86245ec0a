"""The verbs of the coordinator and the researcher: simulate, report."""

import json
import sys
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from wardround_common.errors import ConfigError
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.load import load_federation


@click.command()
@click.argument("federation", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run [runs/NAME].")
@click.option("--data", type=click.Path(path_type=Path), help="Local copies of public data.")
@click.option("--resume", is_flag=True, help="Go on with the run that is in the folder.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the file's seed.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that sites compute in; the model is the same for any number.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This machine, or Flower's runtime on Ray (the cluster at RAY_ADDRESS, if set).",
)
@click.option(
    "--gpus",
    type=click.FloatRange(min=0.0),
    default=0.0,
    show_default=True,
    help="Share of a GPU that each process takes on Ray.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Progress and result as JSON lines.")
def simulate(  # noqa: PLR0917  click passes by name
    federation: Path,
    out: Path | None,
    data: Path | None,
    resume: bool,
    seed: int | None,
    workers: int,
    engine: Literal["local", "ray"],
    gpus: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run FEDERATION on this machine: every site, every round, and the report."""
    from wardround_common.cache import cache_folder
    from wardround_server.progress import JsonObserver, QuietObserver, RichObserver
    from wardround_server.report.terminal import print_table
    from wardround_server.simulation.simulate import SimulationPlan, simulate_federation

    spec = with_seed(load_federation(federation), seed)
    folder = out or Path("runs") / spec.federation.name
    console, errors = Console(), Console(stderr=True)
    plan = SimulationPlan(
        spec,
        base=federation.resolve().parent,
        raw=data,
        out=folder,
        cache=cache_folder() / "features",
        resume=resume,
        on_failure=lambda site, error: errors.print(f"{site}: {error}", markup=False),
        workers=workers,
        engine=engine,
        gpus=gpus,
    )
    if as_json:
        result = simulate_federation(plan, JsonObserver(sys.stdout))
        ended = {"report": str(folder / "report.json"), "model_sha256": result.model_sha256}
        click.echo(json.dumps({"event": "run_ended", **ended}))
        return
    if quiet:
        result = simulate_federation(plan, QuietObserver())
    else:
        with RichObserver(errors, spec) as observer:
            result = simulate_federation(plan, observer)
    print_table(result, console)
    console.print(f"model  {result.model_sha256}")
    console.print(f"report {folder / 'report.html'}", soft_wrap=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print report.json.")
def report(folder: Path, as_json: bool) -> None:
    """Print the report of the run in FOLDER and write its page anew."""
    from wardround_common.durable import write_file
    from wardround_server.report.html import render_html
    from wardround_server.report.model import read_report, report_bytes
    from wardround_server.report.terminal import print_table

    found = read_report(folder / "report.json")
    if as_json:
        click.echo(report_bytes(found).decode(), nl=False)
        return
    write_file(folder / "report.html", render_html(found).encode())
    print_table(found, Console())


def with_seed(spec: FederationSpec, seed: int | None) -> FederationSpec:
    """The same federation under another seed.

    Raises:
        ConfigError: the seed is not one that a file could have.
    """
    if seed is None:
        return spec
    if seed >= 2**63:
        raise ConfigError(f"--seed {seed}: allowed 0 to 2^63 - 1", code="seed_range")
    federation = spec.federation.model_copy(update={"seed": seed})
    return spec.model_copy(update={"federation": federation})
