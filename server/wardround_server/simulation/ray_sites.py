"""The sites of a simulation on Ray: one ClientApp that every actor makes for itself.

Flower ships its app to an actor with every message. Ours is a description of a few hundred bytes;
an actor builds model and sites from it once and keeps them for as long as it lives.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict

from wardround_common.sites import SimulatedSites, simulated_sites
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import Digest
from wardround_common.wire.flower import make_reply
from wardround_server.simulation.threads import fix_threads

NAME_QUESTION = "query.site_name"
"""Message type that asks a node which site it plays; Flower numbers its simulated nodes at random."""
_made: dict[tuple[Digest, Path], SimulatedSites] = {}


@dataclass(frozen=True, slots=True)
class RaySites:
    """Called by an actor as ``app(message=..., context=...)``.

    Attributes:
        spec: the federation.
        base: folder of the federation file; as seen from every machine of the cluster.
        raw: folder with local copies of public data; likewise.
        cache: folder for cached features; likewise, or local to each.
        memory: folder for what sites remember from round to round; as seen from every machine.
    """

    spec: FederationSpec
    base: Path
    raw: Path | None
    cache: Path
    memory: Path

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer for the site whose place in the roster is the node's partition."""
        place = int(context.node_config["partition-id"])
        site = self.spec.federation.sites[place]
        if message.metadata.message_type == NAME_QUESTION:
            return make_reply(message, RecordDict({"site": ConfigRecord({"name": site})}))
        context.node_config["site"] = site
        reply: Message = self._sites().app(message, context)
        return reply

    def _sites(self) -> SimulatedSites:
        key = (self.spec.digest(), self.cache)
        if key not in _made:
            fix_threads(self.spec)
            _made.clear()
            _made[key] = simulated_sites()(
                self.spec,
                base=self.base,
                raw=self.raw,
                cache=self.cache,
                memory=self.memory,
                on_failure=_tell,
            )
        return _made[key]


def _tell(site: str, error: Exception) -> None:
    """To the actor's log, which Ray shows to whoever simulates."""
    print(f"{site}: {error}", file=sys.stderr, flush=True)  # noqa: T201
