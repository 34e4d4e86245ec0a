"""Who may take part in a run at this moment, and by which key each site signs."""

from typing import Protocol

from wardround_common.types import SiteId


class Members(Protocol):
    """The sites that are let in."""

    def is_member(self, site: SiteId) -> bool:
        """Whether a site is let in now."""
        ...

    def key_of(self, site: SiteId) -> str | None:
        """The public key by which a site signs its receipts; None before its first answer."""
        ...

    def pin(self, site: SiteId, key: str) -> None:
        """From now on a site signs by this key."""
        ...


class EverySite:
    """The members of a run whose sites are all in this process: every one, and none signs."""

    def is_member(self, site: SiteId) -> bool:  # noqa: ARG002  the protocol's signature
        """True."""
        return True

    def key_of(self, site: SiteId) -> None:
        """None: see :class:`Members`."""

    def pin(self, site: SiteId, key: str) -> None:
        """Nothing is kept."""
