"""Sites come, get new keys and go, while the aggregator runs: between real hosts, through the real front door."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.network.hospitals import Hospital, Laboratory
from tests.e2e.network.test_front_door import Caller, Papers, Request, own_papers
from wardround_server.aggregator.records import RunRecord

pytestmark = pytest.mark.slow

FLEET: list[Request] = [("POST", "/v1/fleet/pull-messages", {}, b"")]
_CLOSED = {400, 403}
"""What the front door says to a certificate that counts no more, or to none."""


@pytest.fixture
def hospital(laboratory: Laboratory) -> Hospital:
    return laboratory.hospitals["hungary"]


@pytest.fixture
def caller(laboratory: Laboratory, hospital: Hospital) -> Caller:
    return Caller(hospital.host, laboratory, laboratory.address)


def is_online(laboratory: Laboratory, name: str) -> bool:
    sites = laboratory.status()["sites"]
    return any(site["site"] == name and site["online"] for site in sites)


def status_of(caller: Caller, papers: Papers) -> int:
    """What the front door answers to a request of a node."""
    ((status, _),) = caller.ask(FLEET, papers)
    return status


def ends_well(laboratory: Laboratory, record: RunRecord) -> None:
    assert laboratory.finish(record) == "done", laboratory.logs()
    assert record.outcome is not None
    assert record.outcome.model_sha256 == laboratory.simulated_sha256()


def test_new_keys_in_the_middle_of_a_run_stop_nothing(
    laboratory: Laboratory, hospital: Hospital, caller: Caller
) -> None:
    old = own_papers(hospital)
    assert status_of(caller, old) not in _CLOSED
    assert hospital.node is not None
    pid = hospital.node.process.pid
    record = laboratory.begin()
    laboratory.until(lambda: record.progress is not None, "the run has begun")
    hospital.enrol("--rotate")
    ends_well(laboratory, record)
    assert own_papers(hospital) != old
    laboratory.until(lambda: status_of(caller, old) in _CLOSED, "the old certificate is refused")
    assert status_of(caller, own_papers(hospital)) not in _CLOSED
    assert hospital.node.process.poll() is None
    assert hospital.node.process.pid == pid
    laboratory.until(lambda: is_online(laboratory, hospital.name), "it is online")


@contextmanager
def revoked(laboratory: Laboratory, hospital: Hospital) -> Iterator[Papers]:
    """A hospital that was let in until now, with the papers that it had; in the end it is back."""
    papers = own_papers(hospital)
    done = laboratory.call("revoke", hospital.name)
    assert done.returncode == 0, done.stderr
    try:
        yield papers
    finally:
        for name in ("node.key", "site.key", "site.pem"):
            (hospital.folder / "node" / name).unlink()
        laboratory.join(hospital)
        laboratory.until(lambda: is_online(laboratory, hospital.name), "it is back")


def test_a_site_that_is_revoked_is_out_at_once_and_comes_back_by_a_new_token(
    laboratory: Laboratory, hospital: Hospital, caller: Caller
) -> None:
    with revoked(laboratory, hospital) as papers:
        laboratory.until(lambda: status_of(caller, papers) in _CLOSED, "its certificate is refused")
        listed = json.loads(laboratory.call("sites", "--json").stdout)
        assert hospital.name not in {each["site"] for each in listed}
        again = hospital.call(
            "enrol", str(hospital.file), "--rotate", user=hospital.node_user, host=hospital.host
        )
        assert again.returncode == 1, again.stderr
        assert "rotation_key" in again.stderr
        found = hospital.call(
            "check", str(hospital.file), user=hospital.node_user, host=hospital.host
        )
        assert found.returncode == 1
        assert "certificate_refused" in found.stdout
        record = laboratory.begin()
        laboratory.until(lambda: record.progress is not None, "the run has begun")
        refused = record.progress.refused if record.progress is not None else {}
        assert refused.get(hospital.name) == "site_revoked"
        laboratory.call("stop", record.run)
        laboratory.finish(record)
    ends_well(laboratory, laboratory.begin())


def test_who_has_no_certificate_reaches_enrolment_and_not_often(laboratory: Laboratory) -> None:
    host = laboratory.hospitals["cleveland"].host  # the others have to enrol again
    caller = Caller(host, laboratory, laboratory.address)
    paths: list[Request] = [("GET", "/v1/enrol/authority", {}, b"")]
    ((status, text),) = caller.ask(paths, Papers())
    assert status == 200
    assert laboratory.folder.authority.read_text().startswith(text)
    wrong: list[Request] = [("POST", "/v1/enrol", {}, b"{}")]
    answers = caller.ask(wrong * 40, Papers())
    assert answers[0][0] == 403
    assert answers[-1][0] == 429, "who guesses is slowed down"
    others: list[Request] = [
        ("PUT", "/v1/enrol", {}, b"{}"),
        ("POST", "/v1/enrol/", {}, b"{}"),
        ("POST", "/v1/enrol/authority/..", {}, b"{}"),
        ("POST", "/v1/enrol", {}, b"x" * (65 << 10)),
    ]
    assert {status for status, _ in caller.ask(others, Papers())} <= {403, 404, 405, 413, 429}
