"""A whole consortium on loopback: the real aggregator, workers and nodes, each a process of its own.

What it promises: nothing is replaced by a fake; every process ends with the context, whatever
happened; the data is small.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from tests.contract.real_superlink import free_port, node_key
from tests.policies import write_policy
from tests.releases import Release, releases_of
from tests.support import simulated, write_dataset
from wardround_common.crypto.certificates import new_key, site_request
from wardround_common.enrolment import EnrolmentRequest, read_kit, to_text
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import SiteId
from wardround_server.aggregator.folder import AggregatorFolder
from wardround_server.aggregator.records import RunRecord, all_runs

WARDROUND = (sys.executable, "-c", "from wardround_common.cli import main; main()")
_NODE = (
    "import sys; from pathlib import Path; sys.path.append(sys.argv[3]); "
    "from tests.releases import run_noting_node; "
    "run_noting_node(Path(sys.argv[1]), Path(sys.argv[2]))"
)
_ROOT = Path(__file__).parents[1]
DEADLINE_S = 60.0


def federation_file(folder: Path, sites: Sequence[str], **tables: Any) -> Path:
    """A federation file over a small set of tables, and the set beside it."""
    write_dataset(folder / "data", sites)
    tables = {"rounds": {"count": 2}, **tables}
    spec = simulated(sites, **tables)
    file = folder / "federation.toml"
    file.write_text(tomli_w.dumps(_without_none(spec.model_dump(mode="json"))))
    return file


class Process:
    """A process of the consortium.

    Args:
        words: its command line.
        log: what it prints is added here.
        around: more of its environment.
    """

    def __init__(
        self, words: Sequence[str], log: Path, around: Mapping[str, str] | None = None
    ) -> None:
        self._words = list(words)
        self._log = log
        self._around = {"WARDROUND_LOG_STRICT": "1", **(around or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, or start it again."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._around},
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it as a power cut would."""
        self._signal(signal.SIGKILL)

    def end(self) -> int:
        """End it in order; its exit status."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            self._process.wait()


class Site:
    """One site: its files, its worker, its node.

    Args:
        folder: of the site.
        name: in the roster.
        federation: the file.
        spec: what is in it.
    """

    def __init__(self, folder: Path, name: str, federation: Path, spec: FederationSpec) -> None:
        self.folder, self.name = folder, name
        self._federation, self._spec = federation, spec
        self.worker: Process | None = None
        self.node: Process | None = None
        folder.mkdir(parents=True)
        self._tls_key = new_key()
        self.key = node_key(folder / "node.key")
        (folder / "site.key").write_bytes(self._tls_key)
        self.own: dict[str, Any] = {}
        self._releases = folder / "releases.jsonl"
        self.request = folder / f"{name}.request.json"
        self._write_request()

    @property
    def file(self) -> Path:
        """``site.toml``."""
        return self.folder / "site.toml"

    def install(self, kit: Path) -> None:
        """Take in what the aggregator sent."""
        found = read_kit(kit)
        (self.folder / "ca.pem").write_text(found.authority)
        (self.folder / "site.pem").write_text(found.certificate)
        self.own = {"allow__coordinators": [found.coordinator]}
        self.write(found.aggregator)

    def write(self, aggregator: str) -> None:
        """Write ``site.toml``."""
        simulation = self._spec.simulation
        assert simulation is not None
        part = {
            "partition": simulation.partition.model_dump(mode="json"),
            "sites": list(self._spec.federation.sites),
        }
        data = self._federation.parent / "data" / "table.csv"
        table = {
            "name": self.name,
            "federations": [str(self._federation)],
            "data": {"format": "csv", "path": str(data), "shared_part": part},
            "compute": {"threads": 1},
            "worker": {"socket": "a/s", "network": "allow"},
            "node": {"aggregator": aggregator},
        }
        self.file.write_text(tomli_w.dumps(_without_none(table)))
        write_policy(self.folder, **self.own)

    def start(self) -> None:
        """Start worker and node."""
        self.worker = Process(
            [*WARDROUND, "site", "worker", str(self.file)], self.folder / "worker.log"
        )
        self.node = Process(
            [sys.executable, "-c", _NODE, str(self.file), str(self._releases), str(_ROOT)],
            self.folder / "node.log",
        )

    def releases(self, run: str) -> list[Release]:
        """What has left the site for a run."""
        return releases_of(self._releases, run)

    def stop(self) -> None:
        """End both at once."""
        for process in (self.node, self.worker):
            if process is not None:
                process.kill()

    def _write_request(self) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        request = EnrolmentRequest(
            site=self.name,
            node_key=public.decode(),
            certificate_request=site_request(SiteId(self.name), self._tls_key).decode(),
        )
        self.request.write_text(to_text(request))


class Consortium:
    """An aggregator and its sites; a context that ends them all.

    Args:
        folder: for everything.
        sites: the roster.
        options: more words for ``aggregator init``.
        tables: of the federation file.
    """

    def __init__(
        self,
        folder: Path,
        sites: Sequence[str] = ("a", "b"),
        options: Sequence[str] = (),
        **tables: Any,
    ) -> None:
        from wardround_common.spec.load import load_federation

        self.path = folder
        self.federation = federation_file(folder, sites, **tables)
        self.spec = load_federation(self.federation)
        self.folder = AggregatorFolder(folder / "aggregator")
        self.port = free_port()
        init = ["init", str(self.folder.path), "--host", "localhost"]
        self.enrolment_port = free_port()
        ports = ("--superlink-port", str(self.port), "--enrolment-port", str(self.enrolment_port))
        self.call(*init, *ports, *options)
        self.sites = {
            name: Site(folder / "sites" / name, name, self.federation, self.spec) for name in sites
        }
        self.up: Process | None = None

    def __enter__(self) -> Self:
        """Start the aggregator, and every site."""
        self.start()
        for name in self.sites:
            self.join(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End everything."""
        for site in self.sites.values():
            site.stop()
        if self.up is not None:
            self.up.kill()

    def start(self) -> None:
        """Start the aggregator."""
        words = [*WARDROUND, "aggregator", "up", str(self.folder.path)]
        self.up = Process(words, self.path / "up.log")
        self.until(lambda: self.status()["processes"].get("superexec"), "the aggregator is up")

    def join(self, name: str) -> None:
        """Invite a site and start it."""
        site, kit = self.sites[name], self.path / f"{name}.kit.json"
        self.call("certify", str(self.folder.path), str(site.request), "--out", str(kit))
        site.install(kit)
        site.start()

    def call(self, verb: str, *words: str, status: int = 0) -> str:
        """A verb of ``wardround aggregator``; what it printed."""
        done = subprocess.run(
            [*WARDROUND, "aggregator", verb, *words],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """How the aggregator is."""
        from wardround_server.aggregator.status import read_state

        found: dict[str, Any] = json.loads(read_state(self.folder).to_json())
        return found

    def all_online(self) -> bool:
        """Whether the aggregator sees every site's node."""
        sites = self.status()["sites"]
        return len(sites) == len(self.sites) and all(site["online"] for site in sites)

    def begin(self) -> RunRecord:
        """Start a run and do not wait for it."""
        self.call("run", str(self.folder.path), str(self.federation), "--detach")
        return all_runs(self.folder)[-1]

    def finish(self, record: RunRecord, within_s: float = DEADLINE_S) -> str:
        """Wait for a run's end; how it ended."""
        self.until(lambda: record.outcome is not None, "the run ends", within_s)
        outcome = record.outcome
        assert outcome is not None
        return outcome.state

    def simulated_sha256(self) -> str:
        """The model of the simulation of the same file."""
        out = self.path / "simulated"
        words = [*WARDROUND, "simulate", str(self.federation), "--out", str(out), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return str(json.loads((out / "report.json").read_bytes())["model_sha256"])

    def until(self, condition: Any, what: str, within_s: float = DEADLINE_S) -> None:
        """Wait until something is so."""
        until = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < until, f"{what}: not within {within_s} s\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """The last lines of everything."""
        files = [self.path / "up.log", *sorted(self.folder.logs.glob("*.log"))]
        files += sorted(self.path.glob("sites/*/*.log"))
        parts = [
            f"--- {file.name} ({file.parent.name})\n{file.read_text(errors='replace')[-3000:]}"
            for file in files
            if file.exists()
        ]
        return "\n".join(parts)

    def pids(self, program: str) -> list[int]:
        """Numbers of the processes of this aggregator that run a program."""
        return [
            pid for pid, words in _processes() if program in words and self._is_ours(pid, words)
        ]

    def _is_ours(self, pid: int, words: str) -> bool:
        if str(self.folder.path) in words:
            return True
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return f"WARDROUND_AGGREGATOR={self.folder.path}".encode() in variables
        return False


def _processes() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(path.name), (path / "cmdline").read_text().replace("\0", " ")


def _without_none(value: Any) -> Any:
    """As TOML can hold it."""
    if isinstance(value, Mapping):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_without_none(each) for each in value]
    return value
