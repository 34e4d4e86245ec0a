"""Who took part: each hospital's rounds, counted."""

from dataclasses import dataclass

from wardround_server.report.model import Report


@dataclass(frozen=True, slots=True)
class Participation:
    """One hospital over all rounds.

    Attributes:
        site: its name.
        used: rounds whose result contains its update.
        missing: rounds in which it did not reply in time.
        late: of these, those in which a reply came later.
        refused: rounds in which its update was refused.
        codes: why, each code once, in alphabetical order.
    """

    site: str
    used: int
    missing: int
    late: int
    refused: int
    codes: tuple[str, ...]


def participation(report: Report) -> list[Participation]:
    """Each hospital's part in the rounds: those with a comparison first, then all others."""
    rounds = report.rounds
    seen = {
        name: None
        for entry in rounds
        for name in (*entry.sites, *entry.missing, *entry.late, *(r.site for r in entry.refused))
    }
    names = [*report.sites, *sorted(name for name in seen if name not in report.sites)]
    return [
        Participation(
            site=name,
            used=sum(name in entry.sites for entry in rounds),
            missing=sum(name in entry.missing for entry in rounds),
            late=sum(name in entry.late for entry in rounds),
            refused=sum(any(r.site == name for r in entry.refused) for entry in rounds),
            codes=tuple(
                sorted({r.code for entry in rounds for r in entry.refused if r.site == name})
            ),
        )
        for name in names
    ]
