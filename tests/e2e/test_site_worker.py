"""`wardround site worker` as a process of its own: no network, graceful and sudden ends, its papers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.airlocks import Asked, Got, Hospital, got
from wardround_client.airlock.client import AirlockClient, AirlockUnavailable, wait_for
from wardround_client.worker.network import interfaces_up
from wardround_common.rpc.frames import pieces

ROOT = Path(__file__).parents[2]
START = (
    "import sys; from importlib.metadata import EntryPoint; from wardround_common import cli;"
    "cli._verbs = lambda: (EntryPoint('site', 'wardround_client.cli:site', cli.VERB_GROUP),);"
    "cli.main()"
)
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("client", "common")),
    "WARDROUND_LOG_STRICT": "1",
}


def command(*words: str | Path) -> list[str]:
    """``wardround site ...``, whatever is installed."""
    return [sys.executable, "-c", START, "site", *map(str, words)]


@contextmanager
def running(hospital: Hospital, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that answers; killed at the end if it has not ended."""
    process = subprocess.Popen(
        [*before, *command("worker", hospital.file), *([] if before else ["--allow-network"])],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    client = AirlockClient(hospital.socket)
    try:
        assert wait_for(client, time.monotonic() + 30, threading.Event())
        yield process
    finally:
        client.close()
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def ask(hospital: Hospital, asked: Asked) -> Got:
    client = AirlockClient(hospital.socket)
    try:
        size = asked.array.nbytes
        return got(client.execute(asked.document, pieces(asked.array), size, deadline_s=60.0))
    finally:
        client.close()


def site(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that is expected to end by itself."""
    return subprocess.run(
        command(*words), env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=30
    )


def _namespaces() -> bool:
    try:
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not _namespaces(), reason="this user may not make network namespaces")
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


@pytest.mark.slow
@pytest.mark.skipif(not _namespaces(), reason="this user may not make network namespaces")
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
        until = time.monotonic() + 20
        while client.status().kind != "train":
            assert time.monotonic() < until
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
