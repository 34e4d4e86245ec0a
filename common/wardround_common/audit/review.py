"""A log as a page for a privacy officer: what left, what was refused, what was decided, and whether to believe it.

The page is one file that opens offline, needs no script and loads nothing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wardround_common.audit.entries import Entry
from wardround_common.audit.verify import Verified
from wardround_common.audit.wording import EVENTS, KINDS, REFUSALS

_TEMPLATES: Final = Path(__file__).parent / "templates"
_REFUSED: Final = frozenset({"step_refused", "answer_refused"})
_LEFT: Final = frozenset({"update_released", "answer_admitted"})


@dataclass(slots=True)
class RunReview:
    """What happened for one run.

    Attributes:
        run: its identifier; empty where the log is of one run.
        first, last: when, UTC.
        answers: kind of question -> different questions that were answered.
        num_bytes: that left, answers that were handed over again counted again.
        largest_norm: of its updates; None where that is not in the log.
        sites: who answered, in the log of an aggregator.
    """

    run: str
    first: str
    last: str = ""
    answers: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    largest_norm: float | None = None
    sites: set[str] = field(default_factory=set)


@dataclass(slots=True)
class RefusalReview:
    """How often something was refused for one reason.

    Attributes:
        code: the reason.
        meaning: in words; empty for a code of a later version.
        count: how often.
        last: when it was so last, UTC.
    """

    code: str
    meaning: str
    count: int = 0
    last: str = ""


def render_review(found: Verified, folder: Path, *, since: str = "", until: str = "") -> str:
    """The page.

    Args:
        found: the log, verified.
        folder: where it lies, for the commands on the page.
        since: first day, ``YYYY-MM-DD``; empty for the log's beginning.
        until: last day; empty for its end.

    Returns:
        A whole HTML document; the same log gives the same text.
    """
    entries = [each for each in found.entries if _within(each.at[:10], since, until)]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("review.html.j2").render(
        found=found,
        folder=folder,
        entries=entries,
        runs=_runs(entries),
        refusals=_refusals(entries),
        decisions=[each for each in entries if each.event in EVENTS],
        words=EVENTS,
        kinds=KINDS,
        key=_key(found.entries),
    )


def _within(day: str, since: str, until: str) -> bool:
    return (not since or day >= since) and (not until or day <= until)


def _runs(entries: Iterable[Entry]) -> list[RunReview]:
    runs: dict[str, RunReview] = {}
    seen: set[tuple[str, str, str]] = set()
    for entry in entries:
        if entry.event not in _LEFT:
            continue
        name, site = str(entry.fields.get("run", "")), str(entry.fields.get("site", ""))
        run = runs.setdefault(name, RunReview(name, entry.at))
        run.last = entry.at
        question = (name, str(entry.fields.get("step")), site)
        run.answers[str(entry.fields.get("kind"))] += question not in seen
        seen.add(question)
        run.num_bytes += int(entry.fields.get("bytes_out", 0))
        norm = entry.fields.get("update_norm")
        if norm is not None:
            run.largest_norm = max(run.largest_norm or 0.0, float(norm))
        run.sites |= {site} - {""}
    return list(runs.values())


def _refusals(entries: Iterable[Entry]) -> list[RefusalReview]:
    found: dict[str, RefusalReview] = {}
    for entry in entries:
        if entry.event in _REFUSED:
            code = str(entry.fields.get("code", ""))
            refusal = found.setdefault(code, RefusalReview(code, REFUSALS.get(code, "")))
            refusal.count += 1
            refusal.last = entry.at
    return sorted(found.values(), key=lambda each: (-each.count, each.code))


def _key(entries: Sequence[Entry]) -> str:
    """The public key of the log, as its first entry says; empty if that was let go."""
    opened = (each for each in entries if each.event == "log_opened")
    return next((str(each.fields.get("key", "")) for each in opened), "")
