"""Measures all cases, each in processes of its own, and writes results and the table."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, papers
from benchmarks.stream.summary import summarise, table

RESULTS = Path(__file__).parents[1] / "results" / "stream.json"
LIMIT_S = 900
CASES = (
    (2, 250_000, 200, 0),
    (2, 250_000, 200, 500),
    (10, 46_800_000, 10, 0),
    (2, 45_000_000, 5, 0),
    (10, 45_000_000, 5, 0),
    (20, 45_000_000, 5, 0),
)
"""Sites, bytes of an update, rounds, stalled connections of strangers."""
QUICK = ((2, 250_000, 50, 0), (2, 250_000, 50, 500), (10, 46_800_000, 3, 0))


def case(num_sites: int, num_bytes: int, repetitions: int, num_stalled: int) -> dict[str, Any]:
    """One case in a process of its own."""
    words = ["--sites", num_sites, "--bytes", num_bytes, "--repetitions", repetitions]
    words += ["--stalled", num_stalled]
    command = [sys.executable, "-m", "benchmarks.stream.case", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return summarise(found)


def main() -> int:
    """0; fails loudly if a round ends in another model than the mean of its updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two cases, fewer rounds")
    quick = parser.parse_args().quick
    machine_now, started = machine.describe(), time.monotonic()
    cases = []
    for wanted in QUICK if quick else CASES:
        cases.append(case(*wanted))
        print(table(cases[-1:]), flush=True)
    load = [machine_now["load_1min"], round(os.getloadavg()[0], 2)]
    command = f"python -m benchmarks.stream{' --quick' if quick else ''}"
    results = {
        "command": command,
        "machine": machine_now,
        "load_1min_before_and_after": load,
        "cases": cases,
        "seconds": round(time.monotonic() - started),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = (
        f"`{command}`; {machine.line(machine_now)}; load {load[0]} before and {load[1]} after; TLS "
        f"over loopback, aggregator and sites on this one machine.\n\n{table(cases)}"
    )
    papers.put(papers.MEASUREMENTS, "stream", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
