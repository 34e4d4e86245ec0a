"""Bundles that bring code: at our node none of it runs; at a plain Flower node, what can run does.

The first half is the promise, the second its twin: the same bundles against ``flower-supernode``, which
installs what the aggregator sends, in front of everything that is installed.
"""

import contextlib
import io
import os
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.cli.build import build_fab_from_files

from tests.contract.node_site import Site, question, replies
from tests.contract.real_superlink import BUNDLE, PROGRAMS, QUIET, RealSuperLink
from wardround_client.airlock.airlock_pb2 import WorkerStatus
from wardround_client.airlock.client import AirlockAnswer
from wardround_client.node.node import SiteNode
from wardround_client.node.traffic import Traffic
from wardround_common.wire.flower import failure_of

_WAIT_S = 40.0
BOMB_BYTES = 1 << 28
_APP = """
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
Path({marker!r}).write_text("executed")
app = ClientApp()
@app.train()
def train(message, context):
    return Message(RecordDict(), reply_to=message)
"""


def with_code(marker: Path) -> dict[str, bytes]:
    """Files of a bundle whose modules have the names of ours."""
    listed = BUNDLE["pyproject.toml"].replace(b'["/LICENSE"]', b'["/LICENSE", "**/*.py"]')
    app = _APP.format(marker=str(marker)).encode()
    return {
        **BUNDLE,
        "pyproject.toml": listed,
        "wardround_client/__init__.py": b"",
        "wardround_client/app.py": app,
        "wardround_server/__init__.py": b"",
        "wardround_server/app.py": b"from flwr.serverapp import ServerApp\napp = ServerApp()\n",
    }


def shadow_module(marker: Path) -> bytes:
    return build_fab_from_files(with_code(marker))[0]


def unlisted_file(marker: Path) -> bytes:
    """Code that the bundle's own list of digests does not name."""
    extra = {name: data for name, data in with_code(marker).items() if name.endswith(".py")}
    return repacked(build_fab_from_files(BUNDLE)[0], extra)


def zip_slip(marker: Path) -> bytes:
    """Code whose name leads out of the folder that it is unpacked into."""
    extra = {f"../../../../..{marker.with_suffix('.py')}": b"", f"../{marker.name}": b"executed"}
    return repacked(shadow_module(marker), extra)


def wrong_digest(marker: Path) -> bytes:
    """Code that is not what the list says it is."""
    changed = with_code(marker)["wardround_client/app.py"] + b"# changed\n"
    return repacked(shadow_module(marker), {"wardround_client/app.py": changed})


def bomb(marker: Path) -> bytes:
    """Code, and beside it a file that is a thousand times as large as the bundle."""
    made = repacked(shadow_module(marker), {"wardround_client/filler.py": bytes(BOMB_BYTES)})
    assert len(made) < BOMB_BYTES / 900
    return made


def repacked(bundle: bytes, files: dict[str, bytes]) -> bytes:
    """The bundle with files added or replaced, and its list as it was."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(bundle)) as old,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            if name not in files:
                new.writestr(name, old.read(name))
        for name, data in files.items():
            new.writestr(name, data)
    return made.getvalue()


Make = Callable[[Path], bytes]
HOSTILE: dict[str, Make] = {
    "shadow module": shadow_module,
    "unlisted file": unlisted_file,
    "zip slip": zip_slip,
    "wrong digest": wrong_digest,
    "bomb": bomb,
}
RUNS_AT_FLOWERS_NODE = {"shadow module", "unlisted file", "bomb"}
"""flwr itself refuses to unpack the others."""


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSuperLink]:
    with RealSuperLink(tmp_path_factory.mktemp("superlink")) as running:
        yield running


@contextlib.contextmanager
def asked(superlink: RealSuperLink, site: Site, bundle: bytes) -> Iterator[tuple[Any, list[str]]]:
    """A run by a bundle that has asked the site something."""
    superlink.start_run(bundle)
    grid = superlink.grid()
    try:
        until = time.monotonic() + _WAIT_S
        while site.node_id not in {node.node_id for node in grid.get_nodes()}:
            assert time.monotonic() < until, "the node did not come online"
            time.sleep(0.1)
        yield grid, list(grid.push_messages([question(site)]))
    finally:
        with contextlib.suppress(httpx.HTTPStatusError):
            superlink.stop_run(grid.run.run_id)
        grid.close()


class NoWorker:
    """An airlock whose worker refuses everything."""

    def execute(self, document: bytes, *_: Any, **__: Any) -> AirlockAnswer:
        return AirlockAnswer(b"", "manifest_form", 0, iter(()))

    def status(self) -> WorkerStatus:
        return WorkerStatus()

    def stop(self, run: str) -> bool:
        return False


@pytest.mark.parametrize("kind", HOSTILE)
def test_our_node_runs_nothing_of_a_bundle(
    superlink: RealSuperLink, tmp_path: Path, kind: str
) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "site"
    folder.mkdir()
    site, stop = Site(superlink, folder), threading.Event()
    node = SiteNode(site.opened(), NoWorker(), Traffic(), stop, poll_s=0.02)
    serving = threading.Thread(target=node.serve)
    serving.start()
    try:
        with asked(superlink, site, HOSTILE[kind](marker)) as (grid, ids):
            (reply,) = replies(grid, ids)
    finally:
        stop.set()
        serving.join()
        site.end()
    assert failure_of(reply.content) == "manifest_form", "the installed code has answered"
    assert not marker.exists()
    assert "[Fleet.GetFab]" not in superlink.log()
    kept = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not any(name.endswith((".py", ".toml")) for name in kept), kept


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_flowers_node_runs_what_it_can_unpack(
    superlink: RealSuperLink, tmp_path: Path, kind: str
) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "site"
    folder.mkdir()
    site = Site(superlink, folder)
    with (
        flowers_node(superlink, site) as log,
        asked(superlink, site, HOSTILE[kind](marker)) as (grid, ids),
    ):
        until = time.monotonic() + _WAIT_S
        while time.monotonic() < until and not marker.exists():
            if any(message.has_error() for message in grid.pull_messages(ids)):
                break
            time.sleep(0.1)
        said = log.read_text(errors="replace")
    assert "[Fleet.GetFab]" in superlink.log()
    assert marker.exists() == (kind in RUNS_AT_FLOWERS_NODE), said


@contextlib.contextmanager
def flowers_node(superlink: RealSuperLink, site: Site) -> Iterator[Path]:
    """A stock ``flower-supernode`` for the site; its log."""
    from tests.contract.real_superlink import free_port

    log = site.folder / "supernode.log"
    words = [
        str(PROGRAMS / "flower-supernode"),
        *("--superlink", superlink.address, "--root-certificates", str(superlink.ca)),
        *("--auth-supernode-private-key", str(site.folder / "node.key")),
        *("--host", "127.0.0.1", "--port", str(free_port())),
    ]
    path = os.pathsep.join((str(PROGRAMS), os.environ.get("PATH", os.defpath)))
    around = {**os.environ, **QUIET, "PATH": path, "FLWR_HOME": str(site.folder / "flwr")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=around, start_new_session=True
        )
    try:
        yield log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
