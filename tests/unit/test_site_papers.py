"""What the papers and the service file of the site worker say is what the program does."""

import configparser
import re
from pathlib import Path

import pytest

from wardround_client.airlock.limits import MAX_CALLS, SERVER_OPTIONS
from wardround_common.spec.load import load_site
from wardround_common.spec.site import Worker

ROOT = Path(__file__).parents[2]
PAPER = (ROOT / "docs" / "site-worker.md").read_text()


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(ROOT / "deploy" / "site" / "wardround-worker.service")
    return unit["Service"]


def test_every_key_of_the_worker_is_explained_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAPER, re.MULTILINE))
    assert rows == {name: str(field.default) for name, field in Worker.model_fields.items()}


def test_the_site_file_of_the_paper_is_one_and_has_the_paths_of_the_service(
    tmp_path: Path, service: configparser.SectionProxy
) -> None:
    file = tmp_path / "site.toml"
    file.write_text(PAPER.partition("```toml\n")[2].partition("```")[0])
    site = load_site(file)
    assert site.worker.socket == f"/run/{service['RuntimeDirectory']}/airlock.sock"
    state = f"/var/lib/{service['StateDirectory']}"
    assert (site.worker.state, site.compute.cache) == (f"{state}/state", f"{state}/cache")


def test_the_service_has_no_network_and_a_user_of_its_own(
    service: configparser.SectionProxy,
) -> None:
    assert service["PrivateNetwork"] == "yes"
    assert service["RestrictAddressFamilies"] == "AF_UNIX"
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert service["User"] == "wardround-worker"
    assert "seccomp" in service["SystemCallFilter"].split(), "its own filter comes on top"
    assert service["ExecStart"].split()[1:3] == ["site", "worker"]


def test_the_limits_of_the_paper_are_those_of_the_airlock() -> None:
    options = dict(SERVER_OPTIONS)
    assert options["grpc.max_receive_message_length"] == (4 << 20) + (64 << 10)
    assert options["grpc.max_send_message_length"] == (1 << 20) + (64 << 10)
    assert options["grpc.absolute_max_metadata_size"] == 16 << 10
    assert f"; {MAX_CALLS} calls at a time" in PAPER
