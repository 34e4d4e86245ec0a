"""Whose site is looked at, and when."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wardround_common.spec.policy import PolicySpec
from wardround_common.spec.site import SiteSpec, resolve


@dataclass(frozen=True, slots=True)
class Examined:
    """A site whose file can be read.

    Attributes:
        site: the file.
        base: its folder.
        policy: the site's; None if it cannot be read.
        moment: this machine's time.
    """

    site: SiteSpec
    base: Path
    policy: PolicySpec | None
    moment: datetime

    @property
    def now(self) -> datetime:
        """This machine's time, UTC."""
        return self.moment.astimezone(UTC)

    @staticmethod
    def may_see(path: Path, mode: int = os.R_OK) -> bool:
        """Whether this user may look at a path, or it is not there in a place that this user sees."""
        try:
            return os.access(path, mode) if path.exists() else True
        except PermissionError:
            return False

    def path(self, name: str) -> Path:
        """A path of the site's file."""
        return resolve(self.base, name)
