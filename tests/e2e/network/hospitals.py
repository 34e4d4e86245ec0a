"""A consortium between hosts: an aggregator behind nginx, hospitals whose workers have no network.

What it promises: every process runs on the host and as the user that a consortium's operators would
give it; files are readable for whom they should be and nobody else; nothing is replaced by a fake;
all of it is gone when the context ends.

::

    <folder>/aggregator/        the aggregator's user
    <folder>/<site>/site.toml   everybody reads it
    <folder>/<site>/data/       the worker's user alone, as cache/ and worker-state/
    <folder>/<site>/airlock/    the worker's user, and the group that the node's user is in
    <folder>/<site>/node/       the node's user alone
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from tests.e2e.network.hosts import Host, Hosts, User
from wardround_client.data import catalogue
from wardround_client.policy.papers import draft
from wardround_server.aggregator.folder import AggregatorFolder
from wardround_server.aggregator.records import RunRecord, all_runs

ROOT = Path(__file__).parents[3]
PYTHON = sys.executable
WARDROUND = (PYTHON, "-c", "from wardround_common.cli import main; main()")
HOSPITALS = {"cleveland": "Cleveland", "hungary": "Hungary", "switzerland": "Switzerland"}
PORT = 8443
DEADLINE_S = 60.0
_AGGREGATOR = User(61_000, 61_000)


def federation() -> dict[str, Any]:
    """The heart federation of the examples: three hospitals, three rounds."""
    content = tomllib.loads((ROOT / "examples" / "heart.toml").read_text())
    content["federation"]["sites"] = list(HOSPITALS)
    content["rounds"]["count"] = 3
    content["simulation"]["threads"] = 1
    content["simulation"]["partition"]["values"] = {
        site: [value] for site, value in HOSPITALS.items()
    }
    return content


def environment(home: Path) -> dict[str, str]:
    """What every process is started with."""
    imports = os.pathsep.join(str(ROOT / part) for part in ("client", "common", "server"))
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": imports,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "WARDROUND_LOG_STRICT": "1",
    }


@dataclass
class Running:
    """A process on a host.

    Attributes:
        host: where it runs.
        words: its command line.
        user: whom it runs as.
        log: what it prints.
    """

    host: Host
    words: Sequence[str]
    user: User
    log: Path
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        around = environment(self.log.parent)
        self.process = self.host.start(self.words, self.log, self.user, around)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """End it in order; its exit status."""
        self.process.terminate()
        return self.process.wait(20)


class Hospital:
    """One hospital: a host with a network, and one without any interface.

    Args:
        folder: everything of it.
        name: in the roster.
        number: from 0, tells users apart.
        hosts: where to add its two.
    """

    def __init__(self, folder: Path, name: str, number: int, hosts: Hosts) -> None:
        self.folder, self.name = folder, name
        first = 61_100 + 10 * number
        self.worker_user = User(first, first)
        self.node_user = User(first + 1, first + 1, groups=(first,))
        self.host = hosts.add(name)
        self.cut_off = hosts.add_cut_off(f"{name}-data")
        self.worker: Running | None = None
        self.node: Running | None = None
        self._make_folders()

    @property
    def file(self) -> Path:
        """``site.toml``."""
        return self.folder / "site.toml"

    @property
    def data(self) -> Path:
        """The patients."""
        return self.folder / "data" / "patients.csv"

    @property
    def request(self) -> Path:
        """What it sends to the coordinator."""
        return self.folder / "node" / f"{self.name}.request.json"

    def write(self, content: dict[str, Any], rows: list[dict[str, str]], address: str) -> None:
        """Write its files."""
        (self.folder / "federation.toml").write_text(tomli_w.dumps(content))
        mine = [row for row in rows if row["hospital"] == HOSPITALS[self.name]]
        with self.data.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(mine)
        os.chown(self.data, self.worker_user.uid, self.worker_user.gid)
        self.data.chmod(0o600)
        site = {
            "name": self.name,
            "federations": ["federation.toml"],
            "data": {"format": "csv", "path": "data/patients.csv"},
            "compute": {"threads": 1},
            "node": {
                "aggregator": address,
                "ca": "node/ca.pem",
                "coordinator": "node/coordinator.pub",
                "key": "node/node.key",
                "certificate": "node/site.pem",
                "certificate_key": "node/site.key",
                "state": "node/state",
            },
        }
        self.file.write_text(tomli_w.dumps(site))

    def call(self, *words: str, user: User, host: Host) -> subprocess.CompletedProcess[str]:
        """A verb of ``wardround site``, to its end."""
        return host.run([*WARDROUND, "site", *words], user, env=environment(self.folder))

    def enrol(self, *more: str) -> None:
        """``wardround site enrol``, as the node's user."""
        done = self.call("enrol", str(self.file), *more, user=self.node_user, host=self.host)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start worker and node."""
        if not (self.folder / "policy.toml").exists():
            draft(self.file, "none").chmod(0o644)
        words = [*WARDROUND, "site", "worker", str(self.file)]
        log = self.folder / "worker.log"
        self.worker = Running(self.cut_off, words, self.worker_user, log)
        words = [*WARDROUND, "site", "node", str(self.file)]
        self.node = Running(self.host, words, self.node_user, self.folder / "node.log")

    def _make_folders(self) -> None:
        self.folder.mkdir(mode=0o755)
        worker, node = self.worker_user, self.node_user
        for name, user, mode in (
            ("data", worker, 0o700),
            ("cache", worker, 0o700),
            ("worker-state", worker, 0o700),
            ("airlock", worker, 0o750),
            ("node", node, 0o700),
        ):
            path = self.folder / name
            path.mkdir()
            os.chown(path, user.uid, user.gid)
            path.chmod(mode)


class Laboratory:
    """The consortium; a context.

    Args:
        options: more words for ``aggregator init``.
    """

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._options = options
        self._opened = ExitStack()
        self.hospitals: dict[str, Hospital] = {}

    def __enter__(self) -> Self:
        """Make hosts and files, enrol, start everything, wait until all are online."""
        try:
            self._open()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove everything."""
        self._opened.close()

    def _open(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="wardround-"))
        self._opened.callback(shutil.rmtree, self.path, ignore_errors=True)
        self.path.chmod(0o755)
        self._hosts = self._opened.enter_context(Hosts())
        self.centre = self._hosts.add("centre")
        self._make_aggregator()
        content, table = federation(), catalogue.find("heart", None)
        self.federation = self.path / "federation.toml"
        self.federation.write_text(tomli_w.dumps(content))
        with table.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.start()
        for number, name in enumerate(HOSPITALS):
            hospital = Hospital(self.path / name, name, number, self._hosts)
            self.hospitals[name] = hospital
            hospital.write(content, rows, self.address)
            if number:
                self.join(hospital)
            else:
                self._join_by_files(hospital)
        for hospital in self.hospitals.values():
            hospital.start()
        self.until(lambda: all(site["online"] for site in self.status()["sites"]), "all are online")

    @property
    def address(self) -> str:
        """Where sites find the aggregator."""
        return f"{self.centre.address}:{PORT}"

    def start(self) -> None:
        """Start the aggregator."""
        words = [*WARDROUND, "aggregator", "up", str(self.folder.path)]
        self.up = Running(self.centre, words, _AGGREGATOR, self.folder.path / "up.log")
        self.until(lambda: bool(self.status()["processes"].get("nginx")), "the aggregator is up")

    def call(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A verb of ``wardround aggregator``, on its host and as its user."""
        words = (*WARDROUND, "aggregator", verb, str(self.folder.path), *words)
        return self.centre.run(list(words), _AGGREGATOR, env=environment(self.folder.path))

    def status(self) -> dict[str, Any]:
        """How the aggregator is."""
        from wardround_server.aggregator.status import read_state

        found: dict[str, Any] = json.loads(read_state(self.folder).to_json())
        return found

    def begin(self) -> RunRecord:
        """Start a run and do not wait for it."""
        done = self.call("run", str(self.federation), "--detach")
        assert done.returncode == 0, done.stderr
        return all_runs(self.folder)[-1]

    def finish(self, record: RunRecord, within_s: float = DEADLINE_S) -> str:
        """Wait for a run's end; how it ended."""
        self.until(lambda: record.outcome is not None, "the run ends", within_s)
        outcome = record.outcome
        assert outcome is not None
        return outcome.state

    def until(self, condition: Callable[[], bool], what: str, within_s: float = DEADLINE_S) -> None:
        """Wait until something is so."""
        until = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < until, f"{what}: not within {within_s} s\n{self.logs()}"
            time.sleep(0.05)

    def simulated_sha256(self) -> str:
        """The model of the simulation of the same file."""
        out = self.path / "simulated"
        if not out.exists():
            words = [*WARDROUND, "simulate", str(self.federation), "--out", str(out), "--json"]
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, done.stderr
        return str(json.loads((out / "report.json").read_bytes())["model_sha256"])

    def logs(self) -> str:
        """The last lines of everything."""
        files = [*self.folder.path.glob("*.log"), *self.folder.logs.glob("*.log")]
        files += sorted(self.path.glob("*/*.log"))
        return "\n".join(
            f"--- {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files
        )

    def _make_aggregator(self) -> None:
        self.folder = AggregatorFolder(self.path / "aggregator")
        self.folder.path.mkdir(mode=0o700)
        os.chown(self.folder.path, _AGGREGATOR.uid, _AGGREGATOR.gid)
        assert self.centre.address is not None
        options = ("--host", self.centre.address, "--front-door", "nginx", "--port", str(PORT))
        done = self.call("init", *options, *self._options)
        assert done.returncode == 0, done.stderr

    def join(self, hospital: Hospital) -> None:
        """By a token, through the front door."""
        done = self.call("invite", hospital.name, "--json")
        assert done.returncode == 0, done.stderr
        hospital.enrol("--token", json.loads(done.stdout)["token"])

    def _join_by_files(self, hospital: Hospital) -> None:
        """Request and kit, carried between the users as by mail."""
        hospital.enrol()
        request, kit = self.path / "request.json", self.path / "kit.json"
        shutil.copyfile(hospital.request, request)
        made = self.folder.path / "kit.json"
        done = self.call("certify", str(request), "--out", str(made))
        assert done.returncode == 0, done.stderr
        shutil.copyfile(made, kit)
        hospital.enrol("--kit", str(kit))
