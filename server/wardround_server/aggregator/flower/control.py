"""The SuperLink's Control API: starting and stopping runs, and which nodes there are.

Every call is one request with a time limit; a SuperLink that does not answer raises
:class:`ControlUnavailable`, and the caller asks again later.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from wardround_common.errors import WardroundError
from wardround_server.aggregator.flower.programs import LOOPBACK, RUN_KEY, bundle

T = TypeVar("T")


class ControlUnavailable(WardroundError):  # noqa: N818  a state, not a fault
    """The SuperLink does not answer now."""

    public = "The SuperLink does not answer."


class ControlRefused(WardroundError):  # noqa: N818  likewise
    """The SuperLink does not do what it was asked.

    Attributes:
        reason: its own code.
    """

    public = "The SuperLink refused."

    def __init__(self, reason: int) -> None:
        super().__init__(f"the SuperLink refused: {reason}", code="superlink_refused")
        self.reason = reason


class FlowerRun(StrEnum):
    """Where one of Flower's runs stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class NodeState:
    """A registered node.

    Attributes:
        node_id: Flower's number.
        name: what it was registered as.
        public_key: PEM.
        online: whether its lease runs.
        since: Unix time of its last going online or offline; None if it never was online.
    """

    node_id: int
    name: str
    public_key: bytes
    online: bool
    since: float | None


class Control(Protocol):
    """What the supervisor needs of the SuperLink."""

    def is_healthy(self) -> bool:
        """Whether it answers."""
        ...

    def start_run(self, run: str) -> int:
        """Start a run for a run folder; returns Flower's number of it."""
        ...

    def stop_run(self, run_id: int) -> None:
        """Stop a run; no error if it has ended."""
        ...

    def runs(self, run_ids: Iterable[int]) -> dict[int, FlowerRun]:
        """Where runs stand."""
        ...

    def nodes(self) -> Sequence[NodeState]:
        """All registered nodes."""
        ...

    def register(self, name: str, public_key: bytes) -> int:
        """Make a node known; returns its number."""
        ...

    def unregister(self, node_id: int) -> None:
        """Make a node unknown; no error if it is."""
        ...


class SuperLinkControl:
    """:class:`Control` over HTTPS on loopback.

    Args:
        port: the SuperLink's.
        authority: vouches for its certificate.
    """

    def __init__(self, port: int, authority: Path) -> None:
        self._url = f"https://{LOOPBACK}:{port}/health"
        self._http = httpx.Client(
            verify=ssl.create_default_context(cafile=str(authority)), timeout=5.0, trust_env=False
        )
        self._client = ControlHttpClient.from_server_address(
            f"{LOOPBACK}:{port}",
            insecure=False,
            root_certificates=authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._client.close()

    def is_healthy(self) -> bool:
        """See :class:`Control`."""
        try:
            return self._http.get(self._url).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def start_run(self, run: str) -> int:
        """See :class:`Control`."""
        request = StartRunRequest(
            fab=Fab(content=bundle()), override_config={RUN_KEY: Scalar(string=run)}
        )
        return int(_called(self._client.StartRun, request).run_id)

    def stop_run(self, run_id: int) -> None:
        """See :class:`Control`."""
        ended = (ApiErrorCode.RUN_ALREADY_FINISHED, ApiErrorCode.RUN_ID_NOT_FOUND)
        with _tolerated(*ended):
            _called(self._client.StopRun, StopRunRequest(run_id=run_id))

    def runs(self, run_ids: Iterable[int]) -> dict[int, FlowerRun]:
        """See :class:`Control`."""
        return {run_id: self._run(run_id) for run_id in run_ids}

    def nodes(self) -> Sequence[NodeState]:
        """See :class:`Control`."""
        found = _called(self._client.ListNodes, ListNodesRequest()).nodes_info
        return [_node(each) for each in found if each.status != "unregistered"]

    def register(self, name: str, public_key: bytes) -> int:
        """See :class:`Control`."""
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(_called(self._client.RegisterNode, request).node_id)

    def unregister(self, node_id: int) -> None:
        """See :class:`Control`."""
        with _tolerated(ApiErrorCode.NODE_NOT_FOUND):
            _called(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def _run(self, run_id: int) -> FlowerRun:
        with _tolerated(ApiErrorCode.RUN_ID_NOT_FOUND):
            found = _called(self._client.ListRuns, ListRunsRequest(run_id=run_id)).run_dict
            if run_id in found:
                return _state(found[run_id].status.status)
        return FlowerRun.UNKNOWN


def _state(status: str) -> FlowerRun:
    known = {"running": FlowerRun.RUNNING, "finished": FlowerRun.FINISHED}
    return known.get(status, FlowerRun.WAITING)


def _node(info: Any) -> NodeState:
    online = info.status == "online"
    changed = info.last_activated_at if online else info.last_deactivated_at
    return NodeState(
        int(info.node_id),
        str(info.name),
        bytes(info.public_key),
        online,
        datetime.fromisoformat(changed).timestamp() if changed else None,
    )


def _called(call: Callable[..., T], request: object) -> T:
    """One request.

    Raises:
        ControlUnavailable: no answer, or one that passes by itself.
        ControlRefused: refused for a reason.
    """
    try:
        return call(request)
    except httpx.HTTPStatusError as error:
        refused = FlowerError.from_json(error.response.text)
        if refused is None or error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise _unavailable() from None
        raise ControlRefused(int(refused.code)) from None
    except (httpx.HTTPError, ValueError):
        raise _unavailable() from None


def _unavailable() -> ControlUnavailable:
    return ControlUnavailable("the SuperLink does not answer", code="superlink_unavailable")


@contextlib.contextmanager
def _tolerated(*codes: int) -> Iterator[None]:
    """What is asked for is the case already."""
    try:
        yield
    except ControlRefused as error:
        if error.reason not in codes:
            raise
