"""The ServerApp: the round engine behind Flower's entry point, the same everywhere.

``app`` is what a run of the aggregator starts: its bundle names it and carries no code. A simulation
makes its own by :func:`server_app`.
"""

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from wardround_common.types import SiteId
from wardround_server.rounds.whereabouts import roster_nodes

GridRun = Callable[[Grid, dict[SiteId, int]], None]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A run of the aggregator, from wherever its folder says it stands."""
    from wardround_server.aggregator.deployed import run_deployed

    run_deployed(grid, str(context.run_config.get("run", "")))


def server_app(sites: tuple[str, ...], run: GridRun) -> ServerApp:
    """A ServerApp that runs one federation whose sites never come or go.

    Args:
        sites: the roster. Nodes are found by name; nobody else is ever addressed.
        run: drives the rounds over the grid, given each present site's node id.
    """
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        there = roster_nodes(grid, sites)
        run(grid, {site: found.node_id for site, found in there.items()})

    return made
