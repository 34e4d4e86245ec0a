"""One hospital on disk with a real worker behind a real airlock, and what an aggregator would ask it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch._dynamo  # noqa: F401  else the first training would, for seconds that tests count

from tests.policies import asked, write_policy
from tests.unit.test_worker import World
from wardround_client.airlock.client import AirlockAnswer, AirlockClient
from wardround_client.airlock.server import AirlockServer
from wardround_client.airlock.service import AirlockService
from wardround_client.policy.control import SiteControl
from wardround_client.policy.papers import site_policy
from wardround_client.worker.caller import Caller
from wardround_client.worker.desk import SiteDesk
from wardround_common.rpc.frames import joined, pieces
from wardround_common.spec.load import load_site
from wardround_common.spec.site import resolve
from wardround_common.types import SiteId
from wardround_common.wire.layout import as_bytes
from wardround_common.wire.step import StepManifest

SITE = """\
name = "a"
federations = ["federation.toml"]
[data]
format = "csv"
path = "data/table.csv"
[data.shared_part]
sites = ["a", "b", "c"]
[data.shared_part.partition]
kind = "column"
column = "hospital"
values = { a = ["a"], b = ["b"], c = ["c"] }
[compute]
threads = 1
"""


def toml_of(tables: dict[str, Any]) -> str:
    """A federation file; each table's values are written inline."""
    lines: list[str] = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{k}" = {_toml(v)}' for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


class Hospital:
    """Site ``a`` of three, with its files in a folder.

    Args:
        folder: for everything.
        tables: of the federation file; see ``tests.support.simulated``.

    Attributes:
        world: the same site in memory, for what its answers should be.
    """

    def __init__(self, folder: Path, **tables: Any) -> None:
        self.folder = folder
        self.world = World(folder, **tables)
        written = self.world.spec.model_dump(mode="json", exclude_unset=True)
        (folder / "federation.toml").write_text(toml_of(written))
        self.file = folder / "site.toml"
        self.file.write_text(SITE)
        write_policy(folder)
        self.socket = folder / "airlock" / "airlock.sock"

    def desk(self) -> SiteDesk:
        """A new desk, as after a restart."""
        site = load_site(self.file)
        state = resolve(self.folder, site.worker.state)
        control = SiteControl(SiteId(site.name), site_policy(site, self.folder), state)
        return SiteDesk(site, self.folder, control)

    @contextmanager
    def airlock(self) -> Iterator["Airlock"]:
        """A running airlock and a client of it."""
        failures: list[Exception] = []
        desk = self.desk()
        server = AirlockServer(AirlockService(desk, failures.append), self.socket)
        client = AirlockClient(self.socket)
        try:
            yield Airlock(self, desk, client, failures)
        finally:
            client.close()
            server.close(0.0)
            desk.close()

    def question(self, kind: str = "train", round_: int = 1, **fields: Any) -> "Asked":
        """A question that fits."""
        manifest = self.world.manifest(kind, round_, **fields)
        state = self.world.state(manifest)
        array = memoryview(b"") if state is None else as_bytes(state)
        return Asked(manifest, array)


@dataclass(frozen=True)
class Asked:
    """A question, signed by the tests' coordinator whatever it is."""

    manifest: StepManifest
    array: memoryview

    def __post_init__(self) -> None:
        object.__setattr__(self, "manifest", asked(self.manifest))

    @property
    def document(self) -> bytes:
        return self.manifest.to_bytes()


@dataclass(frozen=True)
class Got:
    """An answer."""

    receipt: bytes
    failure: str
    array: bytes

    @property
    def values(self) -> np.ndarray:
        return np.frombuffer(self.array, dtype=np.float32)


@dataclass(frozen=True)
class Airlock:
    """A running airlock, seen from both sides."""

    hospital: Hospital
    desk: SiteDesk
    client: AirlockClient
    failures: list[Exception] = field(default_factory=list)

    def begin(self, asked: Asked, deadline_s: float = 30.0) -> AirlockAnswer:
        """Ask; returns when the answer begins."""
        size = asked.array.nbytes
        return self.client.execute(asked.document, pieces(asked.array), size, deadline_s=deadline_s)

    def ask(self, asked: Asked, deadline_s: float = 30.0) -> Got:
        """Ask, and take the whole answer."""
        return got(self.begin(asked, deadline_s))


def got(answer: AirlockAnswer) -> Got:
    """The whole of an answer."""
    array = joined(answer.chunks, answer.array_bytes)
    return Got(answer.document, answer.failure, b"" if array is None else bytes(array))


class Counted:
    """Counts what a desk's workers compute, and may hold them.

    Attributes:
        computed: digests of questions, in the order in which their computation began.
        begun: set when one begins.
        go: cleared to hold them before they compute.
    """

    def __init__(self, monkeypatch: Any) -> None:
        from wardround_client.worker.worker import SiteWorker

        self.computed: list[str] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        real = SiteWorker.execute

        def execute(worker: SiteWorker, manifest: StepManifest, *args: Any, **kwargs: Any) -> Any:
            self.computed.append(manifest.digest())
            self.begun.set()
            assert self.go.wait(20)
            return real(worker, manifest, *args, **kwargs)

        monkeypatch.setattr(SiteWorker, "execute", execute)


def here() -> Caller:
    """A caller that does not leave."""
    return Caller(lambda leave: True)
