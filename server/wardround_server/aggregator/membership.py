"""Who belongs to the consortium, for its coordinator to read: what to compare by telephone is in it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from wardround_common.crypto.certificates import describe
from wardround_server.aggregator.folder import AggregatorFolder
from wardround_server.aggregator.invitations import Invitations
from wardround_server.aggregator.sites import SiteRegister


@dataclass(frozen=True, slots=True)
class Member:
    """A site that is let in, or an invitation that is open.

    Attributes:
        site: its name.
        state: which of the two.
        until: end of its certificate, or of its invitation; empty where that is not known. UTC.
        fingerprint: of its request; empty for an invitation.
        signing_key: by which it signs its receipts; empty before its first answer.
    """

    site: str
    state: Literal["let in", "invited"]
    until: str
    fingerprint: str = ""
    signing_key: str = ""

    def to_lines(self) -> list[str]:
        """For people."""
        until = f", until {self.until}" if self.until else ""
        lines = [f"{self.site}: {self.state}{until}"]
        if self.fingerprint:
            lines.append(f"  fingerprint  {self.fingerprint}")
        if self.signing_key:
            lines.append(f"  signs by     {self.signing_key}")
        return lines


def membership(folder: AggregatorFolder) -> list[Member]:
    """All members and open invitations, by name.

    Raises:
        IntegrityError: a file in ``sites`` is damaged.
    """
    found = [
        Member(
            site.name,
            "let in",
            "" if site.certificate is None else _day(describe(site.certificate.encode()).until),
            site.fingerprint,
            site.signing_key or "",
        )
        for site in SiteRegister(folder).all()
    ]
    found += [
        Member(each.site, "invited", _day(datetime.fromtimestamp(each.expires, UTC)))
        for each in Invitations(folder).open()
    ]
    return sorted(found, key=lambda each: (each.site, each.state))


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
