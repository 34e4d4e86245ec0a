"""One measured simulation in a process of its own: writes ``case.json`` and ``parameters.npy``."""

import argparse
import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np

from benchmarks.simulator.rounds import RoundClock
from benchmarks.simulator.workloads import NAMES, Workload

IMPLEMENTATIONS = ("bare", "ours", "two_workers", "pfl", "flower")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("implementation", choices=IMPLEMENTATIONS)
    parser.add_argument("workload", choices=NAMES)
    parser.add_argument("num_sites", type=int)
    parser.add_argument("num_rounds", type=int)
    parser.add_argument("out", type=Path, help="folder that receives the two files")
    return parser.parse_args(words)


def main() -> None:
    """Simulate and write what was measured."""
    wanted = arguments()
    simulate = importlib.import_module(f"benchmarks.simulator.{wanted.implementation}").simulate
    clock = RoundClock()
    parameters = simulate(Workload(wanted.workload, wanted.num_sites, wanted.num_rounds), clock)
    np.save(wanted.out / "parameters.npy", parameters)
    case = {
        "rounds": [dataclasses.asdict(each) for each in clock.rounds],
        "first_round_s": clock.first_round_s,
        "memory_mib": clock.memory_mib,
    }
    (wanted.out / "case.json").write_text(json.dumps(case))


if __name__ == "__main__":
    main()
