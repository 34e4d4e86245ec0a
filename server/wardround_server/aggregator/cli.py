"""``wardround aggregator``: what the centre of a consortium runs."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from wardround_server.aggregator.folder import AggregatorFolder

_FOLDER = click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
_RUN = click.argument("run")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_DOORS = click.Choice(["none", "nginx"])


@click.group()
def aggregator() -> None:
    """The centre: lets sites in, runs federations over the network, writes their reports."""


@aggregator.command()
@_FOLDER
@click.option("--host", required=True, help="Name or address under which sites reach it.")
@click.option("--name", default="consortium", show_default=True, help="The consortium.")
@click.option("--front-door", "door", type=_DOORS, default="none", show_default=True)
@click.option("--port", type=click.IntRange(1, 65_535), help="Of the front door [443].")
@click.option("--superlink-port", type=click.IntRange(1, 65_535), help="On loopback [8000].")
@click.option("--enrolment-port", type=click.IntRange(1, 65_535), help="On loopback [8001].")
@click.option(
    "--stream-port", type=click.IntRange(1, 65_535), help="Turns the tensor stream on, here."
)
def init(  # noqa: PLR0917  click passes by name
    folder: Path,
    host: str,
    name: str,
    door: str,
    port: int | None,
    superlink_port: int | None,
    enrolment_port: int | None,
    stream_port: int | None,
) -> None:
    """Make DIR: its file, the consortium's authority, certificates and secrets."""
    from wardround_server.aggregator.folder import AggregatorFolder
    from wardround_server.aggregator.setup import make_aggregator, spec_of

    spec = spec_of(
        name=name,
        host=host,
        superlink_port=superlink_port,
        enrolment_port=enrolment_port,
        front_door={"kind": door} | ({} if port is None else {"port": port}),
        stream=None if stream_port is None else {"port": stream_port},
    )
    made = AggregatorFolder(folder.resolve())
    make_aggregator(made, spec)
    click.echo(f"{made.file}: how it runs; `wardround explain aggregator` lists all keys")
    for key in ("ca.key", "coordinator.key"):
        click.echo(f"{made.path / 'pki' / key}: keep a copy of it, and keep it to yourself")
    click.echo(f"next: wardround aggregator up {folder}")


@aggregator.command()
@_FOLDER
@click.argument("site", metavar="SITE")
@click.option(
    "--days",
    type=click.FloatRange(0, 90, min_open=True),
    default=7.0,
    show_default=True,
    help="How long the token can be used.",
)
@click.option(
    "--address", help="HOST:PORT under which the site reaches this, instead of the file's."
)
@_JSON
def invite(folder: Path, site: str, days: float, address: str | None, *, as_json: bool) -> None:
    """Make a token by which SITE enrols, once.

    Hand it over by a channel that only the site reads. For a site that is let in already it is leave
    to come with new keys.
    """
    from wardround_server.aggregator.invitations import Invitations
    from wardround_server.aggregator.setup import enrolment_address, named_site

    opened = _opened(folder)
    enrol_at = enrolment_address(opened.load(), address)
    name = named_site(site)
    token = Invitations(opened).make(name, enrol_at, days=days, address=address).to_text()
    if as_json:
        click.echo(json.dumps({"site": name, "token": token, "days": days}))
        return
    click.echo(token)
    click.echo(f"at the site, within {days:g} days: wardround site enrol SITE.toml --token TOKEN")


@aggregator.command()
@_FOLDER
@click.argument("request", type=click.Path(path_type=Path), metavar="NAME.request.json")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Where to write the kit."
)
@click.option("--address", help="HOST:PORT in the kit, instead of the file's.")
def certify(folder: Path, request: Path, out: Path, address: str | None) -> None:
    """Let a site in by files, without a token: certify its request and write the kit to send back.

    Compare the fingerprint with the site, by telephone, before you send the kit.
    """
    from wardround_common.enrolment import read_request
    from wardround_server.aggregator.setup import kit_for, write_kit
    from wardround_server.aggregator.sites import SiteRegister

    opened, wanted = _opened(folder), read_request(request)
    register = SiteRegister(opened)
    again = register.find(wanted.site) is not None
    kit = kit_for(opened, register.let_in(wanted), address)
    write_kit(out, kit)
    click.echo(f"site         {kit.site}{' (again)' if again else ''}")
    click.echo(f"fingerprint  {wanted.fingerprint}")
    click.echo(f"coordinator  {kit.coordinator}")
    click.echo(f"kit          {out}")


