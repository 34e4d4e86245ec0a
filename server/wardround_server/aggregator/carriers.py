"""How a deployed run reaches its sites: by Flower messages, and by the tensor stream where it is on."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.serverapp import Grid

from wardround_common.errors import RoundError
from wardround_common.exact_head import sums_layout
from wardround_common.log import log_event
from wardround_common.shared_model import SharedModel
from wardround_common.spec.aggregator import AggregatorSpec
from wardround_common.stream.limits import read_identity
from wardround_common.types import SiteId
from wardround_server.aggregator.flower.grid import PatientGrid
from wardround_server.aggregator.folder import AggregatorFolder, key_beside
from wardround_server.aggregator.sites import SiteRegister
from wardround_server.rounds.carrier import Carrier, FlowerCarrier
from wardround_server.rounds.whereabouts import OnlineNodes

if TYPE_CHECKING:
    from wardround_server.stream.server import StreamServer

Ways = Callable[[], Mapping[SiteId, str]]
_BESIDE_BYTES = 4 << 20
"""Receipt, and what Flower writes around an array."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a run is carried by.

    Attributes:
        folder: the aggregator's.
        aggregator: its file.
        model: the federation's.
        run: the run.
        spool: where arrays are written while they come.
    """

    folder: AggregatorFolder
    aggregator: AggregatorSpec
    model: SharedModel
    run: str
    spool: Path

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """The roster."""
        return tuple(SiteId(site) for site in self.model.federation.federation.sites)


@contextmanager
def open_carrier(grid: Grid, deployment: Deployment) -> Iterator[tuple[Carrier, Ways]]:
    """The run's carrier, and how it reaches each site.

    Args:
        grid: flwr's, of the run.
        deployment: the rest.
    """
    patient = PatientGrid(grid, largest_reply_bytes(deployment.model))
    messages = FlowerCarrier(patient, OnlineNodes(patient, deployment.sites))
    server = _stream_server(deployment)
    if server is None:
        yield messages, dict
        return
    from wardround_server.stream.carrier import StreamCarrier

    carrier = StreamCarrier(messages, server, messages.invite)
    try:
        yield carrier, lambda: dict(carrier.ways)
    finally:
        carrier.close()


def _stream_server(deployment: Deployment) -> "StreamServer | None":
    """The run's sessions; None where the stream is off, or no port is free: then by messages."""
    stream, folder = deployment.aggregator.stream, deployment.folder
    if stream is None:
        return None
    from wardround_server.stream.server import StreamServer

    identity = read_identity(folder.certificate, key_beside(folder.certificate), folder.authority)
    for port in range(stream.port, stream.port + deployment.aggregator.runs_at_once):
        with contextlib.suppress(RoundError):
            return StreamServer(
                f"{stream.listen}:{port}",
                identity,
                run=deployment.run,
                sites=deployment.sites,
                spool=deployment.spool,
                public=f"{deployment.aggregator.host}:{port}",
                has_key=SiteRegister(folder).has_tls_key,
            )
    log_event("carrier_fell_back", run=deployment.run, code="stream_port")
    return None


def largest_reply_bytes(model: SharedModel) -> int:
    """The largest answer that any step of a run has, and some more."""
    spec = model.federation
    sizes = [model.state_layout(max(spec.rounds.count, 1)).num_bytes]
    if spec.exact_head.enabled:
        folds = spec.exact_head.folds if spec.exact_head.ridge == "auto" else 1
        sizes.append(sums_layout(model.feature_dim, model.task.num_outputs, folds).num_bytes)
    return max(sizes) + _BESIDE_BYTES
