"""The same run on Flower's own simulation runtime: for several GPUs, or several machines.

Each actor of Ray holds the backbone once and plays whichever site it is sent. Updates come back as
messages in any order; the engine folds them in the order of the roster as always, so the model has
the same bytes as on one process if processors and thread count are the same.
"""

import importlib.util
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from wardround_common.errors import ConfigError, RoundError
from wardround_common.types import SiteId
from wardround_server.app import GridRun
from wardround_server.simulation.ray_sites import NAME_QUESTION, RaySites

_SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that this will be the default
}
_POLL_S = 0.05
_NAMING_S = 600.0
"""Seconds that actors have to start and say which sites they play."""


def run_on_ray(sites: RaySites, run: GridRun, *, actors: int, gpus: float) -> None:
    """Run a federation on Ray: the cluster at ``RAY_ADDRESS``, or one on this machine.

    Args:
        sites: plays the sites in each actor.
        run: drives the rounds, given each site's node.
        actors: actors at the same time on this machine; a cluster has as many as fit.
        gpus: share of a GPU that an actor takes; 0 for none.

    Raises:
        ConfigError: Ray is not installed.
        RoundError: no actor could be started, or they do not answer.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "--engine ray needs Ray: pip install 'wardround[ray]'", code="ray_not_installed"
        )
    os.environ |= _SILENT
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    raised: list[BaseException] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            run(grid, _nodes(grid, sites.spec.federation.sites))
        except BaseException as error:
            raised.append(error)  # Flower would replace it by one of its own
            raise

    try:
        run_simulation(
            server_app=server,
            client_app=_client(sites),
            num_supernodes=len(sites.spec.federation.sites),
            backend_config=_backend(sites, actors, gpus),
        )
    except RuntimeError:
        if raised:
            raise raised[0] from None
        raise
    if raised:
        raise raised[0]


def _client(sites: RaySites) -> Any:
    """Flower calls what it is given; it only says that this must be its own class."""
    client: Callable[..., Message] = sites
    return client


def _backend(sites: RaySites, actors: int, gpus: float) -> dict[str, dict[str, Any]]:
    simulation = sites.spec.simulation
    threads = (simulation.threads if simulation else None) or 1
    init_args: dict[str, Any] = {"log_to_driver": True}
    if "RAY_ADDRESS" not in os.environ:
        init_args["num_cpus"] = actors * threads
    return {
        "client_resources": {"num_cpus": float(threads), "num_gpus": gpus},
        "init_args": init_args,
    }


def _nodes(grid: Grid, roster: tuple[str, ...]) -> dict[SiteId, int]:
    """Wait for the nodes, and ask each which site it plays."""
    until = time.monotonic() + _NAMING_S
    while len(nodes := list(grid.get_node_ids())) < len(roster) and time.monotonic() < until:
        time.sleep(_POLL_S)
    questions = [Message(RecordDict(), node, NAME_QUESTION, ttl=_NAMING_S) for node in nodes]
    open_ids = set(grid.push_messages(questions))
    found: dict[SiteId, int] = {}
    while open_ids and time.monotonic() < until:
        for reply in grid.pull_messages(open_ids):
            open_ids.discard(reply.metadata.reply_to_message_id)
            if not reply.has_error():
                name = str(reply.content.config_records["site"]["name"])
                found[SiteId(name)] = reply.metadata.src_node_id
        time.sleep(_POLL_S)
    if set(found) != set(roster):
        raise RoundError(
            "Ray's actors did not start; its log under /tmp/ray/session_latest/logs says why",
            code="ray_actors",
        )
    return found
