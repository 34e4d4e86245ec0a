"""Medians, paired ratios and the tables of the aggregation benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TOLERANCE = 1e-6
"""Largest difference of the means, relative to the largest value."""
LORA_TOLERANCE = 1e-4
"""Largest relative difference of the product merge to the dense decomposition."""
_WHAT = {"resnet18": "ResNet-18, 45 MB", "bert": "BERT-base, 438 MB"}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Of measurements that followed one another."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def summarise_mean(model: str, count: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """One case of the weighted mean."""
    seconds, size = found["seconds"], found["bytes_in"]
    copied = found["bytes_copied"]
    limit = [copied / each / 3 for each in seconds["copy"]]
    rate = {side: [size / s for s in seconds[side]] for side in ("ours", "ours_checked", "flower")}
    return {
        "model": model,
        "num_sites": count,
        "distinct_buffers": found["distinct_buffers"],
        "cpu_s": {side: spread(each) for side, each in seconds.items()},
        "gb_per_s": {side: spread([r / 1e9 for r in each]) for side, each in rate.items()},
        "cpu_flower_of_ours": ratio(seconds["flower"], seconds["ours"]),
        "cpu_flower_of_ours_checked": ratio(seconds["flower"], seconds["ours_checked"]),
        "share_of_memory_limit": ratio(rate["ours"], limit),
        "difference": found["difference"],
    }


def summarise_lora(found: Mapping[str, Any]) -> dict[str, Any]:
    """The product merge."""
    seconds = found["seconds"]
    return {
        "matrices": found["matrices"],
        "cpu_s": {way: spread(each) for way, each in seconds.items()},
        "cpu_dense_of_product": ratio(seconds["dense"], seconds["product"]),
        "error": found["error"],
    }


def disagreements(means: Sequence[Mapping[str, Any]], lora: Mapping[str, Any]) -> list[str]:
    """Every case whose results are not the baseline's."""
    wrong = [
        f"{case['model']}, {case['num_sites']} sites: {case['difference']:.1e} from Flower's mean"
        for case in means
        if not case["difference"] <= TOLERANCE
    ]
    if not lora["error"] <= LORA_TOLERANCE:
        wrong.append(f"LoRA product merge: {lora['error']:.1e} from the dense decomposition")
    return wrong


def tables(results: Mapping[str, Any]) -> str:
    """The Markdown tables: means, memory, LoRA."""
    rows = [
        (
            "| updates | GB/s in: fold | with admission's checks | Flower | Flower's CPU / ours | "
            "share of copy bandwidth / 3 | largest difference |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for case in results["means"]:
        rate = case["gb_per_s"]
        rows.append(
            f"| {_WHAT[case['model']]}; {case['num_sites']} sites, {case['distinct_buffers']} "
            f"buffers | {_cell(rate['ours'])} | {_cell(rate['ours_checked'])} | "
            f"{_cell(rate['flower'])} | {_cell(case['cpu_flower_of_ours'])} | "
            f"{_cell(case['share_of_memory_limit'])} | {case['difference']:.0e} |"
        )
    rows += ["", "| peak memory in models, the global one included | sites | ours | Flower |"]
    rows += ["|---|---|---|---|"]
    for case in results["memory"]:
        rows.append(
            f"| {_WHAT[case['model']]} | {case['num_sites']} | {case['ours']:.2f} (with the update "
            f"that is being folded; {case['ours'] - 1:.2f} without) | {case['flower']:.2f} |"
        )
    lora = results["lora"]
    spent = {way: _cell(each, 1e3, 1) for way, each in lora["cpu_s"].items()}
    rows += [
        "",
        f"| {lora['matrices']} matrices of 768 x 768, rank 8, 10 sites | CPU ms |",
        "|---|---|",
        f"| product merge, from the factors | {spent['product']} |",
        f"| product merge, dense SVD | {spent['dense']} |",
        f"| mean of the factors (another result) | {spent['factors']} |",
        f"| dense / from the factors | {_cell(lora['cpu_dense_of_product'], 1, 1)} |",
        f"| relative error to the dense result | {lora['error']:.0e} |",
    ]
    return "\n".join(rows) + "\n"


def _cell(measured: Mapping[str, float], scale: float = 1, digits: int = 2) -> str:
    low, median, high = (f"{measured[k] * scale:.{digits}f}" for k in ("min", "median", "max"))
    return f"{median} ({low} to {high})"
