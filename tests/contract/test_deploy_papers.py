"""Runbooks and the paper on deployment: every command is one, every file is there, all kits have one site file."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kits import DEPLOY, ROOT, documents, shell_commands, unaccepted, unit_settings
from wardround_common.spec.load import load_site
from wardround_common.spec.site import SiteSpec

PAPERS = [ROOT / "docs" / "deployment.md", *sorted((ROOT / "docs" / "runbooks").glob("*.md"))]
_IN_CONTAINER = re.compile(
    r"docker (?:compose )?run (?!.*--entrypoint).*? (?:wardround-\w+:[\d.]+|aggregator|node|worker) "
    r"((?:site|aggregator|backbone) .*)$"
)


def _lines(paper: Path) -> Iterator[str]:
    """The commands of a paper, one a line, as they are shown."""
    for line in paper.read_text().splitlines():
        if line.startswith("    ") and not line.strip().startswith(("#", "/usr/bin/unshare")):
            yield line.strip()


def _commands(paper: Path) -> Iterator[list[str]]:
    for line in _lines(paper):
        inside = _IN_CONTAINER.search(line.partition(" > ")[0])
        yield from shell_commands([f"wardround {inside[1]}" if inside else line])


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.stem)
def test_every_command_of_a_paper_is_one(paper: Path) -> None:
    commands = list(_commands(paper))
    assert len(commands) >= 3
    wrong = {" ".join(words): unaccepted(words) for words in commands if unaccepted(words)}
    assert wrong == {}


def test_a_command_that_is_none_is_found_out(tmp_path: Path) -> None:
    paper = tmp_path / "paper.md"
    paper.write_text(
        "    sudo -u wardround-node wardround site enroll SITE.toml\n"
        "    docker compose run --rm node site enrol /etc/wardround/site.toml --keys K\n"
        "    wardround aggregator stop DIR\n"
        "    wardround aggregator status DIR\n"
    )
    told = [unaccepted(words) for words in _commands(paper)]
    assert [each is None for each in told] == [False, False, False, True]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.stem)
def test_every_file_and_unit_that_a_paper_names_is_there(paper: Path) -> None:
    text = paper.read_text()
    for path in re.findall(r"\bdeploy/[\w./-]*\w", text):
        assert (ROOT / path).exists(), path
    units = {file.stem for file in DEPLOY.rglob("*.service")}
    for line in _lines(paper):
        if line.startswith("systemctl") and "daemon-reload" not in line:
            assert set(re.findall(r"wardround-\w+", line)) <= units, line
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z]+)[`\n]", text)) <= set(targets)


@pytest.fixture
def site(tmp_path: Path) -> SiteSpec:
    file = tmp_path / "site.toml"
    file.write_text(PAPERS[0].read_text().partition("```toml\n")[2].partition("```")[0])
    return load_site(file)


def _places(site: SiteSpec) -> dict[str, set[str]]:
    """Role -> what its process opens."""
    assert site.node is not None
    node = site.node
    keys = {node.key, node.certificate, node.certificate_key, node.ca, node.coordinator}
    return {
        "worker": {site.data.path, site.compute.cache, site.worker.state, site.worker.socket},
        "node": {site.worker.socket, node.state, *keys},
    }


@pytest.mark.parametrize("role", ["worker", "node"])
def test_one_site_file_fits_units_containers_and_pods(role: str, site: SiteSpec) -> None:
    settings = unit_settings((DEPLOY / "site" / f"wardround-{role}.service").read_text())
    by_systemd = {f"/var/lib/{settings['StateDirectory'][0]}", "/run/wardround", "/srv/patients"}
    services = yaml.safe_load((DEPLOY / "site" / "compose.yaml").read_text())["services"]
    by_compose = {each["target"] for each in services[role]["volumes"]}
    manifests = documents((DEPLOY / "kubernetes" / "wardround-site.yaml").read_text())
    containers = manifests[0]["spec"]["template"]["spec"]["containers"]
    mounts = next(each for each in containers if each["name"] == role)["volumeMounts"]
    by_kubernetes = {each["mountPath"] for each in mounts}
    for place in _places(site)[role]:
        for kit in (by_systemd, by_compose, by_kubernetes):
            assert any(Path(place).is_relative_to(folder) for folder in kit), place


def test_the_node_mounts_none_of_the_places_of_the_worker(site: SiteSpec) -> None:
    own = {Path(each) for each in _places(site)["worker"] - {site.worker.socket}}
    services = yaml.safe_load((DEPLOY / "site" / "compose.yaml").read_text())["services"]
    for mount in services["node"]["volumes"]:
        assert not any(each.is_relative_to(mount["target"]) for each in own)
