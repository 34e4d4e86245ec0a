"""Memory of all processes of an aggregator while sites send 45 MB: ``python -m benchmarks.rounds.memory``.

The deployed federation of the rounds benchmark with 2, 10 and 20 sites, by each carrier. Sampled: the
proportional set size of the aggregator's whole process tree (supervisor, SuperLink, SuperExec, ServerApp),
ten times a second; given are the median of a second before the run, the peak of the run, and what each
site beyond the second adds to it.
"""

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.process_tree import memory_mib
from benchmarks.rounds import ours
from benchmarks.rounds.workloads import LARGE

RESULTS = Path(__file__).parents[1] / "results" / "rounds_memory.json"
NUM_SITES = (2, 10, 20)
_EVERY_S = 0.1
_ROUNDS = 3
_COMMAND = "python -m benchmarks.rounds.memory"


class Sampled:
    """Memory of a process tree before and during a run, in MiB."""

    def __init__(self) -> None:
        self.before, self.peak = 0.0, 0.0

    @contextlib.contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Sample until left."""
        first = []
        for _ in range(10):
            first.append(memory_mib(pid))
            time.sleep(_EVERY_S)
        self.before = statistics.median(first)
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(pid, ended))
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _watch(self, pid: int, ended: threading.Event) -> None:
        while not ended.wait(_EVERY_S):
            self.peak = max(self.peak, memory_mib(pid))


def case(num_sites: int, way: str) -> dict[str, Any]:
    """One deployment."""
    sampled = Sampled()
    measured = ours.measure(
        replace(LARGE, rounds=_ROUNDS),
        stream=way == "stream",
        sites=[f"site{number:02d}" for number in range(num_sites)],
        around=sampled.watching,
    )
    return {
        "sites": num_sites,
        "way": way,
        "before_mib": sampled.before,
        "peak_mib": sampled.peak,
        "update_bytes": measured.num_bytes,
    }


def table(cases: list[dict[str, Any]]) -> str:
    """One row a case."""
    titles = (
        "carrier",
        "sites",
        "before the run, MiB",
        "peak of the run, MiB",
        "each site beyond two, models",
    )
    rows = [f"| {' | '.join(titles)} |", "|---|--:|--:|--:|--:|"]
    rows += [
        f"| {case['way']} | {case['sites']} | {case['before_mib']:.0f} | {case['peak_mib']:.0f} "
        f"| {_growth(case, cases)} |"
        for case in cases
    ]
    return "\n".join(rows)


def _growth(case: dict[str, Any], cases: list[dict[str, Any]]) -> str:
    """Memory that each site beyond those of the smallest case adds, in models."""
    least = min(
        (each for each in cases if each["way"] == case["way"]), key=lambda each: each["sites"]
    )
    more = case["sites"] - least["sites"]
    if not more:
        return ""
    extra = (case["peak_mib"] - least["peak_mib"]) * 2**20
    return f"{extra / more / case['update_bytes']:.2f}"


def main() -> None:
    """Measure all cases; write results and print the table after each."""
    machine_now = machine.describe()
    cases = []
    for way in ("messages", "stream"):
        for num_sites in NUM_SITES:
            cases.append(case(num_sites, way))
            _write(machine_now, cases)


def _write(machine_now: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    """What there is so far: a case of twenty sites takes many minutes."""
    results = {"command": _COMMAND, "machine": machine_now, "cases": cases}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = f"`{_COMMAND}`; {machine.line(machine_now)}; all on this one machine.\n\n{table(cases)}"
    print(text, flush=True)


if __name__ == "__main__":
    main()
