"""Measures, checks that both ways end in the same result, and writes results and table."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks import machine, papers
from benchmarks.frozen.measure import COMPARISONS, disagreements, measure, summarise, table

RESULTS = Path(__file__).parents[1] / "results" / "frozen.json"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="120 training images, one turn")
    return parser.parse_args(words)


def main() -> int:
    """0, or 1 where the results differ; nothing is written then."""
    quick = arguments().quick
    machine_now = machine.describe()
    repetitions = 1 if quick else 3
    started = time.monotonic()
    runs = measure(repetitions, quick=quick)
    summaries = [summarise(comparison, runs) for comparison in COMPARISONS]
    wrong = disagreements(summaries)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    command = f"python benchmarks/run.py --only frozen{' --quick' if quick else ''}"
    load = [machine_now["load_1min"], round(os.getloadavg()[0], 2)]
    results = {
        "command": command,
        "machine": machine_now,
        "load_1min_before_and_after": load,
        "seconds": round(time.monotonic() - started),
        "repetitions": repetitions,
        "cases": summaries,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = (
        f"`{command}`; {machine.line(machine_now)}; load {load[0]} before and {load[1]} after; "
        f"one thread, turns: {repetitions}; ratios of processor time, paired (smallest to "
        f"largest).\n\n{table(summaries)}"
    )
    papers.put(papers.MEASUREMENTS, "frozen", text)
    print(table(summaries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
