"""What can be wrong between a node and its aggregator: a code for logs, a sentence for people.

None of it ends the node. What passes by itself is tried again within seconds; what somebody has to
put right is tried again every quarter of a minute, so that the node comes online as soon as it is.
"""

import ssl
from typing import Final

import httpx
from flwr.supercore.error import ApiErrorCode, FlowerError

TROUBLES: Final[dict[str, str]] = {
    "unreachable": "the aggregator cannot be reached; trying again",
    "busy": "the aggregator is starting or overloaded; trying again",
    "proxy": "the proxy named by HTTPS_PROXY does not let us through; have it allow CONNECT to the "
    "aggregator",
    "aggregator_untrusted": "whoever answers at node.aggregator has no valid certificate for that "
    "name by the authority in node.ca: check the address, and that nothing between opens TLS",
    "certificate_refused": "the aggregator's front door refuses this site's certificate; install "
    "the kit by `wardround site enrol --kit`, or ask the coordinator for a new one",
    "node_unknown": "the aggregator does not know this node's key; ask the coordinator to invite "
    "this site. (A node that was killed, and whose folder node.state was lost, is let in again "
    "after a minute.)",
    "clock": "this machine's clock differs too much from the aggregator's; set it by NTP",
    "other_version": "what answers at node.aggregator does not speak this node's version of "
    "Flower: both sides must run the same version of Wardround; or it is not an aggregator",
    "too_large": "the front door does not take requests of this size; raise its limit",
}
PASSING: Final = frozenset({"unreachable", "busy"})
"""Those that nobody has to do anything about."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_CERTIFICATE = frozenset({400, 403, 495, 496})


class TroubleError(Exception):
    """An attempt failed, and the next one may not.

    Args:
        code: a key of :data:`TROUBLES`.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def flower_code(error: httpx.HTTPStatusError) -> int | None:
    """Flower's own code in a refusal; None if the refusal is not Flower's."""
    known = FlowerError.from_json(error.response.text)
    return None if known is None else int(known.code)


def is_unheard(error: httpx.HTTPError) -> bool:
    """Whether the aggregator may have done what it was asked, and its answer was lost."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    return not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError)


def trouble_of(error: Exception) -> str | None:
    """The code of a failed attempt; None if it is not the connection that is in trouble.

    Args:
        error: from :class:`httpx.Client` or flwr's client on top of it.
    """
    if isinstance(error, TroubleError):
        return error.code
    if isinstance(error, httpx.HTTPStatusError):
        return _refusal(error)
    if isinstance(error, httpx.ProxyError):
        return "proxy"
    if isinstance(error, httpx.TransportError):
        return _transport(error)
    return "other_version" if isinstance(error, ValueError) else None  # not protobuf


def _transport(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "aggregator_untrusted"
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
            return "certificate_refused"
        cause = cause.__cause__ or cause.__context__
    return "unreachable"


def _refusal(error: httpx.HTTPStatusError) -> str | None:
    status, code = error.response.status_code, flower_code(error)
    if code == ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE:
        return "other_version"
    if status == httpx.codes.UNAUTHORIZED or code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return "node_unknown"
    if status in _BUSY:
        return "busy"
    if code is not None:
        return None
    if status in _NO_CERTIFICATE:
        return "certificate_refused"
    return "too_large" if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE else "other_version"
