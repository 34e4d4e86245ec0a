"""A whole federation on one machine: the same engine, the same site workers, no network."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from wardround_common.errors import ConfigError, RoundError
from wardround_common.shared_model import SharedModel, shared_model
from wardround_common.sites import FailureHook, PooledScores, SimulatedSites, simulated_sites
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import SiteId
from wardround_common.wire.layout import Layout, Packed
from wardround_server.app import server_app
from wardround_server.folder import RunFolder
from wardround_server.report.build import build_report
from wardround_server.report.model import Report
from wardround_server.rounds.carrier import FlowerCarrier
from wardround_server.rounds.engine import RoundEngine
from wardround_server.rounds.outcome import RunOutcome, beside_exact_head
from wardround_server.rounds.results import Observer
from wardround_server.simulation.failures import Failures
from wardround_server.simulation.local_grid import LocalGrid
from wardround_server.simulation.ray_engine import run_on_ray
from wardround_server.simulation.ray_sites import RaySites
from wardround_server.simulation.threads import fix_threads
from wardround_server.simulation.worker_grid import WorkerGrid


@dataclass(frozen=True, slots=True)
class SimulationPlan:
    """What to simulate, and where.

    Attributes:
        spec: the federation, with a ``[simulation]`` table.
        base: folder of the federation file.
        raw: folder with local copies of public data; None for the default.
        out: the run's folder.
        cache: folder for cached features; kept between runs.
        resume: go on with the run in ``out``.
        workers: processes that sites compute in; the result is the same for any number.
        engine: where they run: on this machine, or on Ray, which may span several.
        gpus: share of a GPU that each process takes on Ray.
        on_failure: told what went wrong at a site, in full.
    """

    spec: FederationSpec
    base: Path
    raw: Path | None
    out: Path
    cache: Path
    resume: bool
    on_failure: FailureHook
    workers: int = 1
    engine: Literal["local", "ray"] = "local"
    gpus: float = 0.0


def simulate_federation(plan: SimulationPlan, observer: Observer) -> Report:
    """Run a federation to its end and write model and report.

    The model's bytes depend on the federation file and the data alone (on one machine and with
    one number of threads, which is part of the file).

    Raises:
        ConfigError: the file has no simulation, or the folder already holds a run.
        DataError, BackboneError: data or backbone are missing, corrupt or other than declared.
        RoundError: too few sites could contribute.
        IntegrityError: the run's folder is damaged or belongs to another run.
    """
    spec = plan.spec
    fix_threads(spec, 1 if plan.workers > 1 else None)
    failures = Failures(plan.on_failure)
    folder = RunFolder(plan.out)
    sites = simulated_sites()(
        spec,
        base=plan.base,
        raw=plan.raw,
        cache=plan.cache,
        memory=folder.memory,
        on_failure=failures.note,
    )
    try:
        outcome = _run(plan, folder, sites, failures, observer)
    except RoundError as error:
        # Whoever simulates a federation operates every site: the cause is theirs to see.
        if failures.first is not None:
            raise failures.first from error
        raise
    adapters = shared_model(spec).untrained_adapters()
    model_sha256 = folder.write_model(outcome, spec.digest(), adapters)
    started = time.monotonic()
    pooled = _pooled(spec, outcome, sites)
    report = build_report(
        spec,
        outcome,
        model_sha256=model_sha256,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        pooled=pooled,
        pooled_seconds=time.monotonic() - started,
    )
    folder.write_report(report)
    folder.forget()
    return report


def _run(
    plan: SimulationPlan,
    folder: RunFolder,
    sites: SimulatedSites,
    failures: Failures,
    observer: Observer,
) -> RunOutcome:
    spec = plan.spec
    model: SharedModel = shared_model(spec)
    checkpoint_s = spec.simulation.checkpoint_s if spec.simulation else 0.0
    journal = folder.open_journal(
        resume=plan.resume, settle_every_s=checkpoint_s, before_flush=sites.make_durable
    )
    outcomes: list[RunOutcome] = []

    def drive(grid: Grid, node_of: dict[SiteId, int]) -> None:
        carrier = FlowerCarrier(grid, node_of, clock=_standing_clock)
        engine = RoundEngine(
            model, carrier, journal, observer, run=spec.digest()[:16], store_updates=False
        )
        outcomes.append(engine.run())

    if plan.engine == "ray":
        played = RaySites(spec, plan.base, plan.raw, plan.cache, folder.memory.resolve())
        run_on_ray(played, drive, actors=plan.workers, gpus=plan.gpus)
        return outcomes[0]
    with _grid(plan, sites, failures) as grid:
        server_app(spec.federation.sites, drive)(grid, Context(1, 1, {}, RecordDict(), {}))
    return outcomes[0]


def _pooled(spec: FederationSpec, outcome: RunOutcome, sites: SimulatedSites) -> PooledScores:
    simulation = spec.simulation
    return sites.pooled(
        np.asarray(beside_exact_head(outcome)[1], dtype=np.float32),
        outcome.moments,
        rounds=outcome.model_round,
        train=simulation is not None and simulation.pooled,
    )


def _standing_clock() -> float:
    """In a simulation nobody is late: a slow computation is not a slow hospital."""
    return 0.0


def _begin_worker(spec: FederationSpec, place: Callable[[Layout], Packed]) -> None:
    """What a worker process does first."""
    fix_threads(spec)
    shared_model(spec).place_updates(place)


@contextmanager
def _grid(plan: SimulationPlan, sites: SimulatedSites, failures: Failures) -> Iterator[LocalGrid]:
    """How the engine reaches the sites."""
    roster = plan.spec.federation.sites
    if plan.workers > 1 and plan.spec.simulation and plan.spec.simulation.compute.device != "cpu":
        raise ConfigError(
            "--workers forks processes, which a GPU does not survive; use --engine ray, or one",
            code="workers_device",
        )
    if plan.workers == 1:
        yield LocalGrid(sites.app, roster)
        return
    begin = partial(_begin_worker, plan.spec)
    grid = WorkerGrid(sites.app, roster, num_workers=plan.workers, failures=failures, begin=begin)
    try:
        yield grid
    finally:
        grid.close()
        fix_threads(plan.spec)
