"""The way to the aggregator: there, by the right authority, with a clock like this one, and letting this site in."""

from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from wardround_client.doctor.examined import Examined
from wardround_client.doctor.findings import Checkup
from wardround_client.node.identity import load_identity
from wardround_client.worker.network import interfaces_up
from wardround_common.errors import ConfigError

_TIMEOUT: Final = httpx.Timeout(10.0)
_MUCH: Final = timedelta(minutes=1)


def check_reach(examined: Examined, found: Checkup) -> None:
    """Ask the aggregator for a sign of life, where there is a network and an identity.

    Args:
        examined: the site.
        found: takes in what is found.
    """
    node = examined.site.node
    if node is None or not interfaces_up():
        return
    paths = (node.key, node.ca, node.certificate, node.certificate_key)
    try:
        identity = load_identity(*(examined.path(path) for path in paths))
    except (ConfigError, OSError):
        return  # it was said already, or is not this user's to see
    try:
        with httpx.Client(verify=identity.tls, timeout=_TIMEOUT, follow_redirects=False) as client:
            answer = client.get(f"https://{node.aggregator}/health")
    except httpx.HTTPError as error:
        _tell_unreached(node.aggregator, error, found)
        return
    if answer.status_code == httpx.codes.BAD_REQUEST:
        found.fault(
            "certificate_refused",
            f"{node.aggregator} does not accept this site's certificate: it was revoked or replaced; enrol "
            "by a new token",
        )
    _check_clock(examined, answer, found)


def _tell_unreached(address: str, error: httpx.HTTPError, found: Checkup) -> None:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        found.fault(
            "aggregator_authority",
            f"{address}: who answers there has no certificate of this consortium for that name; look at "
            "node.aggregator, and tell the coordinator",
        )
    else:
        found.warn(
            "aggregator_unreachable",
            f"node.aggregator = {address}: nobody answers ({type(error).__name__}); is it up, may this "
            "machine connect there, is HTTPS_PROXY needed?",
        )


def _check_clock(examined: Examined, answer: httpx.Response, found: Checkup) -> None:
    try:
        theirs = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError, TypeError):
        return
    apart = abs(theirs - examined.now)
    if apart > _MUCH:
        found.warn(
            "clock_differs",
            f"this machine's clock and the aggregator's are {apart.total_seconds():.0f} s apart; set the clock",
        )