@aggregator.command()
@_FOLDER
@click.argument("site", metavar="SITE")
@_JSON
def revoke(folder: Path, site: str, *, as_json: bool) -> None:
    """Let SITE in no more: at once, everywhere, and its open tokens are cancelled.

    What it contributed before stays in the models; runs go on without it if their quorum allows.
    """
    from wardround_server.aggregator.invitations import Invitations
    from wardround_server.aggregator.sites import SiteRegister

    opened = _opened(folder)
    SiteRegister(opened).revoke(site)
    cancelled = Invitations(opened).cancel(site)
    words = f"{site}: let in no more; {cancelled} open tokens cancelled"
    click.echo(json.dumps({"site": site, "cancelled": cancelled}) if as_json else words)


@aggregator.command()
@_FOLDER
@_JSON
def sites(folder: Path, *, as_json: bool) -> None:
    """List the sites that are let in, with what to compare by telephone, and those invited."""
    from wardround_server.aggregator.membership import membership

    found = membership(_opened(folder))
    lines = [line for each in found for line in each.to_lines()]
    click.echo(json.dumps([asdict(each) for each in found]) if as_json else "\n".join(lines))


@aggregator.command()
@_FOLDER
@click.option("--front-door", "door", type=_DOORS, help="Instead of the file's.")
def up(folder: Path, door: Literal["none", "nginx"] | None) -> None:
    """Keep the aggregator running until it is told to end (SIGTERM, Ctrl-C)."""
    from wardround_server.aggregator.supervisor import run_aggregator

    run_aggregator(_opened(folder), door)


@aggregator.command()
@_FOLDER
@click.argument("federation", type=click.Path(path_type=Path), metavar="FED.toml")
@click.option("--name", help="What the run is called [the federation's name].")
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
@_JSON
def run(folder: Path, federation: Path, name: str | None, *, detach: bool, as_json: bool) -> int:
    """Run FED.toml with the sites of its roster."""
    from wardround_common.spec.load import load_federation
    from wardround_server.aggregator.records import new_run
    from wardround_server.aggregator.waiting import require_up, watch_run

    opened, spec = _opened(folder), load_federation(federation)
    require_up(opened)
    record = new_run(opened, federation, name or spec.federation.name)
    if not as_json:
        click.echo(f"run {record.run}")
    elif detach:
        click.echo(json.dumps({"run": record.run, "folder": str(record.path)}))
    return 0 if detach else watch_run(opened, record, sys.stdout, as_json=as_json)


@aggregator.command()
@_FOLDER
@_RUN
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
@_JSON
def resume(folder: Path, run: str, *, detach: bool, as_json: bool) -> int:
    """Go on with a run that failed or was stopped; the result is as if it never had."""
    from wardround_server.aggregator.records import find_run
    from wardround_server.aggregator.waiting import require_up, watch_run

    opened = _opened(folder)
    record = find_run(opened, run)
    require_up(opened)
    record.reopen()
    return 0 if detach else watch_run(opened, record, sys.stdout, as_json=as_json)


@aggregator.command()
@_FOLDER
@_RUN
def stop(folder: Path, run: str) -> None:
    """End a run; its sites stop what they compute for it."""
    from wardround_server.aggregator.records import find_run
    from wardround_server.aggregator.waiting import stop_run

    stop_run(find_run(_opened(folder), run))


@aggregator.command()
@_FOLDER
@_RUN
@click.argument("site", metavar="SITE")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE.json")
@_JSON
def head(folder: Path, run: str, site: str, out: Path, *, as_json: bool) -> None:
    """Write the newest head of a site's audit log that came with its answers in a run.

    With it the site proves, or cannot prove, that its log is what it was then:
    `wardround audit verify DIR --head FILE.json`.
    """
    from wardround_server.aggregator.heads import newest_head
    from wardround_server.aggregator.records import find_run

    found = newest_head(find_run(_opened(folder), run).path, site)
    out.write_bytes(found.to_bytes())
    words = f"{out}: {found.size} entries, key {found.key}"
    click.echo(json.dumps(found.model_dump()) if as_json else words)


@aggregator.command()
@_FOLDER
@_JSON
def status(folder: Path, *, as_json: bool) -> int:
    """Say how everything is. Exit status 1 if something that should run does not."""
    from wardround_server.aggregator.status import read_state

    state = read_state(_opened(folder))
    click.echo(state.to_json() if as_json else state.to_text())
    return int(not state.is_well)


def _opened(folder: Path) -> "AggregatorFolder":
    from wardround_server.aggregator.folder import AggregatorFolder

    opened = AggregatorFolder(folder.resolve())
    opened.load()
    return opened
