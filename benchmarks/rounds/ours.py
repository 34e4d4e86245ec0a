"""Our federation, started as its users start it: aggregator, two workers, two nodes, TLS, keys."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.rounds.processes import Processes, free_port
from benchmarks.rounds.workloads import SITES, Workload, write_federation

_WARDROUND = (sys.executable, "-c", "from wardround_common.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Measured:
    """Rounds of one run, in order, without the first.

    Attributes:
        overhead_s: wall time of each, without what the slower site computed.
        num_bytes: of one site's update, as it was sent.
    """

    overhead_s: list[float]
    num_bytes: int


def measure(
    workload: Workload,
    *,
    stream: bool,
    sites: Sequence[str] = SITES,
    around: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> Measured:
    """Run a federation over loopback.

    Args:
        workload: what is exchanged.
        stream: by the tensor stream; else by Flower messages.
        sites: who takes part.
        around: entered with the aggregator's process number when all is up, left after the run.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_federation(workload, folder, workload.rounds + 2, sites)
        port, stream_port = free_port(), free_port()
        with Processes(folder) as processes:
            more = ["--stream-port", str(stream_port)] if stream else []
            _wardround(
                processes,
                *("aggregator", "init", "hub", "--host", "localhost"),
                *("--superlink-port", str(port)),
                *("--enrolment-port", str(free_port())),
                *more,
            )
            hub = processes.start([*_WARDROUND, "aggregator", "up", "hub"], "hub.log")
            for site in sites:
                _join(processes, folder, site, port)
            with around(hub):
                _wardround(processes, "aggregator", "run", "hub", "federation.toml")
        (run,) = (folder / "hub" / "runs").iterdir()
        return _read(run, workload)


def _join(processes: Processes, folder: Path, site: str, port: int) -> None:
    """What a hospital does, as the quick start has it."""
    own = folder / site
    own.mkdir()
    (own / "patients.csv").write_text((folder / f"{site}.csv").read_text())
    (own / "federation.toml").write_text((folder / "federation.toml").read_text())
    file = {
        "name": site,
        "federations": ["federation.toml"],
        "data": {"format": "csv", "path": "patients.csv"},
        "compute": {"threads": 1},
        "node": {"aggregator": f"127.0.0.1:{port}"},
    }
    (own / "site.toml").write_text(tomli_w.dumps(file))
    words, kit = f"{site}/site.toml", f"{site}.kit.json"
    _wardround(processes, "site", "enrol", words)
    _wardround(
        processes, "aggregator", "certify", "hub", f"{site}/{site}.request.json", "--out", kit
    )
    _wardround(processes, "site", "enrol", words, "--kit", kit)
    _wardround(processes, "site", "policy", words, "--draft", "--approval", "none")
    processes.start([*_WARDROUND, "site", "worker", words, "--allow-network"], f"{site}.worker.log")
    processes.start([*_WARDROUND, "site", "node", words, "--same-user"], f"{site}.node.log")


def _wardround(processes: Processes, *words: str) -> str:
    return processes.call([*_WARDROUND, *words])


def _read(run: Path, workload: Workload) -> Measured:
    """Rounds by the run's events; what the slower site did itself by the journal's receipts."""
    began = {
        int(event["round"]): datetime.fromisoformat(event["time"]).timestamp()
        for event in _lines(run / "events.jsonl")
        if event["event"] == "step_started" and event["phase"] == "train"
    }
    own: dict[int, float] = {}
    num_bytes = 0
    for record in _lines(run / "journal" / "journal.jsonl"):
        if record["kind"] == "answer_admitted" and record["receipt"]["kind"] == "train":
            round_, seconds = record["receipt"]["round"], record["receipt"]["seconds"]
            own[round_] = max(own.get(round_, 0.0), sum(seconds.values()))
        elif record["kind"] == "step_finished" and record["sites"]:
            num_bytes = max(num_bytes, record["bytes_up"] // len(record["sites"]))
    measured = range(2, workload.rounds + 2)
    return Measured([began[r + 1] - began[r] - own[r] for r in measured], num_bytes)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)
