"""How a site's two processes are: the worker by its airlock, the node by the file it writes."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from wardround_client.airlock.airlock_pb2 import WorkerStatus
from wardround_client.airlock.client import AirlockClient, AirlockUnavailable
from wardround_common.spec.load import load_site
from wardround_common.spec.site import SiteSpec, resolve

NODE_FILE: Final = "status.json"
_STALE_S = 10.0
"""A node that runs writes its file every two seconds."""
_NODE_DOES: Final = {"execute": "the worker has a question", "push": "an answer is being sent"}


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """A site's processes, as ``--json`` prints them.

    Attributes:
        site: its name.
        worker: what it says of itself; None if it does not answer.
        has_node: whether ``site.toml`` has a node.
        node: what it wrote last; None if it does not run.
    """

    site: str
    worker: dict[str, Any] | None
    has_node: bool
    node: dict[str, Any] | None

    @property
    def is_well(self) -> bool:
        """Whether all that should run runs, and the aggregator is reached."""
        node = self.node is not None and bool(self.node.get("online"))
        return self.worker is not None and (node or not self.has_node)

    def to_json(self) -> str:
        """As one object."""
        return json.dumps(asdict(self) | {"is_well": self.is_well}, indent=2)

    def to_text(self) -> str:
        """For people."""
        lines = [f"site    {self.site}", *_worker_lines(self.worker)]
        return "\n".join(lines + (_node_lines(self.node) if self.has_node else []))


def site_status(file: Path) -> SiteStatus:
    """Look at a site's processes.

    Args:
        file: ``site.toml``.

    Raises:
        ConfigError: the file is wrong.
    """
    site, base = load_site(file), file.resolve().parent
    return SiteStatus(site.name, _worker(site, base), site.node is not None, _node(site, base))


def _worker(site: SiteSpec, base: Path) -> dict[str, Any] | None:
    airlock = AirlockClient(resolve(base, site.worker.socket))
    try:
        return _fields(airlock.status())
    except AirlockUnavailable:
        return None
    finally:
        airlock.close()


def _fields(status: WorkerStatus) -> dict[str, Any]:
    found = {field.name: getattr(status, field.name) for field in WorkerStatus.DESCRIPTOR.fields}
    return found | {"federations": list(status.federations)}


def _node(site: SiteSpec, base: Path) -> dict[str, Any] | None:
    if site.node is None:
        return None
    path = resolve(base, site.node.state) / NODE_FILE
    try:
        if time.time() - path.stat().st_mtime > _STALE_S:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _worker_lines(worker: dict[str, Any] | None) -> list[str]:
    if worker is None:
        return ["worker  does not answer"]
    doing = "nothing is being computed"
    if worker["run"]:
        doing = f"{worker['kind']}, round {worker['round']}, for {worker['seconds']:.0f} s"
        doing += f", run {worker['run']}"
    traffic = f"{_mb(worker['bytes_in'])} in, {_mb(worker['bytes_out'])} out"
    lines = [
        f"worker  version {worker['version']}, {len(worker['federations'])} federation(s)",
        f"        {doing}",
        f"        {worker['steps_answered']} steps answered, {traffic}",
    ]
    if worker["failures"]:
        lines.append(f"        {worker['failures']} failures, the last: {worker['last_failure']}")
    return lines


def _node_lines(node: dict[str, Any] | None) -> list[str]:
    if node is None:
        return ["node    does not run"]
    trouble = node.get("text") or "the aggregator does not answer"
    reached = "the aggregator answers" if node.get("online") else trouble
    traffic = (
        f"        {node.get('messages', 0)} messages, {_mb(node.get('bytes_in', 0))} in, "
        f"{_mb(node.get('bytes_out', 0))} out"
    )
    lines = [f"node    {reached}"]
    if node.get("doing"):
        lines.append(f"        {_NODE_DOES.get(node['doing'], node['doing'])}")
    return [*lines, traffic]


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
