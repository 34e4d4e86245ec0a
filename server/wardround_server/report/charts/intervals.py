"""Dots and intervals of each model at each hospital, one drawing for a few hospitals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from wardround_common.evaluation.scores import MetricValue
from wardround_server.report.charts.svg import INK, MUTED, RULE, Axis, Drawing, Style, round_ticks

WIDTH: Final = 880.0
LEFT: Final = 132.0
RIGHT: Final = 728.0
ROW: Final = 20.0
HEAD: Final = 24.0
GAP: Final = 16.0
TOP: Final = 10.0
PER_DRAWING: Final = 8


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
    """All hospitals on one scale, in drawings short enough for a printed page.

    Args:
        blocks: the hospitals.
        metric: the metric's name in words.
    """
    ticks = _ticks(blocks)
    pages = [blocks[at : at + PER_DRAWING] for at in range(0, len(blocks), PER_DRAWING)]
    return [_chart(page, metric, ticks, f"intervals-{at}") for at, page in enumerate(pages)]


def _ticks(blocks: Sequence[Block]) -> list[float]:
    values = [row.value for block in blocks for row in block.rows if row.value is not None]
    if not values:
        return [0.0, 0.5, 1.0]
    low = min(min(value.low, value.value) for value in values)
    high = max(max(value.high, value.value) for value in values)
    return round_ticks(low, high, 7)


def _chart(blocks: Sequence[Block], metric: str, ticks: Sequence[float], key: str) -> Markup:
    heights = [HEAD + ROW * len(block.rows) + GAP for block in blocks]
    bottom = TOP + sum(heights)
    drawing = Drawing(WIDTH, bottom + 34)
    axis = Axis(ticks[0], ticks[-1], LEFT, RIGHT)
    for tick in ticks:
        drawing.line((axis.at(tick), TOP), (axis.at(tick), bottom), RULE)
        drawing.text(
            axis.at(tick), bottom + 15, f"{tick:g}", size=11.5, anchor="middle", colour=MUTED
        )
    drawing.text((LEFT + RIGHT) / 2, bottom + 31, metric, size=12, anchor="middle", colour=MUTED)
    top = TOP
    for block, height in zip(blocks, heights, strict=True):
        _draw_block(drawing, block, axis, top)
        top += height
    return drawing.render(
        key, f"{metric} by hospital and model, with intervals", _description(blocks)
    )


def _draw_block(drawing: Drawing, block: Block, axis: Axis, top: float) -> None:
    drawing.parts.append(
        f'<rect x="0" y="{top:.1f}" width="{WIDTH:g}" height="{HEAD - 4:g}" fill="#f1f4f7"/>'
    )
    drawing.text(8, top + 14.5, block.name, size=13, bold=True)
    drawing.text(LEFT + 170, top + 14.5, block.remark, size=12, colour=MUTED)
    drawing.text(WIDTH - 8, top + 14.5, block.verdict, size=12.5, anchor="end", bold=True)
    for number, row in enumerate(block.rows):
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


def _description(blocks: Sequence[Block]) -> str:
    sentences = []
    for block in blocks:
        values = ", ".join(
            f"{row.style.label} {row.value.value:.3f} from {row.value.low:.3f} "
            f"to {row.value.high:.3f}"
            for row in block.rows
            if row.value is not None
        )
        sentences.append(f"{block.name}: {values or 'not measurable'}. {block.verdict}".strip())
    return " ".join(sentences)
