"""The site's keys and certificates: there, private, fitting together, and valid today."""

import os
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from wardround_client.doctor.examined import Examined
from wardround_client.doctor.findings import Checkup
from wardround_client.node.identity import read_node_key
from wardround_common.crypto.certificates import describe
from wardround_common.spec.policy import PolicySpec

_SOON: Final = timedelta(days=30)
_RENEW: Final = (
    "`wardround site enrol SITE.toml --rotate` makes new keys and brings a new certificate"
)


def check_identity(examined: Examined, found: Checkup) -> None:
    """Look at what ``site enrol`` made and installed, where this user may.

    Args:
        examined: the site.
        found: takes in what is found.
    """
    node = examined.site.node
    if node is None:
        found.note("no_node", "there is no table [node]: keys and certificates were not looked at")
        return
    key, ca, certificate, tls_key, coordinator = (
        examined.path(path)
        for path in (node.key, node.ca, node.certificate, node.certificate_key, node.coordinator)
    )
    if not _may_look((key, tls_key, certificate), found):
        return
    for path in (key, tls_key):
        if path.exists() and path.stat().st_mode & 0o077:
            found.fault("key_open", f"{path}: others than its owner can read it: chmod 600 {path}")
    with found.noting():
        read_node_key(key)
    if _all_there((ca, certificate, tls_key), found):
        _check_certificate(examined, found)
    _check_coordinator(coordinator, examined.policy, found)


def _may_look(paths: Iterable[Path], found: Checkup) -> bool:
    for path in paths:
        folder = path.parent
        if not Examined.may_see(folder, os.X_OK) or not Examined.may_see(path):
            found.note(
                "identity_not_seen",
                f"{path}: this user may not look at it, which is right for the worker's; run this "
                "again as the node's user to have keys and certificates checked",
            )
            return False
    return True


def _all_there(paths: Iterable[Path], found: Checkup) -> bool:
    missing = [path for path in paths if not path.exists()]
    for path in missing:
        found.fault(
            "identity_missing",
            f"{path}: is not there; enrol by `wardround site enrol SITE.toml --token TOKEN`",
        )
    return not missing


def _check_certificate(examined: Examined, found: Checkup) -> None:
    node, name = examined.site.node, examined.site.name
    assert node is not None
    ca, certificate, key = (
        examined.path(path) for path in (node.ca, node.certificate, node.certificate_key)
    )
    try:
        own = x509.load_pem_x509_certificate(certificate.read_bytes())
        authority = x509.load_pem_x509_certificate(ca.read_bytes())
        private = load_pem_private_key(key.read_bytes(), None)
    except (ValueError, TypeError):
        found.fault(
            "identity_damaged",
            f"{certificate}, {key} or {ca} is not what it should be; restore it from a backup, or enrol "
            "by a new token",
        )
        return
    try:
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        found.fault(
            "certificate_authority",
            f"{certificate}: not issued by the authority in {ca}; {_RENEW}",
        )
    if own.public_key() != private.public_key():
        found.fault("certificate_key", f"{certificate}: is not for the key in {key}; {_RENEW}")
    with found.noting():
        whose = describe(certificate.read_bytes())
        if whose.kind != "site" or whose.name != name:
            found.fault(
                "certificate_site",
                f"{certificate}: is for {whose.kind} {whose.name!r}, and `name` is {name!r}; correct one "
                "of them",
            )
    _check_validity(own, certificate, found, examined.now)


def _check_validity(own: x509.Certificate, path: Path, found: Checkup, now: datetime) -> None:
    begins, ends = own.not_valid_before_utc, own.not_valid_after_utc
    if now < begins:
        found.fault(
            "clock_behind",
            f"{path}: is valid from {begins:%Y-%m-%d %H:%M} (UTC), which is in the future by this "
            "machine's clock; set the clock",
        )
    elif now >= ends:
        found.fault(
            "certificate_expired", f"{path}: expired on {ends:%Y-%m-%d}; enrol by a new token"
        )
    elif now >= ends - _SOON:
        found.warn("certificate_ends", f"{path}: expires on {ends:%Y-%m-%d}; {_RENEW}")


def _check_coordinator(path: Path, policy: PolicySpec | None, found: Checkup) -> None:
    if not path.exists():
        found.fault("coordinator_missing", f"{path}: is not there; install the site's kit again")
    elif policy is not None and path.read_text().strip() not in policy.allow.coordinators:
        found.fault(
            "coordinator_not_allowed",
            f"{path}: the coordinator's key is not among allow.coordinators in the policy: every question "
            "would be refused; compare the key by telephone and write it there",
        )
