"""Runs the implementations in turn, each simulation in a process of its own."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulator.workloads import Workload

LIMIT_S = 600
NO_PFL = "pfl is not installed; `pip install --no-deps pfl==0.6.0 prv-accountant multiprocess dill` adds it"
NO_RAY = "Ray is not installed; `pip install 'wardround[ray]'` adds it"


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation. The first round warms up and is kept out of all but ``first_round_s``.

    Attributes:
        cpu_s: median over rounds of the process tree's processor time.
        wall_s: median over rounds by the clock.
        beyond_training_ms: median over rounds of the processor time outside the training loops,
            for each site.
        first_round_s: from the start (libraries imported) to the end of the first round.
        memory_mib: largest memory of the process tree at the end of a round.
        parameters: the final ones, float32 [n].
    """

    cpu_s: float
    wall_s: float
    beyond_training_ms: float
    first_round_s: float
    memory_mib: float
    parameters: np.ndarray


def skipped() -> dict[str, str]:
    """Implementation -> why it cannot be measured here."""
    needs = {
        "flower": (("ray",), NO_RAY),
        "pfl": (("pfl", "prv_accountant", "multiprocess"), NO_PFL),
    }
    return {
        name: why
        for name, (packages, why) in needs.items()
        if not all(importlib.util.find_spec(package) for package in packages)
    }


def measure(
    workload: Workload, implementations: tuple[str, ...], repetitions: int
) -> dict[str, list[Run]]:
    """All implementations in turn, as often as wanted: A B C A B C ..."""
    runs: dict[str, list[Run]] = {name: [] for name in implementations}
    for repetition in range(repetitions):
        for name in implementations:
            run = simulate(name, workload)
            runs[name].append(run)
            print(
                f"{workload.name}, {workload.num_sites} sites, {repetition + 1} of {repetitions}: "
                f"{name} {run.cpu_s:.3f} CPU s a round",
                flush=True,
            )
    return runs


def to_compare(workload: Workload, runs: dict[str, list[Run]]) -> dict[str, list[np.ndarray]]:
    """The parameters that must agree: the final ones, or those after one round.

    Args:
        workload: what was simulated; where it amplifies last bits one more run of one round is made.
        runs: the measured runs.
    """
    if not workload.amplifies:
        return {name: [run.parameters for run in own] for name, own in runs.items()}
    once = dataclasses.replace(workload, num_rounds=1)
    return {name: [simulate(name, once).parameters] for name in runs}


def simulate(implementation: str, workload: Workload) -> Run:
    """One simulation in a fresh process.

    Raises:
        RuntimeError: it failed; the message ends with its last output.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "benchmarks.simulator.case", implementation]
        command += [workload.name, str(workload.num_sites), str(workload.num_rounds), name]
        with (folder / "output").open("wb") as output:
            done = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False
            )
        if done.returncode:
            last = (folder / "output").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{implementation} on {workload}: exit {done.returncode}\n{last}")
        case = json.loads((folder / "case.json").read_text())
        return run_of(case, np.load(folder / "parameters.npy"), workload.num_sites)


def run_of(case: dict[str, Any], parameters: np.ndarray, num_sites: int) -> Run:
    """What a case process wrote, in numbers for comparison."""
    rounds = case["rounds"][1:] or case["rounds"]  # one round alone is run for its parameters
    beyond = [each["cpu_s"] - each["train_cpu_s"] for each in rounds]
    return Run(
        cpu_s=float(np.median([each["cpu_s"] for each in rounds])),
        wall_s=float(np.median([each["wall_s"] for each in rounds])),
        beyond_training_ms=float(np.median(beyond)) / num_sites * 1e3,
        first_round_s=case["first_round_s"],
        memory_mib=case["memory_mib"],
        parameters=parameters,
    )
