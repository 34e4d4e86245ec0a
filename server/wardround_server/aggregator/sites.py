"""The sites that are let in: one file each, changed under a lock and told to the aggregator's audit log.

1. Who has no file is let in nowhere: the SuperLink does not know its node, the front door and the tensor
   stream refuse its certificates, and no answer of it counts.
2. A site has one node key and one TLS key at a time. New keys put the certificates of the old ones on
   the revocation list.
3. The key by which a site signs its receipts is the one of its first answer, until it enrols anew.
4. What a site sent is checked before anything is signed, and nothing of it but its two public keys is
   used.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from pydantic import Field, ValidationError

from wardround_common.audit.entries import MembershipEvent, Value
from wardround_common.audit.log import AuditLog
from wardround_common.crypto.certificates import certify_site, key_digest, serial_of
from wardround_common.crypto.revocation import Revoked, revocation_list
from wardround_common.crypto.signing import PublicKey, signing_key
from wardround_common.durable import fsync_folder, replace_file, write_file
from wardround_common.enrolment import EnrolmentRequest, Pem
from wardround_common.errors import ConfigError, IntegrityError
from wardround_common.types import Digest, SiteId
from wardround_common.wire.step import SiteName, WireModel
from wardround_server.aggregator.folder import AggregatorFolder, held

_BUSY = "another command changes the list of sites; try again"
_PATIENCE_S = 60.0
"""A run must not fail because somebody is letting a site in."""
Serial = Annotated[str, Field(pattern=r"^[0-9a-f]{1,40}$")]


class EnrolledSite(WireModel):
    """A site that is let in.

    Attributes:
        name: in rosters.
        node_key: public key of its node, PEM.
        fingerprint: of its request.
        invited: when it was let in, Unix time.
        certificate: the newest of its TLS key, PEM.
        serials: of all certificates of that key, hexadecimal.
        signing_key: public key by which it signs receipts; None before its first answer.
    """

    name: SiteName
    node_key: Pem
    fingerprint: Annotated[str, Field(max_length=64)]
    invited: float
    certificate: Pem | None = None
    serials: tuple[Serial, ...] = ()
    signing_key: PublicKey | None = None

    @property
    def tls_key(self) -> Digest | None:
        """Digest of its TLS key; None for a site of a version that did not keep it."""
        return None if self.certificate is None else key_digest(self.certificate.encode())


class RevokedCertificate(WireModel):
    """One line of the revocation list.

    Attributes:
        site: whose it was.
        serial: hexadecimal.
        at: when it was revoked, Unix time.
    """

    site: SiteName
    serial: Serial
    at: float


class SiteRegister:
    """The sites of one aggregator.

    Args:
        folder: the aggregator's.
    """

    def __init__(self, folder: AggregatorFolder) -> None:
        self._folder = folder

    def all(self) -> list[EnrolledSite]:
        """All sites that are let in, by name.

        Raises:
            IntegrityError: a file in ``sites`` is damaged.
        """
        return [self._read(path.stem) for path in sorted(self._folder.sites.glob("*.json"))]

    def find(self, site: str) -> EnrolledSite | None:
        """A site; None if it is not let in.

        Raises:
            IntegrityError: its file is damaged.
        """
        try:
            return self._read(site)
        except FileNotFoundError:
            return None

    def is_member(self, site: SiteId) -> bool:
        """Whether a site is let in now."""
        return (self._folder.sites / f"{site}.json").exists()

    def has_tls_key(self, site: SiteId, certificate: bytes) -> bool:
        """Whether a certificate is for the key that a site has now.

        Args:
            site: the name in the certificate.
            certificate: PEM; whoever asks has verified it.
        """
        found = self.find(site)
        return found is not None and found.tls_key in {None, key_digest(certificate)}

    def key_of(self, site: SiteId) -> str | None:
        """The key by which a site signs; None before its first answer."""
        found = self.find(site)
        return None if found is None else found.signing_key

    def pin(self, site: SiteId, key: str) -> None:
        """From now on a site signs by this key, until it enrols anew."""
        if self.key_of(site) is not None:
            return
        with self._changing():
            found = self.find(site)
            if found is None or found.signing_key is not None:
                return
            self._note("site_key_pinned", site=site, key=key)
            self._write(found.model_copy(update={"signing_key": key}))

    def let_in(self, request: EnrolmentRequest) -> EnrolledSite:
        """Let a site in, or renew its certificate if it brings the keys that it has.

        Raises:
            ConfigError: the request cannot be certified, or brings another site's key.
        """
        with self._changing():
            before = self.find(request.site)
            made = self._certified(request, before)
            again = before is not None and made.node_key == before.node_key
            self._note(
                "site_renewed" if again else "site_enrolled",
                site=made.name,
                serial=made.serials[-1],
            )
            return self._replaced(before, made)

    def rotate(self, request: EnrolmentRequest) -> EnrolledSite:
        """Give a site its new keys; that it may have them was checked.

        Asked for keys that it has already, nothing changes.

        Raises:
            ConfigError: the site is not let in (``site_unknown``), or as :meth:`let_in`.
        """
        with self._changing():
            before = self.find(request.site)
            if before is None:
                raise unknown(request.site)
            made = self._certified(request, before)
            if (made.node_key, made.tls_key) == (before.node_key, before.tls_key):
                return before
            made = made.model_copy(update={"signing_key": before.signing_key})
            self._note("site_rotated", site=made.name, serial=made.serials[-1])
            return self._replaced(before, made)

    def revoke(self, site: str) -> None:
        """Let a site in no more.

        Raises:
            ConfigError: it is not let in (``site_unknown``).
        """
        with self._changing():
            found = self.find(site)
            if found is None:
                raise unknown(site)
            self._note("site_revoked", site=site)
            self._revoke(found)
            (self._folder.sites / f"{site}.json").unlink()
            fsync_folder(self._folder.sites)

    def write_revocations(self, now: datetime | None = None) -> None:
        """Write the list anew: what revokes is in it for good, the list itself lasts a month."""
        with self._changing():
            self._write_list(now)

    def note(self, event: MembershipEvent, **fields: Value) -> None:
        """Tell the aggregator's audit log of something else that concerns its sites."""
        with self._changing():
            self._note(event, **fields)

    def _certified(self, request: EnrolmentRequest, before: EnrolledSite | None) -> EnrolledSite:
        site, node_key = SiteId(request.site), _normal(request.node_key)
        for other in self.all():
            if other.node_key == node_key and other.name != site:
                raise ConfigError(
                    f"{site}: its node key is that of {other.name!r}; every site needs its own",
                    code="node_key_taken",
                )
        wanted = request.certificate_request.encode()
        certificate = certify_site(self._folder.read_authority(), site, wanted)
        same_key = before is not None and before.tls_key == key_digest(certificate)
        same_node = before is not None and before.node_key == node_key
        return EnrolledSite(
            name=site,
            node_key=node_key,
            fingerprint=request.fingerprint,
            invited=float(int(time.time())),
            certificate=certificate.decode(),
            serials=(*(before.serials if before and same_key else ()), serial_of(certificate)),
            signing_key=before.signing_key if before and same_node and same_key else None,
        )

    def _replaced(self, before: EnrolledSite | None, made: EnrolledSite) -> EnrolledSite:
        if before is not None and before.tls_key != made.tls_key:
            self._revoke(before)
        self._write(made)
        return made

    def _revoke(self, site: EnrolledSite) -> None:
        self._folder.revoked.mkdir(mode=0o700, exist_ok=True)
        for serial in site.serials:
            entry = RevokedCertificate(site=site.name, serial=serial, at=float(int(time.time())))
            replace_file(self._folder.revoked / f"{serial}.json", entry.to_bytes())
        self._write_list()

    def _write_list(self, now: datetime | None = None) -> None:
        revoked = []
        for path in sorted(self._folder.revoked.glob("*.json")):
            entry = RevokedCertificate.model_validate_json(path.read_bytes())
            revoked.append(Revoked(int(entry.serial, 16), datetime.fromtimestamp(entry.at, UTC)))
        written = revocation_list(self._folder.read_authority(), revoked, now=now)
        replace_file(self._folder.revocations, written)

    def _note(self, event: MembershipEvent, **fields: Value) -> None:
        key = signing_key(self._folder.coordinator_key)
        years = self._folder.load().audit_years
        AuditLog(self._folder.audit, key, years).append(event, **fields)

    def _read(self, site: str) -> EnrolledSite:
        path = self._folder.sites / f"{site}.json"
        try:
            entry = EnrolledSite.model_validate_json(path.read_bytes())
        except ValidationError:
            entry = None
        if entry is None or entry.name != site:
            raise IntegrityError(
                f"{path} is damaged; invite the site again, or remove the file", code="site_file"
            )
        return entry

    def _write(self, site: EnrolledSite) -> None:
        write_file(self._folder.sites / f"{site.name}.json", site.to_bytes())

    @contextmanager
    def _changing(self) -> Iterator[None]:
        busy = ConfigError(_BUSY, code="sites_busy")
        with held(self._folder.state / "sites.lock", busy, _PATIENCE_S):
            yield


def unknown(site: str) -> ConfigError:
    """No such site is let in."""
    return ConfigError(
        f"{site}: no such site is let in; `wardround aggregator sites DIR` lists them",
        code="site_unknown",
    )


def _normal(public_key: str) -> str:
    """A key as Flower compares it: by its text."""
    return (
        load_pem_public_key(public_key.encode())
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
