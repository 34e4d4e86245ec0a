"""Measures, checks that both loops end in the same parameters, and writes results and table."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks import machine, papers
from benchmarks.local.measure import (
    disagreements,
    measure,
    precisions,
    run,
    summarise,
    table,
)
from benchmarks.local.workloads import NAMES, Workload

RESULTS = Path(__file__).parents[1] / "results" / "local.json"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small networks, fewer repetitions")
    return parser.parse_args(words)


def main() -> int:
    """0, or 1 where the loops disagree; nothing is written then."""
    quick = arguments().quick
    machine_now, started = machine.describe(), time.monotonic()
    repetitions = 3 if quick else 5
    workloads = [Workload(name, quick) for name in NAMES]
    cases = [
        summarise(workload, precision, measure(workload, precision, repetitions))
        for workload in workloads
        for precision in precisions()
    ]
    decisions = {workload.name: run("auto", workload, "fp32")[0] for workload in workloads}
    wrong = disagreements(cases)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    command = f"python benchmarks/run.py --only local{' --quick' if quick else ''}"
    load = [machine_now["load_1min"], round(os.getloadavg()[0], 2)]
    results = {
        "command": command,
        "machine": machine_now,
        "load_1min_before_and_after": load,
        "seconds": round(time.monotonic() - started),
        "cases": cases,
        "auto": decisions,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = (
        f"`{command}`; {machine.line(machine_now)}; load {load[0]} before and {load[1]} after; "
        f"medians of {repetitions} interleaved pairs (smallest to largest).\n\n"
        f"{table(cases, decisions)}"
    )
    papers.put(papers.MEASUREMENTS, "local", text)
    print(table(cases, decisions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
