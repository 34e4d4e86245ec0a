"""A small SVG canvas.

1. Every text is escaped; nothing else than numbers and fixed words enters the markup.
2. Every drawing has a title and a description for those who do not see it.
3. Models differ in shape as well as in colour; all colours have a contrast of at least 3:1 on
   white, all text at least 4.5:1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10
from typing import Final, Literal

from markupsafe import Markup

INK: Final = "#1c2733"
MUTED: Final = "#56616d"
RULE: Final = "#dde2e7"
PAPER: Final = "#ffffff"

Shape = Literal["ring", "dot", "diamond", "square", "triangle"]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Style:
    """How one model is drawn."""

    label: str
    colour: str
    shape: Shape


LOCAL: Final = Style("Local only", "#6a7480", "ring")
FEDERATED: Final = Style("Federated", "#0b5a9c", "dot")
PERSONALISED: Final = Style("Personalised", "#a8500a", "diamond")
EXACT_HEAD: Final = Style("Exact head", "#3f7a3a", "triangle")
POOLED: Final = Style("Pooled", "#1c2733", "square")


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map from values to pixels.

    Attributes:
        low: value at ``start``.
        high: value at ``end``, above ``low``.
        start: pixel.
        end: pixel; below ``start`` for a vertical axis.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value; values outside are drawn at the rim."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers that enclose ``low`` and ``high``: at most about ``most`` of them, at least 2.

    Numbers that are (nearly) equal get an axis that is a ten-thousandth of them wide: more digits
    than anybody reads would be lost in the rounding of the ticks.
    """
    span = max(high - low, 1e-4 * max(abs(low), abs(high), 1e-2))
    power = 10.0 ** floor(log10(span / most))
    step = next(power * unit for unit in (1, 2, 5, 10, 20) if span / (power * unit) <= most)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """The numbers at an axis, all with as many digits as the finest of them needs."""
    digits = max(len(f"{tick:.10g}".partition(".")[2]) for tick in ticks)
    return [f"{tick:.{digits}f}" for tick in ticks]


@dataclass(slots=True)
class Drawing:
    """An SVG in the making; sizes in pixels of its view box."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], colour: str, *,
        width: float = 1.0, dash: str = "",
    ) -> None:  # fmt: skip
        """A straight line."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
            f'stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
        )

    def path(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1.8) -> None:
        """A line through points."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{colour}" '
            f'stroke-width="{width:g}" stroke-linejoin="round"/>'
        )

    def text(
        self, x: float, y: float, content: str, *, size: float = 12, anchor: Anchor = "start",
        colour: str = INK, bold: bool = False,
    ) -> None:  # fmt: skip
        """One line of text with its baseline at ``y``."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{colour}"{weight}>{escape(content)}</text>'
        )

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        """A filled circle with a white rim."""
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" '
            f'stroke="{PAPER}" stroke-width="1"/>'
        )

    def cross(self, x: float, y: float, colour: str, arm: float = 3.5) -> None:
        """A small x."""
        self.line((x - arm, y - arm), (x + arm, y + arm), colour, width=1.6)
        self.line((x - arm, y + arm), (x + arm, y - arm), colour, width=1.6)

    def mark(self, x: float, y: float, style: Style, size: float = 4.6) -> None:
        """The mark of one model."""
        if style.shape in {"dot", "ring"}:
            fill = PAPER if style.shape == "ring" else style.colour
            self.parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" fill="{fill}" '
                f'stroke="{style.colour}" stroke-width="2"/>'
            )
            return
        corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _corners(style.shape, size))
        self.parts.append(
            f'<polygon points="{corners}" fill="{style.colour}" stroke="{style.colour}" '
            'stroke-width="1" stroke-linejoin="round"/>'
        )

    def render(self, key: str, title: str, description: str) -> Markup:
        """The finished element.

        Args:
            key: unique in the page; letters, digits and hyphens.
            title: what the drawing shows.
            description: what can be read from it, in words.
        """
        return Markup(  # noqa: S704  every text above and below is escaped
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-labelledby="{key}-title {key}-desc">'
            f'<title id="{key}-title">{escape(title)}</title>'
            f'<desc id="{key}-desc">{escape(description)}</desc>'
            f"{''.join(self.parts)}</svg>"
        )


def _corners(shape: Shape, size: float) -> Sequence[tuple[float, float]]:
    if shape == "diamond":
        return ((0, -size - 1.2), (size + 1.2, 0), (0, size + 1.2), (-size - 1.2, 0))
    if shape == "triangle":
        return ((0, -size - 0.6), (size + 0.8, size - 0.6), (-size - 0.8, size - 0.6))
    side = size - 0.4
    return ((-side, -side), (side, -side), (side, side), (-side, side))


def shortened(text: str, most: int) -> str:
    """``text`` cut to ``most`` characters, with an ellipsis where something was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"
