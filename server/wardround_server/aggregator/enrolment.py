"""Enrolment over the network: a site comes with a token, or with the key that it has, and goes with a kit.

1. ``GET /v1/enrol/authority``: the consortium's certificate. A site takes it only if its digest is the
   token's, so the connection that brings it need not be trusted.
2. ``POST /v1/enrol``: a request with a token's secret; a kit comes back.
3. ``POST /v1/enrol/rotate``: a request with new keys, signed by the TLS key that the site has; likewise.

It listens on loopback; the front door passes these three paths on. Bodies are bounded, answers to what is
refused are a code and nothing else, and what is refused changes nothing.
"""

import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

import uvicorn
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from wardround_common.crypto.certificates import key_digest
from wardround_common.enrolment import MAX_FILE_BYTES, EnrolmentKit, Redemption, Rotation
from wardround_common.errors import ConfigError, EnrolmentError, WardroundError
from wardround_common.log import log_event
from wardround_server.aggregator.folder import AggregatorFolder, key_beside
from wardround_server.aggregator.invitations import Invitations
from wardround_server.aggregator.setup import kit_for
from wardround_server.aggregator.sites import SiteRegister

AUTHORITY_PATH: Final = "/v1/enrol/authority"
ENROL_PATH: Final = "/v1/enrol"
ROTATE_PATH: Final = "/v1/enrol/rotate"
_AT_ONCE: Final = 32

Sent = TypeVar("Sent", Redemption, Rotation)


def rotate(folder: AggregatorFolder, sent: Rotation) -> EnrolmentKit:
    """Give a site its new keys.

    Asked again for the keys that the site has by now, it answers as before: the first answer was lost.

    Raises:
        EnrolmentError: the site is not let in, or the certificate is not one of its present key, or
            has ended, or its key did not sign the request (``rotation_key``).
        ConfigError: see :meth:`SiteRegister.let_in`.
    """
    register = SiteRegister(folder)
    site = register.find(sent.request.site)
    signer = _signer(folder, sent)
    if site is None or signer is None:
        raise EnrolmentError("no key of a site that is let in", code="rotation_key")
    has_it_already = site.fingerprint == sent.request.fingerprint
    if site.tls_key != key_digest(sent.certificate.encode()) and not has_it_already:
        raise EnrolmentError("not the key that the site has now", code="rotation_key")
    return kit_for(folder, register.rotate(sent.request), None)


def enrolment_app(folder: AggregatorFolder) -> Starlette:
    """The three paths."""
    invitations = Invitations(folder)

    def authority(_: Request) -> Response:
        return PlainTextResponse(folder.authority.read_bytes())

    async def enrol(request: Request) -> Response:
        return await _answered(request, Redemption, invitations.redeem)

    async def rotated(request: Request) -> Response:
        return await _answered(request, Rotation, lambda sent: rotate(folder, sent))

    return Starlette(
        routes=[
            Route(AUTHORITY_PATH, authority, methods=["GET"]),
            Route(ENROL_PATH, enrol, methods=["POST"]),
            Route(ROTATE_PATH, rotated, methods=["POST"]),
        ]
    )


def serve_enrolment(folder: AggregatorFolder, port: int) -> Callable[[], None]:
    """Serve on loopback, in a thread, until the function that comes back is called.

    Raises:
        ConfigError: the port cannot be had.
    """
    try:
        listening = socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError as error:
        raise ConfigError(
            f"{folder.file}: enrolment_port = {port} cannot be had ({error.strerror}); write another",
            code="enrolment_port",
        ) from None
    config = uvicorn.Config(
        enrolment_app(folder),
        ssl_certfile=folder.certificate,
        ssl_keyfile=key_beside(folder.certificate),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_AT_ONCE,
        timeout_keep_alive=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="enrolment", daemon=True
    )
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(5.0)
        listening.close()

    return stop


async def _answered(
    request: Request, model: type[Sent], answer: Callable[[Sent], EnrolmentKit]
) -> Response:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_FILE_BYTES:
            return _refused("request_size")
    try:
        sent = model.model_validate_json(data)
    except ValidationError:
        return _refused("request_form")
    try:
        kit = await run_in_threadpool(answer, sent)
    except WardroundError as error:
        log_event("enrolment_refused", code=error.code)
        return _refused(error.code)
    log_event("site_let_in", site=kit.site)
    return JSONResponse(kit.model_dump(mode="json"))


def _refused(code: str) -> Response:
    return JSONResponse({"code": code}, status_code=403)


def _signer(folder: AggregatorFolder, sent: Rotation) -> ec.EllipticCurvePublicKey | None:
    """The key that signed a rotation, whose certificate is good today; None if there is none."""
    try:
        certificate = x509.load_pem_x509_certificate(sent.certificate.encode())
        authority = x509.load_pem_x509_certificate(folder.authority.read_bytes())
        certificate.verify_directly_issued_by(authority)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return None
        document = Rotation.document(sent.request)
        key.verify(bytes.fromhex(sent.signature), document, ec.ECDSA(hashes.SHA256()))
    except (ValueError, TypeError, InvalidSignature):
        return None
    now = datetime.now(UTC)
    return (
        key if certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc else None
    )
