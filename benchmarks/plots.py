"""Draws ``docs/plots/*.svg`` from ``benchmarks/results/*.json``: ``python -m benchmarks.plots``.

Bars show medians and whiskers the smallest and the largest run. A result that is not there is not
drawn.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from statistics import median
from typing import Any

from wardround_server.report.charts.svg import (
    FEDERATED,
    INK,
    LOCAL,
    MUTED,
    RULE,
    Axis,
    Drawing,
    round_ticks,
    tick_texts,
)

ROOT = Path(__file__).parents[1]
RESULTS, PLOTS = ROOT / "benchmarks" / "results", ROOT / "docs" / "plots"
OURS, THEIRS = FEDERATED.colour, LOCAL.colour
_LEFT, _RIGHT, _ROW = 300.0, 690.0, 19.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it stands for, its median and its ends."""

    label: str
    median: float
    low: float
    high: float
    colour: str = THEIRS


def bars(key: str, title: str, unit: str, rows: Sequence[Bar], *, log: bool = False) -> str:
    """Horizontal bars.

    Args:
        key: the file's name.
        title: what is shown.
        unit: of the values.
        rows: from top to bottom.
        log: a logarithmic axis.
    """
    height = 66.0 + _ROW * len(rows)
    drawing = Drawing(_RIGHT + 60, height)
    drawing.text(8, 20, title, size=14, bold=True)
    scale: Callable[[float], float] = (lambda v: log10(max(v, 1e-9))) if log else (lambda v: v)
    values = [scale(value) for row in rows for value in (row.low, row.high)]
    low = min(values) - 0.3 if log else 0.0
    ticks = round_ticks(low, max(values), 6)
    axis = Axis(ticks[0], ticks[-1], _LEFT, _RIGHT)
    bottom = height - 28
    texts = [f"{10**tick:.3g}" for tick in ticks] if log else tick_texts(ticks)
    for tick, text in zip(ticks, texts, strict=True):
        drawing.line((axis.at(tick), 32), (axis.at(tick), bottom), RULE)
        drawing.text(axis.at(tick), bottom + 14, text, size=11, anchor="middle", colour=MUTED)
    drawing.text(_RIGHT, bottom + 27, unit, size=11, anchor="end", colour=MUTED)
    for place, row in enumerate(rows):
        y = 45.0 + _ROW * place
        drawing.text(_LEFT - 8, y + 4, row.label, size=12, anchor="end")
        drawing.line((_LEFT, y), (axis.at(scale(row.median)), y), row.colour, width=11)
        drawing.line((axis.at(scale(row.low)), y), (axis.at(scale(row.high)), y), INK, width=1.5)
        end = axis.at(scale(max(row.high, row.median)))
        drawing.text(end + 5, y + 4, f"{row.median:.3g}", size=11, colour=INK)
    said = "; ".join(f"{row.label}: {row.median:.3g}" for row in rows)
    return str(drawing.render(key, title, f"{unit}. {said}."))


def growth(key: str, title: str, rows: Sequence[dict[str, Any]]) -> str:
    """Two panels over the number of sites: processor time a site, and memory."""
    drawing = Drawing(_RIGHT + 60, 250)
    drawing.text(8, 20, title, size=14, bold=True)
    across = [log10(row["num_sites"]) for row in rows]
    for left, measure, unit in ((60.0, "ms_a_site", "CPU ms a site"), (420.0, "memory_mib", "MiB")):
        x = Axis(0.0, max(*across, 1.0), left, left + 270)
        top = max(row[name][measure] for row in rows for name in ("bare", "ours"))
        ticks = round_ticks(0.0, top, 5)
        y = Axis(0.0, ticks[-1], 205, 52)
        for tick, text in zip(ticks, tick_texts(ticks), strict=True):
            drawing.line((left, y.at(tick)), (left + 270, y.at(tick)), RULE)
            drawing.text(left - 6, y.at(tick) + 4, text, size=11, anchor="end", colour=MUTED)
        for place, row in zip(across, rows, strict=True):
            sites = f"{row['num_sites']:,}"
            drawing.text(x.at(place), 222, sites, size=11, anchor="middle", colour=MUTED)
        drawing.text(left, 42, unit, size=12)
        for name, style in (("bare", LOCAL), ("ours", FEDERATED)):
            points = [(x.at(a), y.at(r[name][measure])) for a, r in zip(across, rows, strict=True)]
            drawing.path(points, style.colour)
            for point in points:
                drawing.mark(*point, style, 3.4)
    drawing.text(
        60, 243, "Sites. Grey ring: bare loop; blue dot: wardround.", size=11, colour=MUTED
    )
    last = rows[-1]
    said = f"At {last['num_sites']} sites: {last['ours']['ms_a_site']:.1f} ms a site."
    return str(drawing.render(key, title, said))


def _bar(label: str, spread: dict[str, float], *, ours: bool = False, scale: float = 1.0) -> Bar:
    low, mid, high = (spread[name] * scale for name in ("min", "median", "max"))
    return Bar(label, mid, low, high, OURS if ours else THEIRS)


