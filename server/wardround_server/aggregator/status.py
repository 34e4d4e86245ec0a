"""How an aggregator is: what its supervisor wrote last, and its runs' own files.

Nothing is asked of any process, so looking costs nothing and works at any time.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wardround_server.aggregator.folder import AggregatorFolder, is_held
from wardround_server.aggregator.records import RunRecord, all_runs
from wardround_server.aggregator.sites import SiteRegister


@dataclass(frozen=True, slots=True)
class SiteState:
    """A site that is let in.

    Attributes:
        site: its name.
        registered: the SuperLink knows its node.
        online: its node is there.
        since: Unix time since which that is so; None if it never was there.
    """

    site: str
    registered: bool = False
    online: bool = False
    since: float | None = None


@dataclass(frozen=True, slots=True)
class RunState:
    """A run.

    Attributes:
        run: its identifier.
        name: for people.
        state: queued, starting, running, done, failed or stopped.
        code: of a failure.
        attempt: how often a ServerApp was started for it.
        step, kind, round, num_rounds: where it stands.
        answered, waited_for: sites of the step under way.
        refused: site -> code.
        ways: site -> how it is asked.
        bytes_down, bytes_up: of finished steps.
        seconds: kind of step -> wall time.
        phases: what sites did -> their seconds.
        model_sha256: of a model that is done.
    """

    run: str
    name: str
    state: str
    code: str = ""
    attempt: int = 0
    step: int = -1
    kind: str = ""
    round: int = 0
    num_rounds: int = 0
    answered: tuple[str, ...] = ()
    waited_for: tuple[str, ...] = ()
    refused: Mapping[str, str] | None = None
    ways: Mapping[str, str] | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: Mapping[str, float] | None = None
    phases: Mapping[str, float] | None = None
    model_sha256: str = ""


@dataclass(frozen=True, slots=True)
class AggregatorState:
    """An aggregator.

    Attributes:
        name: the consortium.
        is_up: a supervisor runs.
        processes: name -> whether it runs and answers.
        restarts: name -> starts after the first.
        sites: all that are let in.
        runs: all, oldest first.
    """

    name: str
    is_up: bool
    processes: Mapping[str, bool]
    restarts: Mapping[str, int]
    sites: Sequence[SiteState]
    runs: Sequence[RunState]

    @property
    def is_well(self) -> bool:
        """Whether all that should run runs."""
        return self.is_up and all(self.processes.values())

    def to_json(self) -> str:
        """As one object."""
        return json.dumps(asdict(self) | {"is_well": self.is_well}, indent=2)

    def to_text(self) -> str:
        """For people."""
        lines = [f"{self.name}: {'up' if self.is_up else 'not up'}"]
        for name, runs in self.processes.items():
            again = self.restarts.get(name, 0)
            lines.append(
                f"  {name:<10} {'runs' if runs else 'does not answer'}"
                + (f", restarted {again} times" if again else "")
            )
        lines += ["sites", *(_site_line(site) for site in self.sites)]
        lines += ["runs", *(line for run in self.runs for line in _run_lines(run))]
        return "\n".join(lines)


def write_status(
    folder: AggregatorFolder,
    processes: Mapping[str, bool],
    restarts: Mapping[str, int],
    sites: Sequence[SiteState],
) -> None:
    """What the supervisor knows, for others to read."""
    content = {
        "processes": dict(processes),
        "restarts": dict(restarts),
        "sites": [asdict(site) for site in sites],
    }
    path = folder.state / "status.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def read_state(folder: AggregatorFolder) -> AggregatorState:
    """How it is now.

    Raises:
        ConfigError: this is no aggregator's folder.
        IntegrityError: a site's file is damaged.
    """
    spec, is_up = folder.load(), is_held(folder.up_lock)
    written = _written(folder) if is_up else {}
    known = {each["site"]: SiteState(**each) for each in written.get("sites", ())}
    sites = [known.get(site.name, SiteState(site.name)) for site in SiteRegister(folder).all()]
    return AggregatorState(
        spec.name,
        is_up,
        written.get("processes", {}),
        written.get("restarts", {}),
        sites,
        [run_state(record) for record in all_runs(folder)],
    )


def run_state(record: RunRecord) -> RunState:
    """How a run is now."""
    outcome, attempt, progress = record.outcome, record.attempt, record.progress
    state = "queued" if attempt is None else "running" if record.is_driven else "starting"
    if outcome is not None:
        state = outcome.state
    where: dict[str, Any] = {}
    if progress is not None:
        where = asdict(progress)
        where["waited_for"] = progress.waited_for if outcome is None else ()
        for name in ("attempt", "sites", "updated"):
            del where[name]
    return RunState(
        record.run,
        record.info.name,
        state,
        outcome.code if outcome else "",
        attempt.attempt if attempt else 0,
        model_sha256=outcome.model_sha256 if outcome else "",
        **where,
    )


def _written(folder: AggregatorFolder) -> dict[str, Any]:
    try:
        found = json.loads((folder.state / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _site_line(site: SiteState) -> str:
    if not site.registered:
        return f"  {site.site:<20} invited, not registered yet"
    word = "online" if site.online else "offline"
    if site.since is None:
        return f"  {site.site:<20} was never here"
    return f"  {site.site:<20} {word} for {_duration(time.time() - site.since)}"


def _run_lines(run: RunState) -> list[str]:
    head = f"  {run.run}  {run.name}: {run.state}"
    if run.code:
        head += f" ({run.code})"
    lines = [head]
    if run.step >= 0:
        rounds = f", round {run.round} of {run.num_rounds}" if run.round else ""
        lines.append(
            f"    step {run.step} ({run.kind}){rounds}; {run.bytes_down / 1e6:.1f} MB down, "
            f"{run.bytes_up / 1e6:.1f} MB up"
        )
    if run.waited_for:
        lines.append(f"    answered: {', '.join(run.answered) or 'nobody'}")
        lines.append(f"    missing:  {', '.join(run.waited_for)}")
    for site, code in (run.refused or {}).items():
        lines.append(f"    refused:  {site} ({code})")
    if run.seconds:
        times = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in run.seconds.items())
        lines.append(f"    time: {times}")
    if run.state == "failed":
        lines.append("    when the cause is mended: wardround aggregator resume DIR " + run.run)
    return lines


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
