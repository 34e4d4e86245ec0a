"""The verbs that talk to a running aggregator through its folder: run, resume, stop."""

import json
import sys
import time
from pathlib import Path
from typing import Final, TextIO

from wardround_common.errors import ConfigError
from wardround_server.aggregator.folder import AggregatorFolder, is_held
from wardround_server.aggregator.records import Outcome, RunRecord
from wardround_server.aggregator.status import RunState, run_state

_POLL_S: Final = 0.2


def require_up(folder: AggregatorFolder) -> None:
    """See that somebody will begin the run.

    Raises:
        ConfigError: the aggregator is not up.
    """
    if not is_held(folder.up_lock):
        raise ConfigError(
            f"{folder.path}: this aggregator is not up; start it by `wardround aggregator up "
            f"{folder.path}` and try again",
            code="aggregator_down",
        )


def watch_run(folder: AggregatorFolder, record: RunRecord, out: TextIO, *, as_json: bool) -> int:
    """Show a run's progress until it ends; interrupted, the run goes on.

    Args:
        folder: the aggregator's.
        record: the run.
        out: where to show it.
        as_json: one object a line.

    Returns:
        The exit status: 0 done, 1 failed or stopped.

    Raises:
        ConfigError: the aggregator went down.
    """
    shown = ""
    while True:
        state = run_state(record)
        line = _line(state, as_json=as_json)
        if line != shown:
            print(line, file=out, flush=True)
            shown = line
        if (outcome := record.outcome) is not None:
            return _ended(record, outcome, out, as_json=as_json)
        require_up(folder)
        time.sleep(_POLL_S)


def stop_run(record: RunRecord) -> None:
    """End a run: from now on, its ServerApp and its sites are told so.

    Raises:
        ConfigError: it has ended already.
    """
    if not record.end(Outcome("stopped", ended=time.time())):
        ended = record.outcome
        raise ConfigError(
            f"run {record.run} has ended already ({ended.state if ended else 'unknown'})",
            code="run_ended",
        )


def _ended(record: RunRecord, outcome: Outcome, out: TextIO, *, as_json: bool) -> int:
    if outcome.state == "done" and not as_json:
        _print_report(record.path, out)
    elif outcome.state == "failed" and not as_json:
        print(f"error: {outcome.message}", file=sys.stderr)  # noqa: T201
        print(  # noqa: T201
            f"when the cause is mended: wardround aggregator resume DIR {record.run}",
            file=sys.stderr,
        )
    return int(outcome.state != "done")


def _print_report(folder: Path, out: TextIO) -> None:
    from rich.console import Console

    from wardround_server.report.model import read_report
    from wardround_server.report.terminal import print_table

    report, console = read_report(folder / "report.json"), Console(file=out)
    print_table(report, console)
    console.print(f"model  {report.model_sha256}")
    console.print(f"report {folder / 'report.html'}", soft_wrap=True)


def _line(state: RunState, *, as_json: bool) -> str:
    """Where a run stands, on one line that changes when something has happened."""
    if as_json:
        return json.dumps(
            {
                "event": f"run_{state.state}",
                "run": state.run,
                "code": state.code,
                "step": state.step,
                "kind": state.kind,
                "round": state.round,
                "answered": state.answered,
                "waited_for": state.waited_for,
                "refused": dict(state.refused or {}),
                "model_sha256": state.model_sha256,
            }
        )
    if state.state != "running" or state.step < 0:
        return state.state
    what = f"round {state.round}/{state.num_rounds} {state.kind}" if state.round else state.kind
    waits = f", waiting for {', '.join(state.waited_for)}" if state.waited_for else ""
    refused = "".join(f", {site} refused ({code})" for site, code in (state.refused or {}).items())
    return f"{what}: {len(state.answered)} answered{waits}{refused}"
