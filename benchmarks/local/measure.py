"""Runs the plain loop and ours in turn, each in a fresh process, and sums up."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.local.workloads import NAMES, Workload
from benchmarks.simulator.summary import difference, spread
from wardround_client.training.modes import supports_bfloat16

LIMIT_S = 1800
TOLERANCE = 1e-6
"""Largest relative difference of final float32 parameters to the plain loop's."""
NO_BF16 = "no bfloat16 in this hardware"
_COLUMNS = (
    "model",
    "precision",
    "throughput of the plain loop",
    "s, plain",
    "s, ours",
    "peak MiB, plain",
    "peak MiB, ours",
    "difference",
    '`precision = "auto"` takes',
)
_WHAT = {
    "resnet50": "ResNet-50, full",
    "vit": "ViT, full",
    "bert": "BERT, full",
    "lora": "MiniLM-sized BERT, LoRA",
}


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of the measured epoch, peak memory, and the final parameters, float32 [n]."""

    seconds: float
    memory_mib: float
    parameters: np.ndarray


def precisions() -> tuple[str, ...]:
    """What can be measured here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ("fp32", "bf16") if supports_bfloat16(device) else ("fp32",)


def run(implementation: str, workload: Workload, precision: str) -> tuple[dict[str, Any], Path]:
    """One case process: what it wrote, and where its parameters are.

    Raises:
        RuntimeError: it failed; the message ends with its last output.
    """
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "benchmarks.local.case", implementation, workload.name]
    command += [precision, str(folder), *(["--quick"] if workload.quick else [])]
    with (folder / "output").open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False
        )
    if done.returncode:
        last = (folder / "output").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{implementation} on {workload}: exit {done.returncode}\n{last}")
    return json.loads((folder / "case.json").read_text()), folder / "parameters.npy"


def measure(workload: Workload, precision: str, repetitions: int) -> dict[str, list[Run]]:
    """Plain and ours in turn."""
    runs: dict[str, list[Run]] = {"plain": [], "ours": []}
    for _ in range(repetitions):
        for name, own in runs.items():
            case, parameters = run(name, workload, precision)
            own.append(Run(case["seconds"], case["memory_mib"], np.load(parameters)))
            print(f"{workload.name} {precision} {name}: {own[-1].seconds:.3f} s", flush=True)
    return runs


def summarise(
    workload: Workload, precision: str, runs: Mapping[str, Sequence[Run]]
) -> dict[str, Any]:
    """One row."""
    pairs = list(zip(runs["plain"], runs["ours"], strict=True))
    return {
        "workload": workload.name,
        "precision": precision,
        "repetitions": len(pairs),
        "seconds": {name: spread([each.seconds for each in own]) for name, own in runs.items()},
        "memory_mib": {name: spread([r.memory_mib for r in own]) for name, own in runs.items()},
        "throughput_of_plain": spread([one.seconds / two.seconds for one, two in pairs]),
        "difference_to_plain": max(
            difference(two.parameters, one.parameters) for one, two in pairs
        ),
    }


def disagreements(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every float32 case whose parameters are not the plain loop's."""
    return [
        f"{case['workload']}: differs from the plain loop by {case['difference_to_plain']:.1e}"
        for case in cases
        if case["precision"] == "fp32" and not case["difference_to_plain"] <= TOLERANCE
    ]


def table(cases: Sequence[Mapping[str, Any]], decisions: Mapping[str, Mapping[str, Any]]) -> str:
    """The cases and what ``precision = "auto"`` decides, as Markdown."""
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    measured = {(case["workload"], case["precision"]): case for case in cases}
    for name in NAMES:
        taken = decisions[name]
        auto = f"{taken['mode']} ({taken['why']})"
        for precision in ("fp32", "bf16"):
            case = measured.get((name, precision))
            if case is None:
                lines.append(f"| {_WHAT[name]} | {precision} | {NO_BF16} | | | | | | {auto} |")
                continue
            ratio = case["throughput_of_plain"]
            cells = [f"{case['seconds'][who]['median']:.3f}" for who in ("plain", "ours")]
            cells += [f"{case['memory_mib'][who]['median']:.0f}" for who in ("plain", "ours")]
            lines.append(
                f"| {_WHAT[name]} | {precision} | {ratio['median']:.3f} ({ratio['min']:.3f} to "
                f"{ratio['max']:.3f}) | {' | '.join(cells)} | "
                f"{case['difference_to_plain']:.0e} | {auto} |"
            )
    return "\n".join(lines) + "\n"
