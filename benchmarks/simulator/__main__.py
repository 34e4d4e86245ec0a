"""Measures, checks that all end in the same parameters, and writes results and table."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks import machine, papers
from benchmarks.simulator import growth
from benchmarks.simulator.case import IMPLEMENTATIONS
from benchmarks.simulator.measure import measure, skipped, to_compare
from benchmarks.simulator.summary import disagreements, ratios, summarise, table
from benchmarks.simulator.workloads import Workload

RESULTS = Path(__file__).parents[1] / "results" / "simulator.json"
QUICK = (Workload("cnn", 10, 11),)
FULL = (
    *QUICK,
    Workload("cnn", 30, 11),
    Workload("cnn", 100, 6),
    Workload("resnet18", 10, 5),
)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one case, fewer repetitions")
    return parser.parse_args(words)


def main() -> int:
    """0, or 1 where the implementations disagree; nothing is written then."""
    quick = arguments().quick
    machine_now = machine.describe()
    why_not, repetitions = skipped(), 2 if quick else 3
    measurable = tuple(name for name in IMPLEMENTATIONS if name not in why_not)
    started = time.monotonic()
    cases = []
    for workload in QUICK if quick else FULL:
        runs = measure(workload, measurable, repetitions)
        cases.append(summarise(workload, runs, why_not, to_compare(workload, runs)))
    wrong = disagreements(cases)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    grown = growth.growth(quick=quick)
    command = f"python benchmarks/run.py --only simulator{' --quick' if quick else ''}"
    load = [machine_now["load_1min"], round(os.getloadavg()[0], 2)]
    results = {
        "command": command,
        "machine": machine_now,
        "load_1min_before_and_after": load,
        "seconds": round(time.monotonic() - started),
        "cases": cases,
        "growth": grown,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = (
        f"`{command}`; {machine.line(machine_now)}; load {load[0]} before and {load[1]} after; "
        f"medians of {repetitions} interleaved runs of some rounds after a first one (smallest to "
        f"largest).\n\n{table(cases)}\n{ratios(cases)}\n\nGrowth with the number of sites (small CNN; "
        f"one run each):\n\n{growth.table(grown)}"
    )
    papers.put(papers.MEASUREMENTS, "simulator", text)
    print(table(cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
