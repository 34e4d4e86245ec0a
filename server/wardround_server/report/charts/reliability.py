"""Reliability diagrams: one small panel a hospital."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Final

from markupsafe import Markup

from wardround_common.evaluation.scores import ModelScore
from wardround_server.report.charts.svg import (
    FEDERATED,
    MUTED,
    RULE,
    Axis,
    Drawing,
    shortened,
)

COLUMNS: Final = 4
CELL: Final = 220.0
CELL_HEIGHT: Final = 236.0
SIDE: Final = 164.0
MOST: Final = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """One hospital's federated model."""

    name: str
    score: ModelScore


def reliability_charts(panels: Sequence[Panel], across: str, up: str) -> list[Markup]:
    """One drawing for each row of panels; at most :data:`MOST` hospitals are drawn.

    Args:
        panels: hospitals; those without bins are left out.
        across: caption of the horizontal axis.
        up: caption of the vertical axis.
    """
    drawn = [panel for panel in panels if panel.score.reliability][:MOST]
    return [
        _row(drawn[at : at + COLUMNS], f"reliability-{at // COLUMNS}", across, up)
        for at in range(0, ceil(len(drawn) / COLUMNS) * COLUMNS, COLUMNS)
    ]


def _row(panels: Sequence[Panel], key: str, across: str, up: str) -> Markup:
    drawing = Drawing(COLUMNS * CELL, CELL_HEIGHT)
    for number, panel in enumerate(panels):
        _panel(drawing, panel, number * CELL)
    drawing.text(36 + SIDE / 2, CELL_HEIGHT - 4, across, size=11.5, anchor="middle", colour=MUTED)
    drawing.parts.append(
        f'<g transform="translate(10 {34 + SIDE / 2:.1f}) rotate(-90)">'
        f'<text text-anchor="middle" font-size="11.5" fill="{MUTED}">{up}</text></g>'
    )
    described = " ".join(
        f"{panel.name}: "
        + "; ".join(
            f"predicted {spot.confidence:.2f}, observed {spot.frequency:.2f}, {spot.count} examples"
            for spot in panel.score.reliability or []
        )
        + "."
        for panel in panels
    )
    return drawing.render(key, "Reliability of the federated model by hospital", described)


def _panel(drawing: Drawing, panel: Panel, left: float) -> None:
    across = Axis(0.0, 1.0, left + 36, left + 36 + SIDE)
    up = Axis(0.0, 1.0, 34 + SIDE, 34)
    drawing.text(left + 36, 14, shortened(panel.name, 24), size=12.5, bold=True)
    if panel.score.calibration is not None:
        error = f"calibration error {panel.score.calibration.expected_error:.3f}"
        drawing.text(left + 36, 28, error, size=11, colour=MUTED)
    for tick in (0.0, 0.5, 1.0):
        drawing.line((across.at(tick), up.at(0)), (across.at(tick), up.at(1)), RULE)
        drawing.line((across.at(0), up.at(tick)), (across.at(1), up.at(tick)), RULE)
        drawing.text(
            across.at(tick), up.at(0) + 15, f"{tick:g}", size=11, anchor="middle", colour=MUTED
        )
        drawing.text(
            across.at(0) - 5, up.at(tick) + 4, f"{tick:g}", size=11, anchor="end", colour=MUTED
        )
    drawing.line((across.at(0), up.at(0)), (across.at(1), up.at(1)), MUTED, dash="3 3")
    bins = panel.score.reliability or []
    largest = max(spot.count for spot in bins)
    spots = [(across.at(spot.confidence), up.at(spot.frequency), spot.count) for spot in bins]
    drawing.path(((x, y) for x, y, _ in spots), FEDERATED.colour, 1.4)
    for x, y, count in spots:
        drawing.disc(x, y, 2.5 + 4.0 * sqrt(count / largest), FEDERATED.colour)
