"""Calls by which a site enrols, and is given new keys, over the network.

The consortium's certificate comes first, over a connection that nothing is known of, and is taken only
if its digest is the one in the token. What is secret goes out after that, to that authority's server.
"""

import ssl
from typing import Any, Final

import httpx

from wardround_common.enrolment import (
    MAX_FILE_BYTES,
    EnrolmentKit,
    EnrolmentRequest,
    EnrolmentToken,
    Redemption,
    Rotation,
    authority_digest,
)
from wardround_common.errors import ConfigError, EnrolmentError

_TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
_REFUSED: Final = {
    "token_unknown": "there is no such token, or it was cancelled; ask the coordinator for one",
    "token_used": "this token was used before; ask the coordinator who used it, and for another",
    "token_expired": "this token is too old; ask the coordinator for another",
    "token_site": "this token is another site's; look at `name` in the site's file",
    "sites_busy": "the coordinator is changing the list of sites; try again in a moment",
    "http_429": "this address has asked too often; wait a minute, and try again",
    "http_404": "nobody enrols there; ask the coordinator for the address (node.enrolment)",
    "node_key_taken": "another site has this node key; every site needs its own",
    "rotation_key": "the aggregator does not know the key that this site has; enrol by a new token",
}


def redeem(token: EnrolmentToken, request: EnrolmentRequest) -> EnrolmentKit:
    """Enrol by a token.

    Raises:
        ConfigError: the aggregator cannot be reached (``enrol_unreachable``), or is another one than
            the token says (``enrol_authority``).
        EnrolmentError: it refused, with its code.
    """
    authority = _authority(token.address)
    if authority_digest(authority) != token.authority_sha256:
        raise ConfigError(
            f"{token.address} is not the aggregator that the token is of; somebody may be in between: "
            "tell the coordinator",
            code="enrol_authority",
        )
    sent = Redemption(secret=token.secret, request=request)
    return _post(token.address, "/v1/enrol", sent.to_bytes(), authority)


def send_rotation(address: str, authority: bytes, rotation: Rotation) -> EnrolmentKit:
    """Ask to be known by new keys.

    Args:
        address: where the site enrols, ``host:port``.
        authority: the consortium's certificate, PEM.
        rotation: signed.

    Raises:
        ConfigError, EnrolmentError: as :func:`redeem`.
    """
    return _post(address, "/v1/enrol/rotate", rotation.to_bytes(), authority)


def _authority(address: str) -> bytes:
    """The certificate that a server says is the consortium's."""
    unknown = ssl.create_default_context()
    unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
    return _call("GET", address, "/v1/enrol/authority", None, unknown).content


def _post(address: str, path: str, body: bytes, authority: bytes) -> EnrolmentKit:
    tls = ssl.create_default_context(cadata=authority.decode())
    response = _call("POST", address, path, body, tls)
    if response.status_code != httpx.codes.OK:
        code = _code(response)
        raise EnrolmentError(
            f"{address} refused: {_REFUSED.get(code, 'ask the coordinator')} ({code})", code=code
        )
    try:
        return EnrolmentKit.model_validate_json(response.content)
    except ValueError:
        raise ConfigError(f"{address} did not send a kit", code="enrol_unreachable") from None


def _call(
    method: str, address: str, path: str, body: bytes | None, tls: ssl.SSLContext
) -> httpx.Response:
    try:
        with (
            httpx.Client(verify=tls, timeout=_TIMEOUT, follow_redirects=False) as client,
            client.stream(method, f"https://{address}{path}", content=body) as response,
        ):
            data = b""
            for part in response.iter_bytes():
                data += part
                if len(data) > MAX_FILE_BYTES:
                    raise httpx.DecodingError("too long")
            return httpx.Response(response.status_code, content=data)
    except (httpx.HTTPError, ssl.SSLError) as error:
        raise ConfigError(
            f"{address} cannot be reached to enrol ({type(error).__name__}); ask the coordinator for "
            "the address, or write HTTPS_PROXY if the hospital has a proxy",
            code="enrol_unreachable",
        ) from None


def _code(response: httpx.Response) -> str:
    try:
        raw: Any = response.json()
        code = raw.get("code") if isinstance(raw, dict) else None
    except ValueError:
        code = None
    short = isinstance(code, str) and len(code) <= 40 and code.replace("_", "").isalnum()
    return str(code) if short else f"http_{response.status_code}"
