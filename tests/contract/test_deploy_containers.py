"""The container kit: valid Compose files in which nothing has more than it needs; one recipe of images."""

import importlib.resources
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from tests.kits import DEPLOY, compose_commands, compose_problems, merged, unaccepted
from wardround_common import __version__
from wardround_common.cli import ENVIRONMENT
from wardround_server.aggregator.flower.programs import environment

SITE, CENTRE = DEPLOY / "site" / "compose.yaml", DEPLOY / "centre" / "compose.yaml"
GPU = DEPLOY / "site" / "compose.gpu.yaml"
RECIPE = (DEPLOY / "containers" / "Containerfile").read_text()
UIDS = {"worker": ("10001", "10010"), "node": ("10002", "10002"), "aggregator": ("10003", "10003")}


@pytest.fixture(scope="module")
def compose_schema() -> dict[str, Any]:
    pytest.importorskip("check_jsonschema", reason="it carries the schema of the Compose files")
    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((vendored / "compose-spec.json").read_text())
    assert isinstance(schema, dict)
    return schema


@pytest.mark.parametrize("file", [SITE, CENTRE, GPU], ids=lambda file: file.parent.name + file.stem)
def test_a_compose_file_is_one(file: Any, compose_schema: dict[str, Any]) -> None:
    content = yaml.safe_load(file.read_text())
    jsonschema.validate(content, compose_schema)
    first = next(iter(content["services"].values()))
    first["read_onely"] = True
    with pytest.raises(jsonschema.ValidationError, match="read_onely"):
        jsonschema.validate(content, compose_schema)


@pytest.mark.parametrize("file", [SITE, CENTRE], ids=["site", "centre"])
def test_no_service_has_more_than_it_needs(file: Any) -> None:
    assert compose_problems(file.read_text()) == []


def test_neither_has_the_worker_with_a_gpu() -> None:
    both = merged(yaml.safe_load(SITE.read_text()), yaml.safe_load(GPU.read_text()))
    assert "reservations" in both["services"]["worker"]["deploy"]["resources"]
    assert compose_problems(yaml.safe_dump(both)) == []


@pytest.mark.parametrize(
    ("service", "change", "problem"),
    [
        ("worker", {"network_mode": "bridge"}, "worker: network"),
        ("worker", {"network_mode": None, "networks": ["outwards"]}, "worker: network"),
        ("worker", {"read_only": False}, "worker: writable root"),
        ("worker", {"cap_add": ["NET_ADMIN"]}, "worker: capabilities"),
        ("worker", {"security_opt": []}, "worker: new privileges"),
        ("worker", {"privileged": True}, "worker: privileged"),
        ("worker", {"user": "10002:10010"}, "both: same user"),
        ("worker", {"ports": ["8080:8080"]}, "worker: ports"),
        ("node", {"pid": "host"}, "node: host's namespaces"),
        ("node", {"network_mode": "service:worker"}, "node: host's namespaces"),
        ("node", {"user": "0:0"}, "node: root"),
        ("node", {"group_add": ["10010", "10001"]}, "both: groups"),
        ("node", {"healthcheck": {"disable": True}}, "node: no health check"),
        ("node", {"deploy": {}}, "node: no limits"),
        ("node", {"image": "mirror.example/wardround-node:0.1.0"}, "node: image"),
        ("node", {"security_opt": ["no-new-privileges:true", "seccomp=unconfined"]}, "node: unco"),
    ],
)
def test_a_service_that_has_more_is_found_out(
    service: str, change: dict[str, Any], problem: str
) -> None:
    content = yaml.safe_load(SITE.read_text())
    content["services"][service] |= change
    assert [each[: len(problem)] for each in compose_problems(yaml.safe_dump(content))] == [problem]


@pytest.mark.parametrize(
    ("service", "mount", "problems"),
    [
        ("node", {"source": "/srv/patients", "target": "/srv/patients"}, ["node: data"]),
        ("node", {"source": "${WARDROUND_PATIENTS}", "target": "/x"}, ["node: data"]),
        ("node", {"source": "worker-state", "target": "/x"}, ["both: volumes"]),
        (
            "node",
            {"source": "airlock", "target": "/run/wardround"},
            ["node: writable socket folder"],
        ),
        ("worker", {"source": "/srv/b", "target": "/srv/patients"}, ["worker: writable data"]),
        ("worker", {"source": "/var/run/docker.sock", "target": "/s"}, ["worker: engine's socket"]),
    ],
)
def test_a_mount_too_many_is_found_out(
    service: str, mount: dict[str, str], problems: list[str]
) -> None:
    content = yaml.safe_load(SITE.read_text())
    content["services"][service]["volumes"].append({"type": "bind", **mount})
    assert compose_problems(yaml.safe_dump(content)) == problems


@pytest.mark.parametrize(("file", "num"), [(SITE, 4), (CENTRE, 2)], ids=["site", "centre"])
def test_every_command_of_a_compose_file_is_one(file: Any, num: int) -> None:
    commands = list(compose_commands(file.read_text()))
    assert len(commands) == num
    assert [unaccepted(words) for words in commands] == [None] * num


def test_images_and_services_agree_in_version_and_users() -> None:
    services = yaml.safe_load(SITE.read_text())["services"]
    services |= yaml.safe_load(CENTRE.read_text())["services"]
    for name, (uid, gid) in UIDS.items():
        assert services[name]["image"] == f"wardround-{name}:{__version__}"
        assert services[name]["user"] == f"{uid}:{gid}"
        stage = RECIPE.partition(f"FROM runtime AS {name}\n")[2].partition("\nFROM ")[0]
        assert f"\nUSER {uid}:{gid}\n" in stage
        command = json.loads(re.findall(r"^CMD (.*)$", stage, re.MULTILINE)[0])
        assert command == services[name]["command"]


def test_the_images_are_silent_and_hold_what_is_needed_to_run() -> None:
    for name, value in ENVIRONMENT.items():
        assert f"    {name}={value}" in RECIPE
    quiet = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
    assert environment(DEPLOY, DEPLOY)[quiet] == "1"
    assert f"    {quiet}=1" in RECIPE
    assert "--constraint /wheel/constraints.txt" in RECIPE
    bases = re.findall(r"^FROM (\S+)", RECIPE, re.MULTILINE)
    assert set(bases) == {"${BASE}", "runtime"}
    assert re.search(r"^ARG BASE=python:3\.11-slim-[a-z]+$", RECIPE, re.MULTILINE)
    installed = re.findall(r"apt-get install [^\n]*", RECIPE)
    assert installed == ["apt-get install --yes --no-install-recommends nginx-light \\"]
