"""What the ServerApp does: one run of the aggregator, from wherever its folder says it stands.

1. The folder is held before anything else: two processes never drive one run.
2. What is expected to go wrong (a quorum that is not met, a file that does not fit) ends the run with
   an outcome. What is not leaves no outcome: the supervisor starts the run again.
3. Threads are those of the federation's simulation, so that both give the same bytes.
4. It dies with the SuperExec that started it, and so with the aggregator: nobody is left behind who
   holds the folder and waits for a SuperLink.
5. What went wrong in detail is written to ``failure.txt`` in the run's folder, and nowhere else;
   what happened, to ``events.jsonl``.
"""

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from flwr.serverapp import Grid

from wardround_common.audit.log import AuditLog
from wardround_common.crypto.signing import signing_key
from wardround_common.durable import write_file
from wardround_common.errors import ConfigError, WardroundError
from wardround_common.log import log_event, set_log_stream
from wardround_server.aggregator.child import die_with
from wardround_server.aggregator.flower.programs import FOLDER_VARIABLE
from wardround_server.aggregator.folder import AggregatorFolder
from wardround_server.aggregator.records import RUN_NAME, Outcome, RunRecord
from wardround_server.aggregator.sites import SiteRegister


def run_deployed(grid: Grid, run: str) -> None:
    """Drive a run to its end.

    Args:
        grid: Flower's.
        run: the run, 16 hexadecimal digits.

    Raises:
        ConfigError: there is no such run, or another process drives it.
        RuntimeError: the run failed; its folder says why.
    """
    die_with(os.getppid())
    folder = AggregatorFolder(Path(os.environ.get(FOLDER_VARIABLE, "")).resolve())
    record = RunRecord(folder.runs / run)
    if RUN_NAME.fullmatch(run) is None or not record.path.is_dir():
        raise ConfigError("there is no such run", code="run_unknown")
    # flwr throws away what a ServerApp prints.
    with record.driven(), record.events.open("a") as events, _ended_with_outcome(record):
        set_log_stream(events)
        if record.outcome is None:
            with _logged(folder, record) as log:
                model_sha256 = _drive(grid, folder, record, log)
                log.append("run_completed", run=run, model_sha256=model_sha256)
            record.end(Outcome("done", model_sha256=model_sha256, ended=time.time()))
            log_event("run_completed", run=run, model_sha256=model_sha256)


@contextmanager
def _ended_with_outcome(record: RunRecord) -> Iterator[None]:
    """What goes wrong, as an outcome or a note; and as one that names nothing for Flower."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever it is, its text stays in the folder
        write_file(record.failure, traceback.format_exc().encode())
        code = error.code if isinstance(error, WardroundError) else "internal_error"
        if isinstance(error, WardroundError):
            record.end(Outcome("failed", code, str(error), ended=time.time()))
        log_event("run_failed", run=record.run, code=code)
        raise RuntimeError(code) from None


@contextmanager
def _logged(folder: AggregatorFolder, record: RunRecord) -> Iterator[AuditLog]:
    """The run's audit log; how this life of the run ends is told to the aggregator's, too."""
    register = SiteRegister(folder)
    log = AuditLog(record.audit, signing_key(folder.coordinator_key))
    log.append("run_opened", run=record.run)
    code = "internal_error"
    try:
        yield log
        code = "done"
    except WardroundError as error:
        code = error.code
        raise
    finally:
        if code != "done":
            log.append("run_failed", run=record.run, code=code)
        head = log.head
        register.note(
            "run_ended", run=record.run, code=code, run_entries=head.size, run_root=head.root
        )


def _drive(grid: Grid, folder: AggregatorFolder, record: RunRecord, log: AuditLog) -> str:
    """The rounds, the model and the report; returns the model's digest."""
    from wardround_common.shared_model import shared_model
    from wardround_common.spec.load import load_federation
    from wardround_common.threads import use_threads
    from wardround_server.aggregator.carriers import Deployment, open_carrier
    from wardround_server.aggregator.watching import ProgressObserver
    from wardround_server.folder import RunFolder
    from wardround_server.report.build import build_report
    from wardround_server.rounds.audit import LoggedRun
    from wardround_server.rounds.engine import RoundEngine

    spec, aggregator = load_federation(record.federation), folder.load()
    use_threads(None if spec.simulation is None else spec.simulation.threads)
    model = shared_model(spec)
    out = RunFolder(record.path)
    journal = out.open_journal(resume=True)
    deployment = Deployment(folder, aggregator, model, record.run, journal.spool)
    with open_carrier(grid, deployment) as (carrier, ways):
        observer = ProgressObserver(record, spec.rounds.count, spec.federation.sites, ways)
        engine = RoundEngine(
            model,
            carrier,
            journal,
            observer,
            run=record.run,
            store_updates=True,
            key=log.key,
            audit=LoggedRun(log),
            members=SiteRegister(folder),
        )
        outcome = engine.run()
    model_sha256 = out.write_model(outcome, spec.digest(), model.untrained_adapters())
    report = build_report(
        spec,
        outcome,
        model_sha256=model_sha256,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        pooled=None,
        pooled_seconds=0.0,
    )
    out.write_report(report)
    return model_sha256
