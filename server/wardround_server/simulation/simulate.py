"""A whole federation on one machine: the same engine, the same site workers, no network."""

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from wardround_common.errors import RoundError
from wardround_common.shared_model import SharedModel, shared_model
from wardround_common.sites import FailureHook, PooledScores, SimulatedSites, simulated_sites
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import SiteId
from wardround_server.app import server_app
from wardround_server.folder import RunFolder
from wardround_server.report.build import build_report
from wardround_server.report.model import Report
from wardround_server.rounds.carrier import FlowerCarrier
from wardround_server.rounds.engine import RoundEngine, RunOutcome, beside_exact_head
from wardround_server.rounds.steps import Observer
from wardround_server.simulation.local_grid import LocalGrid


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
        on_failure: told what went wrong at a site, in full.
    """

    spec: FederationSpec
    base: Path
    raw: Path | None
    out: Path
    cache: Path
    resume: bool
    on_failure: FailureHook


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
    _fix_threads(spec)
    failures: list[Exception] = []

    def note_failure(site: str, error: Exception) -> None:
        failures.append(error)
        plan.on_failure(site, error)

    sites = simulated_sites()(
        spec, base=plan.base, raw=plan.raw, cache=plan.cache, on_failure=note_failure
    )
    folder = RunFolder(plan.out)
    try:
        outcome = _run(spec, folder, sites, observer, resume=plan.resume)
    except RoundError as error:
        # Whoever simulates a federation operates every site: the cause is theirs to see.
        if failures:
            raise failures[0] from error
        raise
    model_sha256 = folder.write_model(outcome, spec.digest())
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
    return report


def _run(
    spec: FederationSpec,
    folder: RunFolder,
    sites: SimulatedSites,
    observer: Observer,
    *,
    resume: bool,
) -> RunOutcome:
    model: SharedModel = shared_model(spec)
    checkpoint_s = spec.simulation.checkpoint_s if spec.simulation else 0.0
    journal = folder.open_journal(resume=resume, settle_every_s=checkpoint_s)
    outcomes: list[RunOutcome] = []

    def drive(grid: Grid, node_of: dict[SiteId, int]) -> None:
        carrier = FlowerCarrier(grid, node_of, clock=_standing_clock)
        engine = RoundEngine(
            model, carrier, journal, observer, run=spec.digest()[:16], store_updates=False
        )
        outcomes.append(engine.run())

    grid = LocalGrid(sites.app, spec.federation.sites)
    context = Context(1, 1, {}, RecordDict(), {})
    server_app(spec.federation.sites, drive)(grid, context)
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


def _fix_threads(spec: FederationSpec) -> None:
    threads = spec.simulation.threads if spec.simulation is not None else None
    torch.set_num_threads(threads or os.cpu_count() or 1)
    # The same switch as use_deterministic_algorithms(warn_only=True), which imports a compiler
    # that is not used here; that takes seconds.
    torch.set_deterministic_debug_mode("warn")