def simulator(results: dict[str, Any]) -> dict[str, str]:
    """Processor time of a round, of a bare loop's; and growth."""
    models = {"cnn": "CNN", "resnet18": "ResNet-18", "table": "linear"}
    who = {
        "ours": "wardround",
        "two_workers": "wardround, 2 workers",
        "pfl": "pfl",
        "flower": "Flower on Ray",
    }
    rows = [
        _bar(
            f"{models[case['workload']]}, {case['num_sites']} sites: {label}",
            case["implementations"][name]["cpu_of_bare"],
            ours=name in {"ours", "two_workers"},
        )
        for case in results["cases"]
        for name, label in who.items()
        if "cpu_of_bare" in case["implementations"].get(name, {})
    ]
    title = "A simulated round: processor time of the whole process tree"
    return {
        "simulator": bars("simulator", title, "of a bare loop", rows),
        "simulator-growth": growth(
            "simulator-growth", "Growth with the number of sites", results["growth"]
        ),
    }


def aggregation(results: dict[str, Any]) -> dict[str, str]:
    """Gigabytes a second into the mean."""
    models = {"resnet18": "45 MB", "bert": "438 MB"}
    rows = [
        _bar(
            f"{case['num_sites']} updates of {models[case['model']]}: {label}",
            case["gb_per_s"][name],
            ours=name == "ours",
        )
        for case in results["means"]
        for name, label in (("ours", "wardround"), ("flower", "Flower"))
    ]
    return {"aggregation": bars("aggregation", "Weighted mean of updates", "GB/s in", rows)}


def exchange(results: dict[str, Any]) -> dict[str, str]:
    """Encode, hash and decode."""
    labels = {
        "ours": "wardround, one digest",
        "ours-checked": "wardround, checked again",
        "flower": "Flower as sent",
    }
    rows = [
        _bar(label, results["ways"][name]["cpu_s"], ours=name != "flower", scale=1e3)
        for name, label in labels.items()
    ]
    return {"exchange": bars("exchange", "438 MB to bytes and back", "CPU ms", rows)}


def frozen(results: dict[str, Any]) -> dict[str, str]:
    """How many times faster what is frozen makes it."""
    rows = [_bar(case["title"], case["ratio"], ours=True) for case in results["cases"]]
    title = "What is frozen is computed once"
    return {"frozen": bars("frozen", title, "plain loop's time of ours", rows, log=True)}


def local(results: dict[str, Any]) -> dict[str, str]:
    """Our local loop's throughput of the plain loop's."""
    labels = {"resnet50": "ResNet-50", "vit": "ViT", "bert": "BERT", "lora": "BERT, LoRA"}
    rows = [
        _bar(
            f"{labels.get(case['workload'], case['workload'])}, {case['precision']}",
            case["throughput_of_plain"],
            ours=True,
        )
        for case in results["cases"]
        if "throughput_of_plain" in case
    ]
    return {"local": bars("local", "Local training", "throughput of a plain loop's", rows)}


def coding(results: dict[str, Any]) -> dict[str, str]:
    """The federated model's metric with each coding: median, smallest and largest of the seeds."""
    found: dict[str, list[float]] = {}
    for name, run in results["runs"].items():
        found.setdefault(name.rpartition(" ")[0], []).append(run["metric"])
    rows = [
        Bar(name, median(metrics), min(metrics), max(metrics), OURS if "int8" in name else THEIRS)
        for name, metrics in sorted(found.items())
    ]
    return {"coding": bars("coding", "Coded exchange, five seeds", "held-out metric", rows)}


def rounds(results: dict[str, Any]) -> dict[str, str]:
    """Seconds of a deployed round beside its training."""
    ways = {
        "messages": "wardround, messages",
        "stream": "wardround, stream",
        "plain": "plain Flower app",
        "plain-loading": "Flower app that loads a model",
    }
    sizes = {"small": "0.25 MB", "large": "45 MB"}
    rows = [
        _bar(
            f"{sizes[case['size']]}: {ways[case['way']]}",
            case["seconds"],
            ours=not case["way"].startswith("plain"),
        )
        for case in results["cases"]
    ]
    title = "A round between machines, beside its training"
    return {"rounds": bars("rounds", title, "seconds", rows, log=True)}


def stream(results: dict[str, Any]) -> dict[str, str]:
    """Both ways through the aggregator, in MB/s of the median round."""
    rows = [
        Bar(
            f"{case['num_sites']} sites of {case['num_bytes'] / 1e6:.3g} MB",
            *(
                2e-6 * case["num_sites"] * case["num_bytes"] / pick(case["seconds"])
                for pick in (median, max, min)
            ),
            OURS,
        )
        for case in results["cases"]
        if not case["num_stalled"] and case["num_bytes"] > 1e6
    ]
    title = "Tensor stream through one aggregator"
    return {"stream": bars("stream", title, "MB/s both ways", rows)}


PARTS: dict[str, Callable[[dict[str, Any]], dict[str, str]]] = {
    "aggregation": aggregation,
    "coding": coding,
    "exchange": exchange,
    "frozen": frozen,
    "local": local,
    "rounds": rounds,
    "simulator": simulator,
    "stream": stream,
}


def main() -> None:
    """Draw every part that has results."""
    PLOTS.mkdir(exist_ok=True)
    for part, draw in PARTS.items():
        path = RESULTS / f"{part}.json"
        if not path.exists():
            continue
        for name, markup in draw(json.loads(path.read_text())).items():
            with_namespace = markup.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
            (PLOTS / f"{name}.svg").write_text(with_namespace + "\n")
            print(PLOTS / f"{name}.svg")


if __name__ == "__main__":
    main()
