"""Tokens: each lets one site enrol, once, until it expires.

1. Only a digest of a token's secret is kept.
2. The keys that come with a token first are the only ones; they are remembered before anything is done
   for them, and get the same kit again, so that a lost answer does no harm.
3. Whoever makes a token for a site that is let in gives it leave to come with new keys.
"""

import secrets
import time
from collections.abc import Callable
from typing import Final

from wardround_common.crypto.certificates import key_digest
from wardround_common.durable import replace_file
from wardround_common.enrolment import (
    EnrolmentKit,
    EnrolmentToken,
    Redemption,
    authority_digest,
)
from wardround_common.errors import ConfigError, EnrolmentError
from wardround_common.types import Digest, sha256_hex
from wardround_common.wire.step import HexDigest, SiteName, WireModel
from wardround_server.aggregator.folder import AggregatorFolder, held
from wardround_server.aggregator.setup import kit_for
from wardround_server.aggregator.sites import SiteRegister

_DAY_S: Final = 86_400.0
_PATIENCE_S: Final = 10.0


class Invitation(WireModel):
    """A token, as the aggregator keeps it.

    Attributes:
        site: whom it is for.
        expires: Unix time.
        address: ``host:port`` for the site's kit; None for what the file says.
        used_by: the keys that came with it; None before.
        kit: what that request got; None before.
    """

    site: SiteName
    expires: float
    address: str | None = None
    used_by: HexDigest | None = None
    kit: EnrolmentKit | None = None


class Invitations:
    """The tokens of one aggregator.

    Args:
        folder: the aggregator's.
        clock: Unix time.
    """

    def __init__(self, folder: AggregatorFolder, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._register = SiteRegister(folder)
        self._clock = clock

    def make(
        self, site: str, enrol_at: str, *, days: float, address: str | None = None
    ) -> EnrolmentToken:
        """Make a token.

        Args:
            site: whom it is for.
            enrol_at: ``host:port`` where the site enrols.
            days: of validity.
            address: ``host:port`` for the site's kit; None for what the file says.

        Raises:
            ConfigError: another command changes the list of sites (``sites_busy``).
        """
        secret = secrets.token_hex(16)
        token = EnrolmentToken(
            site=site,
            address=enrol_at,
            authority_sha256=authority_digest(self._folder.authority.read_bytes()),
            secret=secret,
        )
        self._folder.invitations.mkdir(mode=0o700, exist_ok=True)
        until = self._clock() + days * _DAY_S
        self._register.note("site_invited", site=site, invitation=_name(secret), days=days)
        self._write(secret, Invitation(site=site, expires=until, address=address))
        return token

    def redeem(self, sent: Redemption) -> EnrolmentKit:
        """Let a site in.

        Raises:
            EnrolmentError: the token is unknown or cancelled (``token_unknown``), used by another
                request (``token_used``), too old (``token_expired``) or another site's
                (``token_site``).
            ConfigError: see :meth:`SiteRegister.let_in`.
        """
        with held(self._folder.state / "invitations.lock", _busy(), _PATIENCE_S):
            found = self._read(sent.secret)
            if found is None:
                raise EnrolmentError("there is no such token", code="token_unknown")
            if found.used_by not in {None, sent.request.keys}:
                raise EnrolmentError("the token was used before", code="token_used")
            if found.kit is not None and self._is_current(found.kit):
                return found.kit
            if found.kit is not None:
                raise EnrolmentError("the token was used before", code="token_used")
            if self._clock() >= found.expires:
                raise EnrolmentError("the token is too old", code="token_expired")
            if found.site != sent.request.site:
                raise EnrolmentError("the token is another site's", code="token_site")
            claimed = found.model_copy(update={"used_by": sent.request.keys})
            self._write(sent.secret, claimed)
            kit = kit_for(self._folder, self._register.let_in(sent.request), found.address)
            self._write(sent.secret, claimed.model_copy(update={"kit": kit}))
            return kit

    def open(self) -> list[Invitation]:
        """All tokens that could still be used, by site."""
        read = (
            Invitation.model_validate_json(path.read_bytes())
            for path in self._folder.invitations.glob("*.json")
        )
        still = [each for each in read if each.used_by is None and each.expires > self._clock()]
        return sorted(still, key=lambda each: (each.site, each.expires))

    def cancel(self, site: str) -> int:
        """Delete a site's tokens, used or not; how many could still have been used."""
        num_open = 0
        for path in self._folder.invitations.glob("*.json"):
            entry = Invitation.model_validate_json(path.read_bytes())
            if entry.site == site:
                num_open += entry.used_by is None and entry.expires > self._clock()
                path.unlink()
        return num_open

    def _is_current(self, kit: EnrolmentKit) -> bool:
        """Whether the site still has the keys that this kit is for."""
        site = self._register.find(kit.site)
        return site is not None and site.tls_key == key_digest(kit.certificate.encode())

    def _read(self, secret: str) -> Invitation | None:
        try:
            data = (self._folder.invitations / f"{_name(secret)}.json").read_bytes()
        except FileNotFoundError:
            return None
        return Invitation.model_validate_json(data)

    def _write(self, secret: str, entry: Invitation) -> None:
        replace_file(self._folder.invitations / f"{_name(secret)}.json", entry.to_bytes())


def _busy() -> ConfigError:
    return ConfigError("another request is being answered; try again", code="sites_busy")


def _name(secret: str) -> Digest:
    """A secret's digest: who reads the folder cannot use the token."""
    return sha256_hex(b"wardround token\n" + secret.encode())
