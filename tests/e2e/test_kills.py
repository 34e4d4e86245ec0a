"""Kill -9 of every process at random moments: the run ends with the same bytes, and nothing leaves twice.

By both carriers. How often each process is killed: ``WARDROUND_KILLS=20`` (default 1), seeded by
``WARDROUND_KILL_SEED``; ``-k stream`` or ``-k messages`` for one carrier.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.consortium import Consortium, Process
from tests.contract.real_superlink import free_port
from tests.releases import released_twice
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
WITHIN_S = 150.0
"""A program that dies again and again is started again after up to 30 s, a session waited for 20 s."""


@dataclass(frozen=True, slots=True)
class Calm:
    """A run without kills.

    Attributes:
        model_sha256: what comes out.
        begun_s: seconds until its ServerApp is there.
        seconds: until its end.
    """

    model_sha256: str
    begun_s: float
    seconds: float


@pytest.fixture(scope="module", params=["messages", "stream"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def consortium(carrier: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    if shutil.which("nginx", path=os.defpath + ":/usr/sbin") is None:
        pytest.skip("needs nginx (Debian: apt install nginx-light)")
    options = ["--front-door", "nginx", "--port", str(free_port())]
    if carrier == "stream":
        options += ["--stream-port", str(free_port())]
    with Consortium(
        tmp_path_factory.mktemp("kills"),
        options=options,
        rounds={"count": 5},
        training={"local_epochs": 100},
    ) as made:
        yield made


@pytest.fixture(scope="module")
def calm(consortium: Consortium, carrier: str) -> Calm:
    """The model without kills, and how long its run takes; of two, since the first one warms up."""
    simulated_sha256 = consortium.simulated_sha256()
    for _ in range(2):
        record, started = consortium.begin(), time.monotonic()
        consortium.until(lambda: consortium.pids(PROGRAMS["ServerApp"]), "the ServerApp is there")
        begun_s = time.monotonic() - started
        assert consortium.finish(record) == "done", consortium.logs()
        seconds = time.monotonic() - started
        assert record.outcome is not None
        assert record.outcome.model_sha256 == simulated_sha256
        assert set(computed(consortium, record).values()) == {1}
        assert set(ways(consortium, record)) == {carrier}, consortium.logs()
        assert_nothing_left_twice(consortium, record)
    return Calm(simulated_sha256, begun_s, seconds)


@pytest.mark.parametrize("number", range(NUM_KILLS))
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_a_random_moment_the_run_ends_with_the_same_bytes(
    consortium: Consortium, carrier: str, calm: Calm, victim: str, number: int
) -> None:
    chance = random.Random(f"{SEED} {carrier} {victim} {number}")
    record = killed_once(consortium, calm, victim, chance)
    assert consortium.finish(record, WITHIN_S) == "done", consortium.logs()
    assert record.outcome is not None
    assert record.outcome.model_sha256 == calm.model_sha256
    times = computed(consortium, record)
    if victim == "worker":  # it may be killed after an answer is stored and before it says so
        assert set(times.values()) <= {1}
    else:
        assert set(times.values()) == {1}, times
    assert_nothing_left_twice(consortium, record)
    went = ways(consortium, record)
    print(f"answers by {dict(went)}")
    assert went[carrier]
    if carrier == "messages":
        assert set(went) == {carrier}


def killed_once(
    consortium: Consortium, calm: Calm, victim: str, chance: random.Random
) -> RunRecord:
    """A run in which one process was killed at some moment before its end."""
    while True:
        moment = chance.uniform(calm.begun_s if victim == "ServerApp" else 0.0, calm.seconds)
        record = consortium.begin()
        time.sleep(moment)
        if victim == "ServerApp":
            consortium.until(
                partial(_is_there, consortium, record, victim),
                "it is there",
            )
        where = record.progress
        if record.outcome is None:
            kill(consortium, victim, chance)
            stands = (
                f"{where.kind} {where.round}" if where and where.step >= 0 else "before any step"
            )
            print(f"{victim} killed after {moment:.2f} of {calm.seconds:.2f} s: {stands}")
            return record
        print(f"the run ended before {moment:.2f} s")


def _is_there(consortium: Consortium, record: RunRecord, victim: str) -> bool:
    """Whether there is something to kill, or nothing any more."""
    return record.outcome is not None or bool(consortium.pids(PROGRAMS[victim]))


def kill(consortium: Consortium, victim: str, chance: random.Random) -> None:
    """End a process without notice; who keeps sites' processes running starts it again."""
    if victim in PROGRAMS:
        for pid in consortium.pids(PROGRAMS[victim]):
            os.kill(pid, signal.SIGKILL)
        return
    site = consortium.sites[chance.choice(sorted(consortium.sites))]
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


def ways(consortium: Consortium, record: RunRecord) -> Counter[str]:
    """Carrier -> how many answers the nodes fetched from their workers for it."""
    return Counter(
        each.way for site in consortium.sites.values() for each in site.releases(record.run)
    )


def assert_nothing_left_twice(consortium: Consortium, record: RunRecord) -> None:
    """Each step has one receipt at each site, and the aggregator took that one, once."""
    admitted = [each for each in journal(record.path) if each["kind"] == "answer_admitted"]
    for name, site in consortium.sites.items():
        released = site.releases(record.run)
        assert released_twice(released) == []
        left = sorted({(each.step, each.receipt) for each in released})
        taken = [
            (each["step"], each["receipt_sha256"]) for each in admitted if each["site"] == name
        ]
        assert taken == left


def journal(folder: Path) -> list[dict[str, object]]:
    """The records of a run."""
    lines = (folder / "journal" / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
