"""``wardround site``: what a hospital runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wardround_client.policy.papers import Approval

_FILE = click.argument("site_file", type=click.Path(path_type=Path), metavar="SITE.toml")


@click.group()
def site() -> None:
    """One hospital: the process with its data, and the process with the network."""


@site.command()
@_FILE
@click.option("--socket", type=click.Path(path_type=Path), help="Instead of the file's.")
@click.option("--allow-network", is_flag=True, help="Start although there is a network (trials).")
def worker(site_file: Path, socket: Path | None, *, allow_network: bool) -> None:
    """Run the process that reads the data. It has no network and answers on a Unix socket.

    What goes wrong in detail is written to failures.txt in its state folder.
    """
    from wardround_client.worker.process import run_worker

    run_worker(site_file, socket=socket, allow_network=allow_network)


@site.command()
@_FILE
@click.option("--same-user", is_flag=True, help="Start although the data can be read (trials).")
def node(site_file: Path, *, same_user: bool) -> None:
    """Run the process that reaches the aggregator. It cannot read the data and asks the worker.

    It goes on through any outage. SIGTERM ends it: what the worker computes then is answered by the
    node's next life.
    """
    from wardround_client.node.process import run_node

    run_node(site_file, same_user=same_user)


@site.command()
@_FILE
@click.option(
    "--kit",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the coordinator sent back for a request that went as a file.",
)
@click.option(
    "--token", envvar="WARDROUND_TOKEN", metavar="TOKEN", help="What the coordinator handed over."
)
@click.option("--rotate", is_flag=True, help="Give an enrolled site new keys.")
def enrol(site_file: Path, kit: Path | None, token: str | None, *, rotate: bool) -> None:
    """Join a consortium, as the node's user: by a token, or by files.

    This site's keys are made here and stay here. With --token the aggregator is asked at once. Without
    it a request is written for the coordinator, who answers by a kit; run it again to have the
    certificate renewed. With --rotate a node that runs goes on with the new keys by itself.
    """
    from wardround_client.node.enrol import enrol_by_token, install_kit, make_request, rotate_keys
    from wardround_common.enrolment import parse_token

    if rotate or token is not None:
        done, fingerprint = (
            rotate_keys(site_file)
            if rotate or token is None
            else enrol_by_token(site_file, parse_token(token))
        )
        click.echo(f"{done.site} is enrolled in {done.consortium!r} with {', '.join(done.members)}")
        click.echo("Compare by telephone with `wardround aggregator sites`:")
        click.echo(f"  this site's keys         {fingerprint}")
        click.echo(f"  questions are signed by  {done.coordinator}")
        return
    if kit is not None:
        installed = install_kit(site_file, kit)
        click.echo(f"{installed.site} is enrolled in {installed.consortium!r}.")
        click.echo(f"Compare by telephone; questions are signed by {installed.coordinator}")
        click.echo(f"Next: wardround site node {site_file}")
        return
    request = make_request(site_file)
    click.echo(f"Send {request.file} to the coordinator; it holds no secret.")
    click.echo(f"Read this to the coordinator by telephone: {request.fingerprint}")
    click.echo(f"Next, with what comes back: wardround site enrol {site_file} --kit FILE")


@site.command()
@_FILE
@click.option("--draft", is_flag=True, help="Write one that allows what the federations ask for.")
@click.option(
    "--approval",
    type=click.Choice(["run", "none"]),
    default="run",
    show_default=True,
    help="With --draft: whether somebody approves each run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def policy(site_file: Path, approval: "Approval", *, draft: bool, as_json: bool) -> int:
    """Say what this hospital's policy makes of each federation, as of now, before any run asks.

    Exit status 1 if a question of one of them would be refused. A draft never replaces a policy.
    """
    from datetime import datetime

    from wardround_client.policy import papers

    if draft:
        file = papers.draft(site_file, approval)
        click.echo(
            json.dumps({"file": str(file)}) if as_json else f"{file}: read it, and tighten it"
        )
        return 0
    found = papers.judged(site_file, datetime.now().astimezone())
    if as_json:
        click.echo(json.dumps([{"name": each.name, "refusals": each.refusals} for each in found]))
    for each in () if as_json else found:
        click.echo(each.name)
        for kind, codes in each.refusals.items():
            click.echo(f"  {kind:9} {', '.join(codes) or 'allowed'}")
    return int(any(codes for each in found for codes in each.refusals.values()))


@site.command()
@_FILE
@click.argument(
    "federation", type=click.Path(path_type=Path), required=False, metavar="[FEDERATION.toml]"
)
@click.option(
    "--limit",
    type=click.FloatRange(1, 86_400),
    default=45.0,
    show_default=True,
    help="Seconds for the rehearsal of each federation.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(site_file: Path, federation: Path | None, limit: float, *, as_json: bool) -> int:
    """Find what would make a run fail here, or mislead, before a run does.

    Run it as the worker's user, and once more as the node's. It ends with a rehearsal of one round
    through a real airlock, of which nothing leaves and nothing stays. Exit status 1 if there is a fault.
    """
    from wardround_client.doctor.check import check_site

    found = check_site(site_file, federation, limit_s=limit)
    click.echo(found.to_json() if as_json else found.to_text())
    return int(bool(found.num_faults))


@site.command()
@_FILE
@click.argument("run", default="", metavar="[RUN]")
@click.option("--revoke", is_flag=True, help="Take the approval back: nothing more leaves.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def approve(site_file: Path, run: str, *, revoke: bool, as_json: bool) -> None:
    """Let a run begin at this hospital, as the worker's user; without RUN, list those that asked.

    A run that waits for it was refused; the coordinator resumes it afterwards.
    """
    from wardround_client.policy.approvals import Approvals
    from wardround_client.policy.control import APPROVALS
    from wardround_common.spec.load import load_site
    from wardround_common.spec.site import resolve

    if revoke and not run:
        raise click.UsageError("--revoke needs the RUN whose approval is taken back")
    site_spec, base = load_site(site_file), site_file.resolve().parent
    approvals = Approvals(resolve(base, site_spec.worker.state) / APPROVALS)
    if revoke:
        was = approvals.revoke(run)
        words = "revoked" if was else "was not approved"
        click.echo(json.dumps({"run": run, "revoked": was}) if as_json else f"{run}: {words}")
        return
    found = [approvals.approve(run)] if run else approvals.asked()
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found]))
        return
    for each in found:
        click.echo(f"{each.run}  {'approved' if each.approved else 'waits for approval'}")
        for key, value in each.request.items():
            click.echo(f"  {key:16} {', '.join(value) if isinstance(value, list) else value}")


@site.command()
@_FILE
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE.json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def head(site_file: Path, run: str, out: Path, *, as_json: bool) -> None:
    """Write the newest head of the aggregator's log that came with the questions of a run.

    With it the aggregator proves, or cannot prove, that its log of the run is what it was then:
    `wardround audit verify DIR/runs/RUN/audit --head FILE.json`.
    """
    from wardround_client.policy.control import HEADS
    from wardround_client.policy.heads import newest_head
    from wardround_common.spec.load import load_site
    from wardround_common.spec.site import resolve

    site_spec, base = load_site(site_file), site_file.resolve().parent
    found = newest_head(resolve(base, site_spec.worker.state) / HEADS, run)
    out.write_bytes(found.to_bytes())
    words = f"{out}: {found.size} entries, key {found.key}"
    click.echo(json.dumps(found.model_dump()) if as_json else words)


@site.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(site_file: Path, *, as_json: bool) -> int:
    """Say how worker and node are. Exit status 1 if one of them is not well."""
    from wardround_client.status import site_status

    found = site_status(site_file)
    click.echo(found.to_json() if as_json else found.to_text())
    return int(not found.is_well)
