"""Runs the cases in turn, each in a process of its own, and compares them."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_S = 7200
TOLERANCE = 1e-3
"""Largest relative difference of parameters: float32 sums of other batches, over 20 rounds."""
ACCURACY = 0.005
"""Largest difference of accuracy."""
_COLUMNS = ("what", "plain loop, CPU s", "ours, CPU s", "ratio", "target", "difference", "accuracy")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared with what.

    Attributes:
        title: for the table.
        plain: the case of the baseline.
        ours: our case.
        target: the ratio that is wanted; None where none is set.
    """

    title: str
    plain: str
    ours: str
    target: float | None


EPOCH = Comparison("epoch of a head, ResNet-18", "epoch-plain", "epoch-ours", 1000.0)
STUDY = Comparison("20-round study, ResNet-18, 224 px", "large-plain", "large-ours", 15.0)
AGAIN = Comparison("the same again, ResNet-18", "large-plain", "large-again", 500.0)
LITE = Comparison("20-round study, EfficientNet-lite0, 128 px", "study-plain", "study-ours", None)
LITE_AGAIN = Comparison("the same again, EfficientNet-lite0", "study-plain", "study-again", None)
BLOCKS = Comparison("round of the last 2 blocks", "blocks-whole", "blocks-kept", None)
COMPARISONS = (EPOCH, STUDY, AGAIN, LITE, LITE_AGAIN, BLOCKS)
OFTEN = ("epoch-plain", "epoch-ours", "study-plain", "study-ours", "study-again")
OFTEN += ("blocks-whole", "blocks-kept")
ONCE = ("large-plain", "large-ours", "large-again")
"""Cases of the first turn alone: a quarter of an hour."""


@dataclass(frozen=True, slots=True)
class Run:
    """One case: its times in seconds, accuracy, and trained parameters."""

    cpu_s: float
    wall_s: float
    accuracy: float | None
    parameters: np.ndarray


def measure(repetitions: int, *, quick: bool) -> dict[str, list[Run]]:
    """All cases in turn, as often as wanted; each turn begins with an empty cache.

    Args:
        repetitions: turns; the large study is only in the first.
        quick: 120 training images.
    """
    runs: dict[str, list[Run]] = {name: [] for name in (*OFTEN, *ONCE)}
    for repetition in range(repetitions):
        with tempfile.TemporaryDirectory() as cache:
            for name in (*OFTEN, *ONCE) if repetition == 0 else OFTEN:
                run = run_case(name, Path(cache), quick=quick)
                runs[name].append(run)
                print(f"{repetition + 1} of {repetitions}: {name} {run.cpu_s:.4f} s", flush=True)
    return runs


def run_case(name: str, cache: Path, *, quick: bool) -> Run:
    """One case in a fresh process.

    Raises:
        RuntimeError: it failed; the message ends with its last output.
    """
    case = name.replace("again", "ours")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command = [sys.executable, "-m", "benchmarks.frozen.case", case, str(cache), folder]
        done = subprocess.run(
            [*command, *(["--quick"] if quick else [])],
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        if done.returncode:
            last = done.stderr.decode(errors="replace")[-2000:]
            raise RuntimeError(f"{name}: exit {done.returncode}\n{last}")
        case_ = json.loads((out / "case.json").read_text())
        return Run(**case_, parameters=np.load(out / "parameters.npy"))


def summarise(comparison: Comparison, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians, paired ratios, differences."""
    pairs = list(zip(runs[comparison.plain], runs[comparison.ours], strict=True))
    ratios = [plain.cpu_s / ours.cpu_s for plain, ours in pairs]
    accuracies = [(plain.accuracy, ours.accuracy) for plain, ours in pairs]
    return {
        "title": comparison.title,
        "plain_cpu_s": float(np.median([plain.cpu_s for plain, _ in pairs])),
        "ours_cpu_s": float(np.median([ours.cpu_s for _, ours in pairs])),
        "plain_wall_s": float(np.median([plain.wall_s for plain, _ in pairs])),
        "ours_wall_s": float(np.median([ours.wall_s for _, ours in pairs])),
        "ratio": {
            "median": float(np.median(ratios)),
            "min": min(ratios),
            "max": max(ratios),
        },
        "target": comparison.target,
        "difference": max(difference(plain.parameters, ours.parameters) for plain, ours in pairs),
        "accuracies": accuracies[0],
    }


def difference(plain: np.ndarray, ours: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest value."""
    return float(np.abs(plain - ours).max() / max(np.abs(plain).max(), 1e-12))


def disagreements(summaries: list[dict[str, Any]]) -> list[str]:
    """What did not end in the same result, a line each."""
    wrong = []
    for summary in summaries:
        plain, ours = summary["accuracies"]
        if not summary["difference"] <= TOLERANCE:
            wrong.append(f"{summary['title']}: parameters differ by {summary['difference']:.2e}")
        if plain is not None and abs(plain - ours) > ACCURACY:
            wrong.append(f"{summary['title']}: accuracy {ours:.4f}, plain loop {plain:.4f}")
    return wrong


def table(summaries: list[dict[str, Any]]) -> str:
    """The table for the paper."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    for summary in summaries:
        ratio, target = summary["ratio"], summary["target"]
        plain, ours = summary["accuracies"]
        cells = (
            summary["title"],
            f"{summary['plain_cpu_s']:.3g}",
            f"{summary['ours_cpu_s']:.3g}",
            "{}x ({} to {})".format(*(_short(ratio[key]) for key in ("median", "min", "max"))),
            "" if target is None else f"{target:.0f}x",
            f"{summary['difference']:.1e}",
            "" if plain is None else f"{ours:.3f}, plain {plain:.3f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(value: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
