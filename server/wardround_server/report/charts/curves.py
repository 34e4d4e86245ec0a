"""The learning curves: mean training loss and federated validation metric by round."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from markupsafe import Markup

from wardround_server.report.charts.svg import (
    FEDERATED,
    MUTED,
    RULE,
    Axis,
    Drawing,
    round_ticks,
    tick_texts,
)
from wardround_server.report.model import RoundReport

PANEL: Final = 425.0
HEIGHT: Final = 250.0
TOP: Final = 34.0
BOTTOM: Final = 206.0
MARKED: Final = 40  # with more rounds the line alone is clearer


def learning_curves(rounds: Sequence[RoundReport], metric: str) -> Markup | None:
    """Both curves side by side; None where no round has either number.

    Args:
        rounds: of the run, in order.
        metric: the metric's name in words.
    """
    curves = [
        ("Mean training loss", [(entry.round, entry.loss) for entry in rounds]),
        (f"Validation {metric}", [(entry.round, entry.metric) for entry in rounds]),
    ]
    panels = [
        (name, [(number, value) for number, value in points if value is not None])
        for name, points in curves
    ]
    panels = [(name, points) for name, points in panels if points]
    if not panels:
        return None
    drawing = Drawing(880.0, HEIGHT)
    abandoned = [entry.round for entry in rounds if entry.status == "abandoned"]
    for number, (name, points) in enumerate(panels):
        _panel(drawing, 455.0 * number, name, points, (rounds[0].round, rounds[-1].round))
        _abandoned(drawing, 455.0 * number, abandoned, (rounds[0].round, rounds[-1].round))
    described = "; ".join(
        f"{name} from {points[0][1]:.3f} in round {points[0][0]} to {points[-1][1]:.3f} "
        f"in round {points[-1][0]}"
        for name, points in panels
    )
    return drawing.render("curves", "Learning curves by round", described + ".")


def _across(left: float, ends: tuple[int, int]) -> Axis:
    return Axis(ends[0], max(ends[1], ends[0] + 1), left + 52, left + PANEL - 14)


def _panel(
    drawing: Drawing,
    left: float,
    name: str,
    points: Sequence[tuple[int, float]],
    ends: tuple[int, int],
) -> None:
    across = _across(left, ends)
    values = [value for _, value in points]
    ticks = round_ticks(min(values), max(values), 4)
    up = Axis(ticks[0], ticks[-1], BOTTOM, TOP)
    drawing.text(left + 8, 16, name, size=13, bold=True)
    for tick, label in zip(ticks, tick_texts(ticks), strict=True):
        drawing.line((across.start, up.at(tick)), (across.end, up.at(tick)), RULE)
        drawing.text(
            across.start - 8, up.at(tick) + 4, label, size=11.5, anchor="end", colour=MUTED
        )
    for number in _round_numbers(ends):
        drawing.text(
            across.at(number), BOTTOM + 18, str(number), size=11.5, anchor="middle", colour=MUTED
        )
    drawing.text(
        (across.start + across.end) / 2,
        BOTTOM + 37,
        "round",
        size=12,
        anchor="middle",
        colour=MUTED,
    )
    placed = [(across.at(number), up.at(value)) for number, value in points]
    drawing.path(placed, FEDERATED.colour)
    if len(placed) <= MARKED:
        for x, y in placed:
            drawing.disc(x, y, 3.4, FEDERATED.colour)


def _abandoned(drawing: Drawing, left: float, rounds: Sequence[int], ends: tuple[int, int]) -> None:
    across = _across(left, ends)
    for number in rounds:
        drawing.cross(across.at(number), BOTTOM, "#a3261f")


def _round_numbers(ends: tuple[int, int]) -> list[int]:
    first, last = ends
    if last == first:
        return [first]
    ticks = [int(tick) for tick in round_ticks(first, last, 8) if tick == int(tick)]
    room = 0.6 * min((after - before for before, after in pairwise(ticks)), default=1)
    return sorted({first, last, *(n for n in ticks if first + room <= n <= last - room)})
