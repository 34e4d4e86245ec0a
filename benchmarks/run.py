"""Runs the benchmarks: ``python benchmarks/run.py [--quick] [--only PART]``.

Each part is a package that measures in processes of its own, writes ``results/PART.json`` and puts
its table between the markers ``<!-- PART -->`` of ``docs/measurements.md``; its plot goes to
``docs/plots``. It fails if the implementations that it compares do not end in the same result.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = {
    "aggregation": "benchmarks.aggregation",
    "audit": "benchmarks.audit",
    "exchange": "benchmarks.exchange",
    "frozen": "benchmarks.frozen",
    "local": "benchmarks.local",
    "rounds": "benchmarks.rounds",
    "simulator": "benchmarks.simulator",
    "stream": "benchmarks.stream",
}


QUICK = ("simulator",)
"""What ``--quick`` runs where no part is named: under three minutes on two cores."""


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the cases that take minutes")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part")
    return parser.parse_args(words)


def environment() -> dict[str, str]:
    """What measured processes run in: one thread, no telemetry, this checkout importable."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    silent = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **one_thread, **silent, "PYTHONPATH": path}


def main() -> int:
    """Run the parts one after the other; the exit status of the first that failed."""
    wanted = arguments()
    parts = [wanted.only] if wanted.only else list(QUICK if wanted.quick else sorted(PARTS))
    for part in parts:
        command = [sys.executable, "-m", PARTS[part], *(["--quick"] if wanted.quick else [])]
        for words in (command, [sys.executable, "-m", "benchmarks.plots"]):
            done = subprocess.run(words, cwd=ROOT, env=environment(), check=False)
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
