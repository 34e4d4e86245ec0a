"""Medians, spreads and paired ratios of the exchange, and the tables that papers show."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.simulator.summary import spread

LEAST_RATIO, MOST_EXTRA = 2.5, 0.05
_WHO = {
    "ours": "**wardround**: packed, one digest",
    "ours-checked": "the same, digest checked by the receiver",
    "flower": "Flower's records as sent",
}


def summarise_ways(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Way -> spreads, and the processor time of Flower's beside it, run by run."""
    found: dict[str, Any] = {}
    for name, own in runs.items():
        pairs = zip(runs["flower"], own, strict=True)
        found[name] = {
            key: spread([run[key] for run in own])
            for key in ("encode_s", "decode_s", "cpu_s", "first_cpu_s", "extra_models")
        }
        found[name]["flower_of_this"] = spread([f["cpu_s"] / o["cpu_s"] for f, o in pairs])
    return found


def disagreements(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Every way that does not end in the same tensors as the others."""
    digests = {name: {run["sha256"] for run in own} for name, own in runs.items()}
    same = set.union(*digests.values())
    return [] if len(same) == 1 else [f"received tensors differ: {digests}"]


def tables(results: Mapping[str, Any]) -> str:
    """All of it as Markdown."""
    return "\n".join(
        (_ways(results["ways"]), _codecs(results["codecs"]), _traffic(results["traffic"]))
    )


def _ways(ways: Mapping[str, Any]) -> str:
    rows = ["BERT-base, 438 MB", "encode, CPU ms", "decode, CPU ms", "Flower's CPU time of this"]
    lines = [_row([*rows, "memory beyond the update, models"]), _row(["---"] * 5)]
    for name, label in _WHO.items():
        way = ways[name]
        cells = (_cell(way["encode_s"], 0, 1e3), _cell(way["decode_s"], 1, 1e3))
        ratio = "" if name == "flower" else _cell(way["flower_of_this"], 2)
        lines.append(_row([label, *cells, ratio, _cell(way["extra_models"], 3)]))
    return "".join(lines)


def _codecs(codecs: Mapping[str, Any]) -> str:
    head = ["coding", "bytes of float32", "relative error", "encode, MB/s", "decode, MB/s"]
    lines = [_row(head), _row(["---"] * 5)]
    for name, one in codecs.items():
        speeds = (_cell(one["encode_mb_s"], 0), _cell(one["decode_mb_s"], 0))
        ratio, error = f"1/{one['ratio']:.2f}", f"{one['relative_error']:.2%}"
        lines.append(_row([name, ratio, error, *speeds]))
    return "".join(lines)


def _traffic(cases: Sequence[Mapping[str, Any]]) -> str:
    head = ["trained", "coding", "bytes up", "of which array", "wanted at most", "bytes down"]
    lines = [_row(head), _row(["---"] * 6)]
    for case in cases:
        numbers = ("bytes_up", "bytes_array", "most_bytes", "bytes_down")
        lines.append(_row([case["name"], case["coding"], *(f"{case[n]:,}" for n in numbers)]))
    return "".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _cell(measured: Mapping[str, float], digits: int, scale: float = 1.0) -> str:
    median, low, high = (f"{measured[k] * scale:.{digits}f}" for k in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
