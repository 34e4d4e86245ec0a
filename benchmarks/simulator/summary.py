"""Medians, spreads and paired ratios of the runs, and the table that papers show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.simulator.measure import Run
from benchmarks.simulator.workloads import Workload

MEASURES = ("cpu_s", "wall_s", "beyond_training_ms", "first_round_s", "memory_mib")
TOLERANCE = 1e-5
"""Largest relative difference of parameters to the bare loop's."""
APART = {"pfl"}
"""Implementations that deal batches in an order of their own, so they end elsewhere."""
_WHAT = {
    "cnn": "CNN, 62,006 parameters",
    "resnet18": "ResNet-18, 11.2 million parameters",
    "table": "linear, 140 parameters",
}
_WHO = {
    "bare": "bare loop",
    "ours": "**wardround**",
    "two_workers": "**wardround**, 2 workers",
    "pfl": "pfl 0.6",
    "flower": "Flower on Ray",
}
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
    workload: Workload,
    runs: Mapping[str, Sequence[Run]],
    skipped: Mapping[str, str],
    parameters: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, Any]:
    """One case for ``results/simulator.json``.

    Args:
        workload: what was simulated.
        runs: implementation -> its runs, in the order of the repetitions; ``bare`` among them.
        skipped: implementation -> why it has none.
        parameters: implementation -> what must agree with the bare loop's.
    """
    implementations: dict[str, Any] = {name: {"skipped": why} for name, why in skipped.items()}
    for name, own in runs.items():
        implementations[name] = {
            **{key: spread([getattr(run, key) for run in own]) for key in MEASURES},
            "cpu_of_bare": paired(own, runs["bare"]),
            "difference_to_bare": max(
                difference(found, wanted)
                for found, wanted in zip(parameters[name], parameters["bare"], strict=True)
            ),
        }
    return {
        "workload": workload.name,
        "num_sites": workload.num_sites,
        "num_rounds": workload.num_rounds,
        "repetitions": len(runs["bare"]),
        "implementations": implementations,
        "cpu_flower_of_ours": _of_ours(runs, "flower", "cpu_s"),
        "wall_flower_of_ours": _of_ours(runs, "flower", "wall_s"),
        "beyond_flower_of_ours": _of_ours(runs, "flower", "beyond_training_ms"),
        "wall_one_worker_of_two": (
            paired(runs["ours"], runs["two_workers"], "wall_s") if "two_workers" in runs else None
        ),
    }


def _of_ours(runs: Mapping[str, Sequence[Run]], name: str, measure: str) -> dict[str, float] | None:
    return paired(runs[name], runs["ours"], measure) if name in runs else None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def paired(runs: Sequence[Run], others: Sequence[Run], measure: str = "cpu_s") -> dict[str, float]:
    """Ratios of a measure, each of two runs that followed one another."""
    pairs = zip(runs, others, strict=True)
    return spread([getattr(run, measure) / getattr(other, measure) for run, other in pairs])


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
        if name not in APART and not measured.get("difference_to_bare", 0.0) <= TOLERANCE
    ]


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """The cases as a Markdown table: medians, and in brackets the smallest and the largest."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for case in cases:
        what = f"{_WHAT[case['workload']]}; {case['num_sites']}"
        for name, label in _WHO.items():
            measured = case["implementations"].get(name)
            if measured is None:
                continue
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
                    "" if name == "bare" else _apart(name, measured["difference_to_bare"]),
                )
            )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def ratios(cases: Sequence[Mapping[str, Any]]) -> str:
    """What is asked of the simulator, a line a case."""
    lines = []
    for case in cases:
        said = [f"{_cell(case['implementations']['ours']['cpu_of_bare'], 3)} of a bare loop"]
        for key, words in (
            ("wall_flower_of_ours", "Flower's wall time is {} of ours"),
            ("cpu_flower_of_ours", "its processor time {}"),
            ("beyond_flower_of_ours", "beyond training {}"),
            ("wall_one_worker_of_two", "one worker's wall time is {} of two workers'"),
        ):
            if case[key] is not None:
                said.append(words.format(_cell(case[key], 2)))
        lines.append(f"- {_WHAT[case['workload']]}; {case['num_sites']} sites: {'; '.join(said)}.")
    return "\n".join(lines)


def _apart(name: str, difference_to_bare: float) -> str:
    return "other order" if name in APART else f"{difference_to_bare:.0e}"


def _cell(measured: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{measured[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
