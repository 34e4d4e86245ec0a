"""Rounds as a table, each way beside the plain app."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Key = tuple[str, str]
"""Way and size."""
CASES: tuple[Key, ...] = (
    ("messages", "small"),
    ("stream", "small"),
    ("plain", "small"),
    ("plain-loading", "small"),
    ("messages", "large"),
    ("stream", "large"),
    ("plain", "large"),
)
_WAYS = {
    "messages": "**wardround**, Flower messages",
    "stream": "**wardround**, tensor stream",
    "plain": "plain Flower app",
    "plain-loading": "plain Flower app that loads a backbone (MiniLM) in each message",
}
_SIZES = {"small": "0.25 MB", "large": "45 MB in 320 tensors"}


def summarise(key: Key, runs: Mapping[Key, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Spread of one case's rounds, and how many times the plain apps take, turn by turn."""
    way, size = key
    seconds = [each for run in runs[key] for each in run]
    summary: dict[str, Any] = {"way": way, "size": size, "seconds": _spread(seconds)}
    for baseline in ("plain", "plain-loading"):
        theirs = runs.get((baseline, size))
        if theirs and not way.startswith("plain"):
            pairs = zip(theirs, runs[key], strict=True)
            ratios = [float(np.median(plain) / np.median(own)) for plain, own in pairs]
            summary[f"{baseline}_over_ours"] = _spread(ratios)
    return summary


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "min": float(min(values)),
        "max": float(max(values)),
    }


def table(cases: Sequence[dict[str, Any]]) -> str:
    """One row a case."""
    titles = ("each site's update", "way", "round, s", "plain app takes", "loading plain app takes")
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for case in cases:
        cells = (
            _SIZES[case["size"]],
            _WAYS[case["way"]],
            _text(case["seconds"], ".3f"),
            _text(case.get("plain_over_ours"), ".1f", "x"),
            _text(case.get("plain-loading_over_ours"), ".1f", "x"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _text(spread: Mapping[str, float] | None, form: str, unit: str = "") -> str:
    if spread is None:
        return ""
    low, mid, high = (format(spread[name], form) for name in ("min", "median", "max"))
    return f"{mid}{unit} ({low} to {high})"
