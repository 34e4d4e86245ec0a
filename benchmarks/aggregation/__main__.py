"""Measures, checks that the results are equal, and writes results and tables."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, papers
from benchmarks.aggregation.summary import (
    disagreements,
    summarise_lora,
    summarise_mean,
    tables,
)

RESULTS = Path(__file__).parents[1] / "results" / "aggregation.json"
COUNTS = (2, 10, 20)
LIMIT_S = 600


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="45 MB only, fewer repetitions")
    return parser.parse_args(words)


def case(module: str, *words: str) -> dict[str, Any]:
    """One measurement in a fresh process."""
    command = [sys.executable, "-m", f"benchmarks.aggregation.{module}", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    """0, or 1 where the results differ; nothing is written then."""
    quick = arguments().quick
    machine_now, started = machine.describe(), time.monotonic()
    models, repetitions = (("resnet18",), 3) if quick else (("resnet18", "bert"), 5)
    again = ("--repetitions", str(repetitions))
    means, memory = [], []
    for model in models:
        for count in COUNTS:
            found = case("mean", "time", model, str(count), *again)
            means.append(summarise_mean(model, count, found))
            peak = {
                side: case("mean", "memory", model, str(count), "--side", side)["models"]
                for side in ("ours", "flower")
            }
            memory.append({"model": model, "num_sites": count, **peak})
            print(f"{model}, {count} sites: measured", flush=True)
    lora = summarise_lora(case("lora", *again))
    wrong = disagreements(means, lora)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    command = f"python benchmarks/run.py --only aggregation{' --quick' if quick else ''}"
    load = [machine_now["load_1min"], round(os.getloadavg()[0], 2)]
    results = {
        "command": command,
        "machine": machine_now,
        "load_1min_before_and_after": load,
        "seconds": round(time.monotonic() - started),
        "means": means,
        "memory": memory,
        "lora": lora,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = (
        f"`{command}`; {machine.line(machine_now)}; load {load[0]} before and {load[1]} after; "
        f"one thread; medians of {repetitions} interleaved repetitions (smallest to largest).\n\n"
        f"{tables(results)}"
    )
    papers.put(papers.MEASUREMENTS, "aggregation", text)
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
