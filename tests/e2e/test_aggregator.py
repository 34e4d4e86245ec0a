"""A federation over the network on this machine: the same bytes as its simulation, whatever dies."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.consortium import Consortium, Process
from tests.contract.real_superlink import PROGRAMS, QUIET, free_port
from wardround_common.types import sha256_hex
from wardround_server.aggregator.records import RunRecord

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with Consortium(tmp_path_factory.mktemp("consortium"), rounds={"count": 4}) as made:
        yield made


@pytest.fixture(scope="module")
def simulated_sha256(consortium: Consortium) -> str:
    return consortium.simulated_sha256()


def model_of(record: RunRecord) -> str:
    return sha256_hex((record.path / "model.safetensors").read_bytes())


def test_the_model_has_the_bytes_of_the_simulation(
    consortium: Consortium, simulated_sha256: str
) -> None:
    record = consortium.begin()
    assert consortium.finish(record) == "done", consortium.logs()
    assert model_of(record) == simulated_sha256
    assert record.outcome is not None
    assert record.outcome.model_sha256 == simulated_sha256
    report = json.loads((record.path / "report.json").read_bytes())
    assert report["model_sha256"] == simulated_sha256
    assert not report["simulated"]
    assert (record.path / "report.html").exists()


@pytest.mark.parametrize(
    "program", ["flwr-serverapp", "flower-superexec", "flower-superlink", "aggregator up"]
)
def test_whatever_is_killed_the_run_ends_with_the_same_bytes(
    consortium: Consortium, simulated_sha256: str, program: str
) -> None:
    record = consortium.begin()
    consortium.until(lambda: (p := record.progress) is not None and p.round >= 2, "round 2")
    if program == "aggregator up":
        assert consortium.up is not None
        os.kill(consortium.up.pid, signal.SIGKILL)
        consortium.up.kill()
        consortium.until(lambda: not consortium.pids("flwr-serverapp"), "its ServerApp dies, too")
        consortium.until(lambda: not consortium.pids("flower-"), "and all the others")
        consortium.until(lambda: not record.is_driven, "nobody holds the run")
        consortium.start()
    else:
        (pid,) = consortium.pids(program)
        os.kill(pid, signal.SIGKILL)
    assert consortium.finish(record) == "done", consortium.logs()
    assert model_of(record) == simulated_sha256


def test_a_stopped_run_ends_and_the_next_one_begins(
    consortium: Consortium, simulated_sha256: str
) -> None:
    record = consortium.begin()
    consortium.until(lambda: (p := record.progress) is not None and p.round >= 1, "round 1")
    consortium.call("stop", str(consortium.folder.path), record.run)
    consortium.until(lambda: not record.is_driven, "its ServerApp ends")
    assert consortium.finish(record) == "stopped"
    assert not (record.path / "model.safetensors").exists()

    consortium.call("resume", str(consortium.folder.path), record.run, "--detach")
    assert consortium.finish(record) == "done", consortium.logs()
    assert model_of(record) == simulated_sha256


def test_a_site_that_comes_late_is_asked_when_it_comes(
    consortium: Consortium, simulated_sha256: str
) -> None:
    site = consortium.sites["b"]
    assert site.node is not None
    site.node.kill()
    record = consortium.begin()
    consortium.until(
        lambda: (p := record.progress) is not None and p.answered == ("a",), "a answers"
    )
    assert record.outcome is None
    site.node.start()
    assert consortium.finish(record, 120) == "done", consortium.logs()
    assert model_of(record) == simulated_sha256


def test_a_quorum_that_is_not_met_fails_the_run_until_its_cause_is_mended(tmp_path: Path) -> None:
    with Consortium(tmp_path, rounds={"count": 1, "deadline_s": 12.0}) as consortium:
        node = consortium.sites["b"].node
        assert node is not None
        consortium.until(
            lambda: all(site["online"] for site in consortium.status()["sites"]), "all are online"
        )
        node.end()
        record = consortium.begin()
        assert consortium.finish(record) == "failed", consortium.logs()
        assert record.outcome is not None
        assert record.outcome.code == "quorum_not_met"
        assert "b (no answer)" in record.outcome.message
        node.start()
        consortium.call("resume", str(consortium.folder.path), record.run, "--detach")
        assert consortium.finish(record) == "done", consortium.logs()


def test_a_stock_supernode_serves_a_site_as_well(tmp_path: Path) -> None:
    with Consortium(tmp_path, rounds={"count": 1}) as consortium:
        site = consortium.sites["b"]
        assert site.node is not None
        site.node.end()
        socket = site.folder / "a" / "s"
        words = [str(PROGRAMS / "flower-supernode"), "--superlink", f"127.0.0.1:{consortium.port}"]
        words += ["--root-certificates", str(site.folder / "ca.pem")]
        words += ["--auth-supernode-private-key", str(site.folder / "node.key")]
        words += ["--host", "127.0.0.1", "--port", str(free_port())]
        words += ["--node-config", f'airlock="{socket}"']
        around = {"FLWR_HOME": str(site.folder / "flwr"), "PATH": f"{PROGRAMS}:{os.defpath}"}
        site.node = Process(words, site.folder / "node.log", {**QUIET, **around})
        record = consortium.begin()
        assert consortium.finish(record, 150.0) == "done", consortium.logs()
        assert record.outcome is not None
        assert record.outcome.model_sha256 == consortium.simulated_sha256()


def test_it_ends_in_order_and_leaves_nothing_running(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, sites=("a", "b"))
    consortium.start()
    assert consortium.up is not None
    assert consortium.pids("flower-superlink")
    assert consortium.up.end() == 0
    assert consortium.pids("flower-") == []
    assert not consortium.status()["is_up"]
