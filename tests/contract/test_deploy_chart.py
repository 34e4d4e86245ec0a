"""The Kubernetes kit: the chart renders, what it renders is valid, and the worker is alone in it."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.kits import DEPLOY, documents, pod_commands, pod_problems, unaccepted
from wardround_common import __version__

CHART = DEPLOY / "helm" / "wardround-site"
RENDERED = DEPLOY / "kubernetes" / "wardround-site.yaml"
VERSIONS = ("1.29.0", "1.37.0")
"""Of Kubernetes: the oldest that the chart allows, and the newest whose schemas are installed."""


@pytest.fixture(scope="module")
def chart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", DEPLOY / "helm" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def renderer(chart: ModuleType) -> ModuleType:
    if not chart.can_render():
        pytest.skip("neither the program helm nor the package helm-python-sdk is installed")
    return chart


def test_the_rendered_manifests_are_of_this_chart(chart: ModuleType, tmp_path: Path) -> None:
    text = RENDERED.read_text()
    assert text.startswith(chart.header(CHART)), "run `make chart`"
    changed = shutil.copytree(CHART, tmp_path / "chart")
    with (changed / "templates" / "site.yaml").open("a") as file:
        file.write(" ")
    assert not text.startswith(chart.header(changed))


def test_the_chart_renders_to_them(renderer: ModuleType) -> None:
    example = CHART / "example-values.yaml"
    assert RENDERED.read_text() == renderer.header(CHART) + renderer.render(CHART, example)


def test_other_values_change_nothing_about_what_a_container_may(
    renderer: ModuleType, tmp_path: Path
) -> None:
    values = yaml.safe_load((CHART / "example-values.yaml").read_text()) | {
        "backbones": "wardround-backbones",
        "runtimeClassName": "nvidia",
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "state": {"storageClassName": "fast", "worker": "1Gi", "node": "1Gi"},
        "node": {"httpsProxy": "http://proxy.example:3128"},
        "worker": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    }
    text = renderer.render(CHART, _written(tmp_path, values))
    assert pod_problems(text) == []
    assert "proxy.example" in text
    assert "nvidia.com/gpu" in text
    _validate(text, VERSIONS[-1])


@pytest.mark.parametrize(
    "values",
    [
        {"aggregator": {"cidrs": []}},
        {"aggregator": {"cidrs": ["192.0.2.1/32"]}, "workers": 2},
        {"aggregator": {"cidrs": ["everywhere"]}},
        {"aggregator": {"cidrs": ["192.0.2.1/32"]}, "worker": {"seccompProfile": ""}},
    ],
)
def test_values_that_say_nothing_or_too_much_are_refused(
    values: dict[str, Any], renderer: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError):
        renderer.render(CHART, _written(tmp_path, values))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid_for_kubernetes(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="it carries the schemas")
    _validate(RENDERED.read_text(), version)
    wrong = RENDERED.read_text().replace("readOnlyRootFilesystem", "readOnlyRoot")
    with pytest.raises(validator.ValidationError):
        _validate(wrong, version)


def test_no_container_has_more_than_it_needs() -> None:
    assert pod_problems(RENDERED.read_text()) == []


@pytest.mark.parametrize(
    ("line", "instead", "problems"),
    [
        ("        - --net\n", "", ["worker: network"]),
        ("        - /usr/bin/unshare\n", "", ["worker: network"]),
        ("            - --net\n", "", ["worker: network"]),
        ("type: Localhost", "type: Unconfined", ["worker: seccomp"]),
        ("type: RuntimeDefault", "type: Unconfined", ["pod: seccomp"]),
        ("hostNetwork: false", "hostNetwork: true", ["pod: hostNetwork"]),
        ("shareProcessNamespace: false", "x: 1", ["pod: shareProcessNamespace"]),
        ("runAsUser: 10002", "runAsUser: 10001", ["node: same user"]),
        ("runAsUser: 10002", "runAsUser: 0", ["node: root"]),
        ("name: site-file\n          mount", "name: files\n          mount", ["node: volumes"]),
        ("name: node-tmp\n          mount", "name: patients\n          mount", ["node: volumes"]),
        ("wardround-site-node-state\n      - name: node-tmp", "wardround-patients\n      - name: node-tmp", ["node: data"]),
        ("/srv/patients\n          readOnly: true", "/srv/patients", ["worker: writable data"]),
        ("/run/wardround\n          readOnly: true", "/run/wardround", ["node: writable socket folder"]),
        ("cidr: 192.0.2.10/32", "cidr: 0.0.0.0/0", ["network: egress"]),
        ("ingress: []", "ingress: [{}]", ["network: ingress"]),
        ("kind: NetworkPolicy", "kind: Ingress", ["network: no policy"]),
    ],
)  # fmt: skip
def test_a_container_that_has_more_is_found_out(
    line: str, instead: str, problems: list[str]
) -> None:
    text = RENDERED.read_text()
    assert line in text
    changed = text.replace(line, instead, 1)
    if line.startswith("            -"):
        changed = instead.join(text.rsplit(line, 1))
    assert pod_problems(changed) == problems


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("readOnlyRootFilesystem: true", "writable root"),
        ("allowPrivilegeEscalation: false", "new privileges"),
        ("runAsNonRoot: true\n          privileged", "root"),
        ("privileged: false", "capabilities"),
    ],
)
def test_a_protection_that_is_missing_is_found_out(line: str, problem: str) -> None:
    key = line.partition(":")[0]
    changed = RENDERED.read_text().replace(line, line.replace(key, "absent", 1))
    assert pod_problems(changed) == [f"worker: {problem}", f"node: {problem}"]


def test_every_command_of_the_manifests_is_one() -> None:
    commands = list(pod_commands(RENDERED.read_text()))
    assert [words[:2] for words in commands] == [
        ["site", "worker"], ["site", "status"], ["site", "node"], ["site", "status"],
    ]  # fmt: skip
    assert [unaccepted(words) for words in commands] == [None] * 4


def test_chart_and_product_have_one_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert about["version"] == about["appVersion"] == __version__
    for role in ("worker", "node"):
        assert values["images"][role] == f"wardround-{role}:{__version__}"


def test_the_seccomp_profile_allows_one_way_out_of_the_network_and_no_other() -> None:
    profile = json.loads((CHART / "seccomp" / "worker.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["worker"]["seccompProfile"] == "wardround/worker.json"
    refused = {name: rule for rule in profile["syscalls"] for name in rule["names"]}
    assert {rule["action"] for rule in profile["syscalls"]} == {"SCMP_ACT_ERRNO"}
    assert {"setns", "mount", "ptrace", "bpf", "pidfd_getfd", "io_uring_setup"} <= set(refused)
    only = {"index": 0, "value": 0x1000_0000 | 0x4000_0000, "op": "SCMP_CMP_NE"}
    assert refused["unshare"]["args"] == [only]
    assert refused["clone3"]["errnoRet"] == 38


def _written(folder: Path, values: dict[str, Any]) -> Path:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def _validate(text: str, version: str) -> None:
    import kubernetes_validate

    for document in documents(text):
        kubernetes_validate.validate(document, version, strict=True)
