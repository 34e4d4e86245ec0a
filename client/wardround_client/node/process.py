"""The site node as a process: the network, and nothing of the site's data.

It makes sure that it cannot read the data and that it is the only one, comes online, and answers
messages until it is told to end; with new keys it comes online again by itself. What the worker computes then goes on, and what it owes stays in
hand: the next life brings the answer. The first SIGTERM or SIGINT ends it in order, the second at
once.
"""

import os
import signal
import sys
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType

from wardround_client.airlock.client import AirlockClient, AirlockUnavailable
from wardround_client.node.fleet import FleetConnection
from wardround_client.node.fleet_api import GoneError
from wardround_client.node.guard import only_one, require_no_data
from wardround_client.node.identity import IdentityFiles, load_identity
from wardround_client.node.in_hand import InHand
from wardround_client.node.node import SiteNode
from wardround_client.node.stream import StreamSessions
from wardround_client.node.traffic import Traffic, keep_written
from wardround_common.errors import ConfigError
from wardround_common.log import log_event, set_log_stream
from wardround_common.spec.load import load_site
from wardround_common.spec.site import Node, SiteSpec, resolve
from wardround_common.stream.limits import read_identity

_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})


def run_node(file: Path, *, same_user: bool) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        file: ``site.toml``.
        same_user: start although this user can read the data (trials on one machine).

    Raises:
        ConfigError: a file is wrong or missing, the data can be read, or another node is running.
    """
    stop = _stopped_by_signals()
    set_log_stream(sys.stderr)
    os.umask(0o077)
    site, base = load_site(file), file.resolve().parent
    if site.node is None:
        raise ConfigError(
            f"{file}: there is no table [node]; it says where the aggregator is", code="no_node"
        )
    if not same_user:
        require_no_data(site, base)
    with ExitStack() as running:
        running.callback(os.close, only_one(resolve(base, site.node.state)))
        while not stop.is_set():
            files = IdentityFiles(site.node, base)
            with ExitStack() as opened, files.ends_with(stop) as life:
                _serve(site, site.node, base, life, opened)
    log_event("node_ended", site=site.name)


def _serve(
    site: SiteSpec, spec: Node, base: Path, stop: threading.Event, opened: ExitStack
) -> None:
    state = resolve(base, spec.state)
    own, key, ca = (
        resolve(base, path) for path in (spec.certificate, spec.certificate_key, spec.ca)
    )
    identity = load_identity(resolve(base, spec.key), ca, own, key)
    airlock = AirlockClient(resolve(base, site.worker.socket))
    connection = FleetConnection(spec.aggregator, identity, InHand(state), stop)
    opened.callback(connection.close)
    traffic = Traffic()
    node = SiteNode(connection, airlock, traffic, stop, poll_s=spec.poll_s)
    if identity.until is not None:
        sessions = StreamSessions(
            site.name, read_identity(own, key, ca), airlock, run_is_over=node.run_is_over
        )
        opened.callback(sessions.close)
        node.on_session = sessions.on_session
    if spec.metrics is not None:
        opened.callback(_metrics(traffic, spec.metrics, connection, airlock))
    keep_written(partial(traffic.write, state, connection), stop)
    threading.Thread(target=_close_after, args=(stop, airlock), daemon=True).start()
    log_event("node_started", site=site.name)
    try:
        connection.open()
        node.serve()
    except GoneError:
        return  # told to end before it came online


def _close_after(stop: threading.Event, airlock: AirlockClient) -> None:
    """Let go of the worker, whatever it is being asked, when the node is to end."""
    stop.wait()
    airlock.close()


def _metrics(
    traffic: Traffic, address: str, connection: FleetConnection, airlock: AirlockClient
) -> "partial[None]":
    def worker_answers() -> bool:
        try:
            airlock.status()
        except (AirlockUnavailable, ValueError):  # ValueError: closed
            return False
        return True

    try:
        return partial(traffic.serve(address, connection, worker_answers))
    except OSError as error:
        raise ConfigError(
            f"node.metrics = {address!r}: cannot listen there ({error.strerror})",
            code="metrics_address",
        ) from None


def _stopped_by_signals() -> threading.Event:
    """Set by the first signal; the second ends the process.

    A thread waits for them: a handler would interrupt whatever the main thread holds. Libraries have
    threads from when they were imported, which do not block them; what the kernel gives to one of
    those is passed on to the thread that waits.
    """
    stop = threading.Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def wait() -> None:
        signal.sigwait(_ENDING)
        stop.set()
        signal.sigwait(_ENDING)
        os._exit(1)

    waiting = threading.Thread(target=wait, name="signals", daemon=True)
    waiting.start()
    for number in _ENDING:
        signal.signal(number, partial(_passed_on, waiting))
    return stop


def _passed_on(waiting: threading.Thread, number: int, _: FrameType | None) -> None:
    assert waiting.ident is not None
    signal.pthread_kill(waiting.ident, number)
