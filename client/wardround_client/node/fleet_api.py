"""Calls of Flower's Fleet API, through any outage; with ``fleet.py`` all that touches flwr's own code.

flwr 1.41 brings the client (``FleetHttpClient``) and what a node signs. What differs here:

1. A call is tried again until its caller gives up: no outage and no refusal ends the process.
2. Connections are kept between polls, redirections are not followed, a proxy is found in
   ``HTTPS_PROXY``.
3. What is signed is the aggregator's time as its answers tell it: Flower refuses a node whose clock
   is six seconds ahead, and hospitals have such clocks.
"""

import math
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ClassVar, Final, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY,
)
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient

from wardround_client.node.identity import Identity
from wardround_client.node.troubles import (
    PASSING,
    TROUBLES,
    TroubleError,
    flower_code,
    trouble_of,
)
from wardround_common.errors import RoundError, WardroundError
from wardround_common.log import log_event

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _REFUSED_PAUSE_S = 0.05, 2.0, 15.0
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=8, keepalive_expiry=60.0)
_SMALL_SKEW_S = 2.0
OVER: Final = frozenset(
    {ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, ApiErrorCode.FLEET_GET_RUN_FAILED}
)
"""What Flower says of a run that has ended, was stopped, or is not known."""

T = TypeVar("T")


class GoneError(WardroundError):
    """Nobody waits for this any more: ``run_over``, ``too_late`` or ``stopped``."""

    public: ClassVar[str] = "Nobody waits for the answer any more."


class FleetApi:
    """flwr's client, and patience.

    Args:
        address: front door, ``host:port``.
        identity: keys and certificates.
        stop: ends every wait.
        clock: this machine's time, in seconds since 1970.

    Attributes:
        client: for calls that are tried once.
        trouble: code of what is wrong; empty if the last attempt succeeded.
        last_contact: when one last did, seconds since 1970.
        on_back: called after an outage.
    """

    def __init__(
        self,
        address: str,
        identity: Identity,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stop = stop
        self._clock = clock
        self._proof = _Proof(identity.key, clock)
        self.client = FleetHttpClient(f"https://{address}", interceptors=[self._proof])
        self.client._client.close()  # noqa: SLF001  follows redirections and drops connections
        self.client._client = httpx.Client(  # noqa: SLF001
            verify=identity.tls, timeout=_TIMEOUT, limits=_LIMITS, follow_redirects=False
        )
        self.public_key = public_key_to_bytes(identity.key.public_key())
        self.trouble = "unreachable"
        self._told = ""
        self.last_contact = 0.0
        self.on_back: Callable[[], object] = bool

    def time(self) -> float:
        """The aggregator's time, in seconds since 1970."""
        return self._clock() + self._proof.offset_s

    def call(self, attempt: Callable[[], T], until: float = math.inf) -> T:
        """The answer of a call, through any outage.

        Args:
            attempt: makes the call; again for each attempt.
            until: aggregator's time at which nobody needs the answer any more.

        Raises:
            GoneError: stopped, too late, or the run that the call is about is over.
            RoundError: the aggregator refuses this very request (``request_refused``).
        """
        pause = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                answer = attempt()
            except (httpx.HTTPError, TroubleError, ValueError) as error:
                trouble = self._judged(error)
            else:
                self._well()
                return answer
            self._say(trouble)
            if self.time() >= until:
                raise GoneError("its time is over", code="too_late")
            longest = _LONGEST_PAUSE_S if trouble in PASSING else _REFUSED_PAUSE_S
            self._stop.wait(pause)
            pause = min(2 * pause, longest)
        raise GoneError("the node ends", code="stopped")

    def close(self) -> None:
        """Close all connections."""
        self.client.close()

    def _judged(self, error: Exception) -> str:
        """The trouble of a failed attempt.

        Raises:
            GoneError, RoundError: it is not the connection that is in trouble.
        """
        if isinstance(error, httpx.HTTPStatusError) and flower_code(error) in OVER:
            self._well()
            raise GoneError("the run is over", code="run_over") from error
        trouble = trouble_of(error)
        if trouble is None:
            raise RoundError("the aggregator refused a request", code="request_refused") from error
        if trouble == "node_unknown" and self._proof.is_learning:
            return "clock"
        return trouble

    def _well(self) -> None:
        was, self.last_contact = self.trouble, time.time()
        self.trouble = self._told = ""
        if was:
            log_event("aggregator_reached")
            self.on_back()

    def _say(self, trouble: str) -> None:
        self.trouble = trouble
        if trouble == self._told:
            return
        self._told = trouble
        log_event("aggregator_lost", code=trouble)
        print(f"node: {TROUBLES[trouble]}", file=sys.stderr, flush=True)  # noqa: T201


class _Proof:
    """Proves each request: the time, signed by the node's key; and says our version of Flower."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, clock: Callable[[], float]) -> None:
        self._key = key
        self._clock = clock
        self._public = b64encode(public_key_to_bytes(key.public_key())).decode()
        self._version = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())
        self.offset_s = 0.0
        self.is_learning = False

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """See flwr's ``ProtobufClientInterceptor``."""
        stamp = datetime.fromtimestamp(self._clock() + self.offset_s, UTC).isoformat()
        signature = sign_message(self._key, stamp.encode("ascii"))
        context.request.headers.update(
            {
                **self._version,
                FLEET_HTTP_PUBLIC_KEY_HEADER: self._public,
                TIMESTAMP_HEADER: stamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode(),
            }
        )
        response = call_next(context)
        self._learn(response)
        if response.headers.get(VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY):
            raise TroubleError("other_version")
        return response

    def _learn(self, response: httpx.Response) -> None:
        """Take the aggregator's time from its answer; its resolution is a second."""
        try:
            theirs = parsedate_to_datetime(response.headers["date"]).timestamp() + 0.5
        except (KeyError, ValueError, TypeError):
            return
        offset = theirs - self._clock()
        new = 0.0 if abs(offset) < _SMALL_SKEW_S else offset
        self.is_learning = abs(new - self.offset_s) > _SMALL_SKEW_S
        self.offset_s = new
