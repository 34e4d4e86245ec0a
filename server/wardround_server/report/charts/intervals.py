"""Dots and intervals of each model at each hospital."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from wardround_common.evaluation.scores import MetricValue
from wardround_server.report.charts.svg import (
    INK,
    MUTED,
    RULE,
    Axis,
    Drawing,
    Style,
    round_ticks,
    tick_texts,
)

WIDTH: Final = 880.0
LEFT: Final = 132.0
RIGHT: Final = 728.0
ROW: Final = 20.0
HEAD: Final = 24.0
GAP: Final = 12.0
AXIS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Row:
    """One model's value at one hospital; None where it was not measurable."""

    style: Style
    value: MetricValue | None


@dataclass(frozen=True, slots=True)
class Block:
    """One hospital.

    Attributes:
        name: its name.
        remark: beside the name, such as the number of patients.
        verdict: at the right; may be empty.
        rows: its models.
    """

    name: str
    remark: str
    verdict: str
    rows: tuple[Row, ...]


def interval_charts(blocks: Sequence[Block], metric: str) -> list[Markup]:
    """One drawing a hospital, all on one scale: they stack to one chart and break over pages.

    Args:
        blocks: the hospitals.
        metric: the metric's name in words.
    """
    ticks = _ticks(blocks)
    last = len(blocks) - 1
    return [
        _chart(block, metric, ticks, f"intervals-{at}", top=at == 0, bottom=at == last)
        for at, block in enumerate(blocks)
    ]


def _ticks(blocks: Sequence[Block]) -> list[float]:
    values = [row.value for block in blocks for row in block.rows if row.value is not None]
    if not values:
        return [0.0, 0.5, 1.0]
    low = min(min(value.low, value.value) for value in values)
    high = max(max(value.high, value.value) for value in values)
    return round_ticks(low, high, 7)


def _chart(
    block: Block, metric: str, ticks: Sequence[float], key: str, *, top: bool, bottom: bool
) -> Markup:
    begin = AXIS if top else 0.0
    end = begin + HEAD + ROW * len(_rows(block)) + GAP
    drawing = Drawing(WIDTH, end + (2 * AXIS if bottom else 0.0))
    axis = Axis(ticks[0], ticks[-1], LEFT, RIGHT)
    for tick, label in zip(ticks, tick_texts(ticks), strict=True):
        drawing.line((axis.at(tick), begin), (axis.at(tick), end), RULE)
        heights = [height for height, wanted in ((begin - 6, top), (end + 15, bottom)) if wanted]
        for height in heights:
            drawing.text(axis.at(tick), height, label, size=11.5, anchor="middle", colour=MUTED)
    if bottom:
        drawing.text((LEFT + RIGHT) / 2, end + 33, metric, size=12, anchor="middle", colour=MUTED)
    _draw_block(drawing, block, axis, begin)
    title = f"{metric} at {block.name} by model, with intervals"
    return drawing.render(key, title, _description(block))


def _rows(block: Block) -> tuple[Row, ...]:
    """Its rows; one only where none could be measured."""
    measured = any(row.value is not None for row in block.rows)
    return block.rows if measured else ()


def _draw_block(drawing: Drawing, block: Block, axis: Axis, top: float) -> None:
    drawing.parts.append(
        f'<rect x="0" y="{top:.1f}" width="{WIDTH:g}" height="{HEAD - 4:g}" fill="#f1f4f7"/>'
    )
    drawing.text(8, top + 14.5, block.name, size=13, bold=True)
    remark_at = max(LEFT + 170, 24 + 7.8 * len(block.name))  # wide enough for any site name
    drawing.text(remark_at, top + 14.5, block.remark, size=12, colour=MUTED)
    drawing.text(WIDTH - 8, top + 14.5, block.verdict, size=12.5, anchor="end", bold=True)
    for number, row in enumerate(_rows(block)):
        middle = top + HEAD + ROW * (number + 0.5)
        drawing.text(8, middle + 4, row.style.label, size=12, colour=MUTED)
        if row.value is None:
            drawing.text(LEFT, middle + 4, "not measurable", size=11.5, colour=MUTED)
            continue
        start, end = (axis.at(edge) for edge in (row.value.low, row.value.high))
        drawing.line((start, middle), (end, middle), row.style.colour, width=2)
        for edge in (start, end):
            drawing.line((edge, middle - 3.5), (edge, middle + 3.5), row.style.colour, width=2)
        drawing.mark(axis.at(row.value.value), middle, row.style)
        numbers = f"{row.value.value:.3f}  ({row.value.low:.2f} to {row.value.high:.2f})"
        drawing.text(WIDTH - 8, middle + 4, numbers, size=11.5, anchor="end", colour=INK)


def _description(block: Block) -> str:
    values = ", ".join(
        f"{row.style.label} {row.value.value:.3f} from {row.value.low:.3f} to {row.value.high:.3f}"
        for row in block.rows
        if row.value is not None
    )
    return f"{block.remark}: {values or 'not measurable'}. {block.verdict}".strip()
