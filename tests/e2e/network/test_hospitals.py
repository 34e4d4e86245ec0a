"""Three hospitals and an aggregator, each a host of its own: what they compute, and what they cannot."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.network import probe
from tests.e2e.network.hospitals import PYTHON, Hospital, Laboratory
from tests.e2e.network.hosts import Host, User
from wardround_common.types import sha256_hex

pytestmark = pytest.mark.slow


@pytest.fixture
def hospital(laboratory: Laboratory) -> Hospital:
    return laboratory.hospitals["cleveland"]


def tried(host: Host, user: User, *words: str | Path) -> Any:
    """What came of a probe."""
    done = host.run([PYTHON, "-I", str(Path(probe.__file__)), *map(str, words)], user)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_doctor_finds_nothing_wrong_as_either_user_and_sees_what_that_user_may(
    hospital: Hospital,
) -> None:
    words, seen = ("check", str(hospital.file)), {}
    for user, host in (
        (hospital.worker_user, hospital.cut_off),
        (hospital.node_user, hospital.host),
    ):
        done = hospital.call(*words, "--json", user=user, host=host)
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout)
        seen[user] = {each["code"] for each in told["findings"]}
        assert bool(told["measured"]) == (user is hospital.worker_user), "a round was rehearsed"
    assert "identity_not_seen" in seen[hospital.worker_user]
    assert {"data_not_seen", "folder_not_seen"} <= seen[hospital.node_user]


def test_three_hospitals_make_the_model_of_the_simulation(laboratory: Laboratory) -> None:
    record = laboratory.begin()
    simulated = laboratory.simulated_sha256()
    assert laboratory.finish(record) == "done", laboratory.logs()
    assert record.outcome is not None
    assert record.outcome.model_sha256 == simulated
    assert sha256_hex((record.path / "model.safetensors").read_bytes()) == simulated


def test_the_process_with_the_data_reaches_nothing(
    laboratory: Laboratory, hospital: Hospital
) -> None:
    centre, port = laboratory.address.split(":")
    user = hospital.worker_user
    assert tried(hospital.cut_off, user, "connect", centre, port) == "ENETUNREACH"
    assert tried(hospital.cut_off, user, "connect", "127.0.0.1", port) == "ENETUNREACH"
    assert tried(hospital.host, user, "connect", centre, port) == "connected", "the twin"


def test_the_process_with_the_network_cannot_open_the_data(hospital: Hospital) -> None:
    assert hospital.worker is not None
    proc = Path(f"/proc/{hospital.worker.process.pid}")
    paths = [hospital.data, hospital.data.parent, hospital.folder / "cache"]
    paths += [hospital.folder / "worker-state", proc / "environ", proc / "mem", proc / "fd"]
    paths += [proc / "root" / hospital.data.relative_to("/")]
    got = tried(hospital.host, hospital.node_user, "read", *paths)
    assert set(got.values()) <= {"EACCES", "EPERM"}, got
    twin = tried(hospital.host, hospital.worker_user, "read", *paths)
    assert twin[str(hospital.data)] == "read"
    assert twin[str(hospital.folder / "worker-state")] == "read"


def test_a_node_that_could_read_the_data_does_not_start(hospital: Hospital) -> None:
    words = ("node", str(hospital.file))
    done = hospital.call(*words, user=hospital.worker_user, host=hospital.host)
    assert done.returncode == 2
    assert "this user can read it, and the node has a network" in done.stderr


def test_a_worker_that_would_have_a_network_does_not_start(hospital: Hospital) -> None:
    words = ("worker", str(hospital.file))
    done = hospital.call(*words, user=hospital.worker_user, host=hospital.host)
    assert done.returncode == 2
    assert "would have a network (eth0)" in done.stderr
