"""Keeps the SuperLink's list of nodes equal to the list of invited sites.

A node is registered under its site's name. A node whose site is not invited any more, or has
enrolled with a new key, is made unknown; Flower then refuses its requests.
"""

from collections.abc import Iterable

from wardround_common.log import log_event
from wardround_server.aggregator.flower.control import Control, ControlRefused, NodeState
from wardround_server.aggregator.sites import EnrolledSite


class NodeRoster:
    """Registers and unregisters nodes.

    Args:
        control: the SuperLink.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._refused: set[tuple[str, str]] = set()

    def match(self, sites: Iterable[EnrolledSite]) -> dict[str, NodeState | None]:
        """Make the SuperLink's list equal to ``sites``.

        Returns:
            Site -> its node; None for one that the SuperLink refused.

        Raises:
            ControlUnavailable: the SuperLink does not answer; try again later.
        """
        wanted = {(site.name, site.node_key.encode()): site for site in sites}
        found: dict[str, NodeState | None] = {}
        for node in self._control.nodes():
            site = wanted.pop((node.name, node.public_key), None)
            if site is None:
                self._control.unregister(node.node_id)
                log_event("site_unregistered", code=_code_of(node.name))
            else:
                found[site.name] = node
        for site in wanted.values():
            found[site.name] = self._register(site)
        return found

    def _register(self, site: EnrolledSite) -> NodeState | None:
        if (site.name, site.node_key) in self._refused:
            return None
        key = site.node_key.encode()
        try:
            node_id = self._control.register(site.name, key)
        except ControlRefused:
            self._refused.add((site.name, site.node_key))
            log_event("site_refused", site=site.name, code="node_key_used")
            return None
        log_event("site_registered", site=site.name)
        return NodeState(node_id, site.name, key, online=False, since=None)


def _code_of(name: str) -> str:
    """A node's name if it can be one of a site; others may be anything."""
    return name if name.isascii() and name.replace("-", "").isalnum() and name else "unnamed"
