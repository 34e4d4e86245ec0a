"""The gRPC server of one run's tensor streams: who may open a session, and their threads.

A session is let in only if all of this holds; the refusal says which class it is, and no more:

1. TLS with a client certificate that the consortium's authority signed and that is valid today.
2. Its only subject alternative name is the name of a site of the roster, and its key is the one that
   this site has now: neither revoked nor replaced.
3. The call names this server's run and brings the token of that site's invitation.
"""

import hmac
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from wardround_common.errors import RoundError, WireError
from wardround_common.log import log_event
from wardround_common.memory import share_arenas
from wardround_common.stream.limits import RUN_KEY, SERVER_OPTIONS, SERVICE, TOKEN_KEY, Identity
from wardround_common.stream.outbox import Outbox, Sendable
from wardround_common.stream.parts import Piece, from_wire, to_wire
from wardround_common.stream.stream_pb2 import Part
from wardround_common.types import SiteId
from wardround_common.wire.session import SessionInvite
from wardround_server.stream.session import Event, SiteSession

_FAREWELL_S = 5.0


class StreamServer:
    """Sessions of the sites of one run, served on one port.

    Args:
        bind: ``host:port`` to listen on; port 0 takes any that is free.
        public: ``host:port`` under which sites reach it; None where that is the same.
        has_key: whether a certificate (PEM), verified, is for the key that a site has now.
        identity: the aggregator's certificate and key, and the authority of the sites'.
        run: the run, 16 hexadecimal digits.
        sites: its roster; nobody else is let in.
        spool: folder for arrays on their way in, the journal's own.

    Raises:
        RoundError: the port cannot be had.
    """

    def __init__(
        self,
        bind: str,
        identity: Identity,
        *,
        run: str,
        sites: Sequence[SiteId],
        spool: Path,
        public: str | None = None,
        has_key: Callable[[SiteId, bytes], bool] = lambda *_: True,
    ) -> None:
        share_arenas()
        self._has_key = has_key
        self._run = run
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._tokens = {site: secrets.token_hex(16) for site in sites}
        self._sessions = {site: SiteSession(site, spool, self._events.put) for site in sites}
        calls = 2 * len(sites) + 2  # each site's, and the one before that has not ended yet
        self._server = grpc.server(
            ThreadPoolExecutor(calls, thread_name_prefix="stream"),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=calls,
            compression=grpc.Compression.NoCompression,
        )
        rpc = grpc.stream_stream_rpc_method_handler(self._serve, from_wire, to_wire)
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Session": rpc})
        self._server.add_generic_rpc_handlers((handler,))
        port = _listen(self._server, bind, identity)
        self._address = public or _with_port(bind, port)
        self._server.start()

    def invite(self, site: SiteId) -> SessionInvite:
        """What a site has to know to open its session."""
        return SessionInvite(
            run=self._run, site=site, address=self._address, token=self._tokens[site]
        )

    def knows(self, site: SiteId) -> bool:
        """Whether the site is of the roster."""
        return site in self._sessions

    def session(self, site: SiteId) -> SiteSession:
        """The session of a site of the roster."""
        return self._sessions[site]

    def next_event(self, timeout_s: float) -> Event | None:
        """What happened next; None if nothing does within so many seconds."""
        try:
            return (
                self._events.get(timeout=timeout_s) if timeout_s > 0 else self._events.get_nowait()
            )
        except Empty:
            return None

    def close(self) -> None:
        """Tell every site that the run is over, and stop serving."""
        for session in self._sessions.values():
            session.end()
        self._server.stop(_FAREWELL_S).wait()

    def _serve(self, parts: Iterator[Part | Piece], context: Any) -> Iterator[Sendable]:
        """One connection: this thread sends what the session has to say, another takes in the rest."""
        session = self._admitted(context)
        outbox = session.attach(context.cancel)
        if not context.add_callback(lambda: session.detach(outbox)):
            session.detach(outbox)
        context.send_initial_metadata(())
        log_event("session_opened", site=session.site)
        threading.Thread(target=_receive, args=(session, outbox, parts), daemon=True).start()
        yield from outbox

    def _admitted(self, context: Any) -> SiteSession:
        """The session that a call may take part in; ends the call if it may in none."""
        peer = context.auth_context()
        site = _name_of(peer)
        sent = dict(context.invocation_metadata())
        token = str(sent.get(TOKEN_KEY, ""))
        if site not in self._sessions:
            _refuse(context, grpc.StatusCode.PERMISSION_DENIED, "not_in_roster")
        if not self._has_key(site, peer["x509_pem_cert"][0]):
            _refuse(context, grpc.StatusCode.PERMISSION_DENIED, "not_let_in")
        if sent.get(RUN_KEY) != self._run or not hmac.compare_digest(
            token.encode(), self._tokens[site].encode()
        ):
            _refuse(context, grpc.StatusCode.UNAUTHENTICATED, "not_invited")
        return self._sessions[site]


def _receive(session: SiteSession, outbox: Outbox, parts: Iterator[Part | Piece]) -> None:
    """Take in what comes until the connection ends, and end it if that is against the protocol."""
    code = ""
    try:
        for part in parts:
            session.receive(outbox, part)
    except WireError as error:
        code = error.code
    except grpc.RpcError:
        pass  # the connection is gone
    except Exception:  # noqa: BLE001  a fault of ours must not leave a session half alive
        code = "internal"
    finally:
        session.detach(outbox)
    if code:
        log_event("session_refused", site=session.site, code=code)


def _name_of(peer: Any) -> SiteId:
    """The name in the peer's certificate; empty if it has none or several."""
    names = peer.get("x509_subject_alternative_name", [])
    return SiteId(names[0].decode("ascii", "replace")) if len(names) == 1 else SiteId("")


def _refuse(context: Any, status: grpc.StatusCode, code: str) -> None:
    log_event("session_refused", code=code)
    context.abort(status, code)


def _listen(server: grpc.Server, bind: str, identity: Identity) -> int:
    credentials = grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)],
        root_certificates=identity.authority,
        require_client_auth=True,
    )
    try:
        return int(server.add_secure_port(bind, credentials))
    except RuntimeError as error:
        raise RoundError(
            f"the tensor stream cannot listen on {bind}; another run may have the port",
            code="stream_port",
        ) from error


def _with_port(bind: str, port: int) -> str:
    return f"{bind.rpartition(':')[0]}:{port}"
