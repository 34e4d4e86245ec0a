"""Measures ways, codecs and traffic, checks that all ways end alike, writes results and tables."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine, papers
from benchmarks.exchange import traffic
from benchmarks.exchange.case import CODINGS
from benchmarks.exchange.models import trained_update
from benchmarks.exchange.summary import disagreements, summarise_ways, tables
from benchmarks.exchange.ways import WAYS
from benchmarks.simulator.summary import spread

RESULTS = Path(__file__).parents[1] / "results" / "exchange.json"
LIMIT_S = 600


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, a shorter update")
    return parser.parse_args(words)


def case(name: str, *more: str) -> dict[str, Any]:
    """One case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.exchange.case", name, *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=True)
    print(f"{name}: {done.stdout.strip()[:200]}", flush=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def interleaved(names: list[str], repetitions: int, *more: str) -> dict[str, list[dict[str, Any]]]:
    """All names in turn, as often as wanted: A B C A B C ..."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repetitions):
        for name in names:
            runs[name].append(case(name, *more))
    return runs


def codecs(quick: bool, repetitions: int) -> dict[str, Any]:
    """Codec -> spread of its speeds, ratio and error on a trained update."""
    layout, values = trained_update(32 if quick else 320)
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name) / "update.npy", values)
        (Path(name) / "layout.json").write_text(json.dumps(layout.to_json()))
        runs = interleaved(list(CODINGS), repetitions, "--folder", name)
    return {
        name: {
            **own[0],
            **{key: spread([run[key] for run in own]) for key in ("encode_mb_s", "decode_mb_s")},
        }
        for name, own in runs.items()
    }


def main() -> int:
    """0, or 1 where the ways disagree; nothing is written then."""
    quick = arguments().quick
    torch.set_num_threads(1)
    machine_now, started = machine.describe(), time.monotonic()
    repetitions = 3 if quick else 7
    runs = interleaved(list(WAYS), repetitions)
    wrong = disagreements(runs)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    command = f"python benchmarks/run.py --only exchange{' --quick' if quick else ''}"
    load = [machine_now["load_1min"], round(os.getloadavg()[0], 2)]
    results = {
        "command": command,
        "machine": machine_now,
        "load_1min_before_and_after": load,
        "repetitions": repetitions,
        "ways": summarise_ways(runs),
        "codecs": codecs(quick, repetitions),
        "traffic": [traffic.measure(each) for each in traffic.CASES],
        "seconds": round(time.monotonic() - started),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = (
        f"`{command}`; {machine.line(machine_now)}; load {load[0]} before and {load[1]} after; "
        f"medians of {repetitions} interleaved runs (smallest to largest).\n\n{tables(results)}"
    )
    papers.put(papers.MEASUREMENTS, "exchange", text)
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
