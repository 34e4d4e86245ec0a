"""What a node must not be able to do, there must be one of, and what it counts."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from tests.contract.real_superlink import free_port
from tests.unit.test_node_loop import pulled
from wardround_client.node.guard import only_one, require_no_data
from wardround_client.node.relay import Relayed
from wardround_client.node.traffic import Traffic
from wardround_common.errors import ConfigError
from wardround_common.spec.load import load_site
from wardround_common.spec.site import SiteSpec
from wardround_common.wire.flower import make_reply


@pytest.fixture
def site(tmp_path: Path) -> SiteSpec:
    file = tmp_path / "site.toml"
    file.write_text('name = "a"\n[data]\nformat = "csv"\npath = "data/patients.csv"\n')
    for folder in ("data", "cache", "worker-state"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "patients.csv").write_text("id\n")
    return load_site(file)


@pytest.mark.parametrize("readable", ["data/patients.csv", "cache", "worker-state"])
def test_a_node_that_can_read_any_of_it_is_refused(
    site: SiteSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path / readable)
    with pytest.raises(ConfigError) as caught:
        require_no_data(site, tmp_path)
    assert caught.value.code == "data_readable"
    assert str(tmp_path / readable) in str(caught.value)


def test_a_node_that_can_read_nothing_of_it_may_start(
    site: SiteSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    require_no_data(site, tmp_path)


def test_one_node_at_a_time_works_in_a_state_folder(tmp_path: Path) -> None:
    other = (
        "import sys, time; from pathlib import Path;"
        "from wardround_client.node.guard import only_one;"
        f"only_one(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError) as caught:
            only_one(tmp_path)
        running.kill()
        running.wait()
    assert caught.value.code == "node_running"
    os.close(only_one(tmp_path))


class Link:
    """A connection in some state."""

    trouble = ""
    last_contact = 12.0


def test_prometheus_reads_messages_bytes_seconds_and_whether_both_ends_answer() -> None:
    traffic, link, worker = Traffic(), Link(), [True]
    question: Message = pulled(content=RecordDict()).message
    with traffic.doing("execute", "train"):
        assert traffic.now is not None
    for failure, taken in (("", True), ("", False), ("worker_unavailable", True)):
        reply = make_reply(question, RecordDict())
        traffic.message(Relayed(reply, failure, bytes_in=100, bytes_out=10), taken=taken)
    address = f"127.0.0.1:{free_port()}"
    end = traffic.serve(address, link, lambda: worker[0])
    try:
        lines = scraped(address)
        for line in (
            'wardround_node_messages_total{outcome="answered"} 1.0',
            'wardround_node_messages_total{outcome="not_taken"} 1.0',
            'wardround_node_messages_total{outcome="failed"} 1.0',
            'wardround_node_bytes_total{direction="in"} 300.0',
            "wardround_node_online 1.0",
            "wardround_node_worker_up 1.0",
            "wardround_node_last_contact_timestamp_seconds 12.0",
        ):
            assert line in lines, lines
        assert any(
            line.startswith('wardround_node_seconds_total{phase="execute"}') for line in lines
        )
        link.trouble, worker[0] = "unreachable", False
        lines = scraped(address)
        assert "wardround_node_online 0.0" in lines
        assert "wardround_node_worker_up 0.0" in lines
    finally:
        end()


def scraped(address: str) -> list[str]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5.0) as answer:
        return answer.read().decode().splitlines()
