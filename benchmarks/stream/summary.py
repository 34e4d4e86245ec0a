"""Cases as a table, beside what is promised."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MB = 1e6
STALLED_BYTES = 64 * 1024


def summarise(case: dict[str, Any]) -> dict[str, Any]:
    """Medians and ratios of one case's rounds."""
    seconds, moved = case["seconds"], 2 * case["num_sites"] * case["num_bytes"]
    allowed = 2 * case["num_bytes"] + case["num_sites"] * 4 * MB
    allowed += case["num_stalled"] * STALLED_BYTES
    return {
        **case,
        "median_s": float(np.median(seconds)),
        "p99_s": float(np.quantile(seconds, 0.99)),
        "mb_per_s": moved / MB / float(np.median(seconds)),
        "extra_models": case["extra_bytes"] / case["num_bytes"],
        "allowed_bytes": allowed,
    }


def table(cases: Sequence[dict[str, Any]]) -> str:
    """One row a case."""
    titles = (
        "sites",
        "update",
        "stalled connections beside",
        "round, median (99 %)",
        "both ways",
        "CPU of the aggregator, of all sites",
        "memory above the one before the model was made (allowed)",
    )
    rows = [f"| {' | '.join(titles)} |", "|--:" * len(titles) + "|"]
    rows += [_row(case) for case in cases]
    return "\n".join(rows)


def _row(case: dict[str, Any]) -> str:
    return (
        f"| {case['num_sites']} | {case['num_bytes'] / MB:.3g} MB | {case['num_stalled']} "
        f"| {case['median_s'] * 1e3:.0f} ms ({case['p99_s'] * 1e3:.0f}) "
        f"| {case['mb_per_s']:.0f} MB/s "
        f"| {case['aggregator_cpu_s']:.2f} s, {case['sites_cpu_s']:.2f} s "
        f"| {case['extra_bytes'] / MB:.0f} MB ({case['allowed_bytes'] / MB:.0f}) |"
    )
