"""Kill -9 of every process at random moments: the run ends with the same bytes, and nothing leaves twice.

How often each is killed: ``WARDROUND_KILLS=20`` (default 1), seeded by ``WARDROUND_KILL_SEED``.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.consortium import Consortium, Process
from tests.contract.real_superlink import free_port
from wardround_server.aggregator.records import RunRecord

pytestmark = pytest.mark.slow

NUM_KILLS = int(os.environ.get("WARDROUND_KILLS", "1"))
SEED = int(os.environ.get("WARDROUND_KILL_SEED", "7"))
PROGRAMS = {
    "ServerApp": "flwr-serverapp",
    "SuperLink": "flower-superlink",
    "front door": "nginx: master",
}
VICTIMS = ("node", "worker", *PROGRAMS)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    if shutil.which("nginx", path=os.defpath + ":/usr/sbin") is None:
        pytest.skip("needs nginx (Debian: apt install nginx-light)")
    door = ("--front-door", "nginx", "--port", str(free_port()))
    with Consortium(
        tmp_path_factory.mktemp("kills"),
        options=door,
        rounds={"count": 5},
        training={"local_epochs": 100},
    ) as made:
        yield made


@pytest.fixture(scope="module")
def calm(consortium: Consortium) -> tuple[str, float]:
    """The model without kills, and how long its run takes."""
    record, started = consortium.begin(), time.monotonic()
    assert consortium.finish(record) == "done", consortium.logs()
    seconds = time.monotonic() - started
    assert record.outcome is not None
    assert record.outcome.model_sha256 == consortium.simulated_sha256()
    assert set(computed(consortium, record).values()) == {1}
    return record.outcome.model_sha256, seconds


@pytest.mark.parametrize("number", range(NUM_KILLS))
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_a_random_moment_the_run_ends_with_the_same_bytes(
    consortium: Consortium, calm: tuple[str, float], victim: str, number: int
) -> None:
    model_sha256, seconds = calm
    moment = random.Random(f"{SEED} {victim} {number}").uniform(0.0, seconds)
    print(f"{victim} killed after {moment:.2f} of {seconds:.2f} s")
    record = consortium.begin()
    time.sleep(moment)
    kill(consortium, victim)
    assert consortium.finish(record, 90.0) == "done", consortium.logs()
    assert record.outcome is not None
    assert record.outcome.model_sha256 == model_sha256
    times = computed(consortium, record)
    if victim == "worker":  # it may be killed after an answer is stored and before it says so
        assert set(times.values()) <= {1}
    else:
        assert set(times.values()) == {1}, times


def kill(consortium: Consortium, victim: str) -> None:
    """End a process without notice; who keeps sites' processes running starts it again."""
    if victim in PROGRAMS:
        for pid in consortium.pids(PROGRAMS[victim]):  # none before the ServerApp has begun
            os.kill(pid, signal.SIGKILL)
        return
    site = consortium.sites["b"]
    process = site.worker if victim == "worker" else site.node
    assert isinstance(process, Process)
    process.kill()
    process.start()


def computed(consortium: Consortium, record: RunRecord) -> Counter[tuple[str, str, int]]:
    """How often each site has computed each step of a run."""
    found: Counter[tuple[str, str, int]] = Counter()
    for site in consortium.sites.values():
        assert site.worker is not None
        for line in site.worker.log().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "step_answered" and event["run"] == record.run:
                found[site.name, event["phase"], event["round"]] += 1
    return found
