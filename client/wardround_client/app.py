"""The ClientApp: Flower messages in, Flower messages out, a site worker in between.

``app`` is the installed ClientApp of a stock ``flower-supernode``. It forwards to the airlock that
the node's configuration names (``--node-config 'airlock="/run/wardround/airlock.sock"'``), as the
site node does; torch is not imported, since Flower starts a process a message. ``client_app`` makes
the one of a simulation, whose workers are in this process.

No exception text ever goes into a reply: a step that cannot be done is answered with a code. What
went wrong in detail is for the site's own operator, through ``on_failure``.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from wardround_client.airlock.client import AirlockClient
from wardround_client.node.relay import failed, relay
from wardround_common.errors import WardroundError
from wardround_common.sites import FailureHook
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import SiteId
from wardround_common.wire.flower import (
    MESSAGE_TYPES,
    HandedOver,
    failure_content,
    handed_over,
    json_of,
    make_reply,
    packed_of,
    to_content,
)
from wardround_common.wire.session import SESSION_TYPE
from wardround_common.wire.step import parse_manifest

if TYPE_CHECKING:
    from wardround_client.simulated import InProcessSites
    from wardround_client.worker.worker import SiteWorker

Handle = Callable[[Message, Context], Message]


def registered(handle: Handle, *others: str) -> ClientApp:
    """A ClientApp that has every kind of step, and other message types, handled by ``handle``."""
    made = ClientApp()
    for message_type in (*MESSAGE_TYPES.values(), *others):
        category, _, action = message_type.partition(".")
        register = {"train": made.train, "evaluate": made.evaluate, "query": made.query}[category]
        register(action or "default")(handle)
    return made


def forward(message: Message, context: Context) -> Message:
    """One message, answered by the worker behind the airlock."""
    socket = context.node_config.get("airlock")
    if message.metadata.message_type == SESSION_TYPE:
        return failed(message, "session_unsupported").reply
    if not isinstance(socket, str) or not socket:
        return failed(message, "no_airlock").reply
    until = message.metadata.created_at + message.metadata.ttl
    airlock = AirlockClient(Path(socket))
    try:
        relayed = relay(message, airlock, threading.Event(), lambda: until - time.time())
    finally:
        airlock.close()
    return (relayed or failed(message, "worker_unavailable")).reply


app = registered(forward, SESSION_TYPE)


def answer(message: Message, worker: "SiteWorker", on_failure: FailureHook) -> Message:
    """One message to one site, answered.

    Args:
        message: a step of ours.
        worker: the site's worker.
        on_failure: told the site and the exception, locally.
    """
    try:
        data = json_of(message.content)
        manifest = parse_manifest(data)
        state = packed_of(message.content, manifest.state_layout)
        in_process = handed_over(message.content)
        receipt, update = worker.execute(manifest, state, handed_over=in_process)
    except WardroundError as error:
        on_failure(worker.name, error)
        return make_reply(message, failure_content(error.code))
    except Exception as error:  # noqa: BLE001  whatever it says may name a patient
        on_failure(worker.name, error)
        return make_reply(message, failure_content("internal_error"))
    if in_process:
        return make_reply(message, HandedOver(receipt, update))
    return make_reply(message, to_content(receipt.to_bytes(), update))


def client_app(workers: "Mapping[SiteId, SiteWorker]", on_failure: FailureHook) -> ClientApp:
    """A ClientApp that answers every kind of step for the given sites."""

    def handle(message: Message, context: Context) -> Message:
        site = SiteId(str(context.node_config.get("site", "")))
        if site not in workers:
            return make_reply(message, failure_content("site_unknown"))
        return answer(message, workers[site], on_failure)

    return registered(handle)


class SimulatedSites:
    """All sites of a federation behind one ClientApp; see ``wardround_common.sites``."""

    def __init__(self, sites: "InProcessSites", on_failure: FailureHook) -> None:
        self.app = client_app(sites.workers, on_failure)
        self.pooled = sites.pooled
        self.make_durable = sites.remainders.make_durable


def simulated_sites(
    federation: FederationSpec,
    *,
    base: Path,
    raw: Path | None,
    cache: Path,
    memory: Path,
    on_failure: FailureHook,
) -> SimulatedSites:
    """Entry point of the simulator; see ``wardround_common.sites.SitesFactory``."""
    from wardround_client.simulated import InProcessSites

    sites = InProcessSites(federation, base=base, raw=raw, cache=cache, memory=memory)
    return SimulatedSites(sites, on_failure)
