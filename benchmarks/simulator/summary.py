"""Medians, spreads and paired ratios of the runs, and the table that papers show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.simulator.measure import Run
from benchmarks.simulator.workloads import Workload

MEASURES = ("cpu_s", "wall_s", "beyond_training_ms", "first_round_s", "memory_mib")
TOLERANCE = 1e-5
"""Largest relative difference of final parameters to the bare loop's."""
_WHAT = {"cnn": "CNN, 62,006 parameters", "table": "linear, 140 parameters"}
_WHO = {"bare": "bare loop", "ours": "**wardround**", "flower": "Flower on Ray"}
_COLUMNS = (
    "model, sites",
    "simulator",
    "CPU s a round",
    "of bare loop",
    "CPU ms a site beyond training",
    "wall s a round",
    "start-up and first round, s",
    "memory, MiB",
    "difference to bare loop",
)


def summarise(
    workload: Workload, runs: Mapping[str, Sequence[Run]], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """One case for ``results/simulator.json``.

    Args:
        workload: what was simulated.
        runs: implementation -> its runs, in the order of the repetitions; ``bare`` among them.
        skipped: implementation -> why it has none.
    """
    implementations: dict[str, Any] = {name: {"skipped": why} for name, why in skipped.items()}
    for name, own in runs.items():
        implementations[name] = {
            **{key: spread([getattr(run, key) for run in own]) for key in MEASURES},
            "cpu_of_bare": paired(own, runs["bare"]),
            "difference_to_bare": max(
                difference(run.parameters, bare.parameters)
                for run, bare in zip(own, runs["bare"], strict=True)
            ),
        }
    return {
        "workload": workload.name,
        "num_sites": workload.num_sites,
        "num_rounds": workload.num_rounds,
        "repetitions": len(runs["bare"]),
        "implementations": implementations,
        "cpu_flower_of_ours": paired(runs["flower"], runs["ours"]) if "flower" in runs else None,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def paired(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, float]:
    """Ratios of processor time, each of two runs that followed one another."""
    return spread([run.cpu_s / other.cpu_s for run, other in zip(runs, others, strict=True)])


def difference(parameters: np.ndarray, reference: np.ndarray) -> float:
    """``||a - b|| / ||b||``, in float64; infinite where the lengths differ."""
    if parameters.shape != reference.shape:
        return float("inf")
    apart = parameters.astype(np.float64) - reference
    return float(np.linalg.norm(apart) / np.linalg.norm(reference.astype(np.float64)))


def disagreements(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every implementation whose final parameters are not the bare loop's."""
    return [
        f"{case['workload']}, {case['num_sites']} sites: {name} differs from the bare loop by "
        f"{measured['difference_to_bare']:.1e}, {TOLERANCE} is allowed"
        for case in cases
        for name, measured in case["implementations"].items()
        if not measured.get("difference_to_bare", 0.0) <= TOLERANCE
    ]


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """The cases as a Markdown table: medians, and in brackets the smallest and the largest."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for case in cases:
        what = f"{_WHAT[case['workload']]}; {case['num_sites']}"
        for name, label in _WHO.items():
            measured = case["implementations"][name]
            if "skipped" in measured:
                rows.append((what, label, measured["skipped"], *("",) * (len(_COLUMNS) - 3)))
                continue
            rows.append(
                (
                    what,
                    label,
                    _cell(measured["cpu_s"], 3),
                    _cell(measured["cpu_of_bare"], 2),
                    _cell(measured["beyond_training_ms"], 1),
                    _cell(measured["wall_s"], 2),
                    _cell(measured["first_round_s"], 1),
                    _cell(measured["memory_mib"], 0),
                    f"{measured['difference_to_bare']:.0e}" if name != "bare" else "",
                )
            )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(measured: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{measured[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
