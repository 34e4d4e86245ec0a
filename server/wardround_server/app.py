"""The ServerApp: the round engine behind Flower's entry point, the same everywhere."""

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from wardround_common.errors import RoundError
from wardround_common.types import SiteId

GridRun = Callable[[Grid, dict[SiteId, int]], None]


def server_app(sites: tuple[str, ...], run: GridRun) -> ServerApp:
    """A ServerApp that runs one federation.

    Args:
        sites: the roster. Nodes are found by name; nobody else is ever addressed.
        run: drives the rounds over the grid, given each present site's node id.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        run(grid, roster_nodes(grid, sites))

    return app


def roster_nodes(grid: Grid, sites: tuple[str, ...]) -> dict[SiteId, int]:
    """The node ids of the roster's sites that are known to the grid.

    Raises:
        RoundError: two nodes carry the name of one site.
    """
    nodes: dict[SiteId, int] = {}
    for node in grid.get_nodes():
        if node.name not in sites:
            continue
        if node.name in nodes:
            raise RoundError(
                f"two nodes are registered as {node.name!r}; unregister one", code="node_name"
            )
        nodes[SiteId(node.name)] = node.node_id
    return nodes
