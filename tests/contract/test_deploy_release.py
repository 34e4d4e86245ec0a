"""A release can be checked: its wheel has the same bytes wherever it is built, its bill of materials is true."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.kits import DEPLOY, ROOT
from wardround_common import __version__

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "common", "client", "server")
EPOCH = 1_750_000_000


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", DEPLOY / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bill(sbom: ModuleType) -> dict[str, Any]:
    pytest.importorskip("cyclonedx_py", reason="it makes the bill of materials")
    whole = sbom.whole_bill()
    assert isinstance(whole, dict)
    return whole


def test_the_wheel_has_the_same_bytes_in_two_folders_and_others_at_another_time(
    tmp_path: Path,
) -> None:
    here = _digest_of_wheel(tmp_path / "here", EPOCH)
    assert _digest_of_wheel(tmp_path / "elsewhere" / "deeper", EPOCH) == here
    assert _digest_of_wheel(tmp_path / "later", EPOCH + 86_400) != here


def test_the_bill_names_what_is_needed_to_run_and_nothing_else(
    sbom: ModuleType, bill: dict[str, Any]
) -> None:
    found = sbom.limited(bill, sbom.needed())
    versions = {each["name"].lower(): each["version"] for each in found["components"]}
    assert {"torch", "flwr", "grpcio", "cryptography", "protobuf", "starlette"} <= set(versions)
    assert versions["click"] == version("click")
    assert not {"pytest", "ruff", "mypy", "cyclonedx-bom", "ray"} & set(versions)
    assert len(versions) == len(found["components"])
    root = found["metadata"]["component"]
    assert (root["name"], root["version"]) == ("wardround", __version__)
    assert "pytest" in {each["name"] for each in bill["components"]}, "the whole has more"


def test_the_bill_is_a_cyclonedx_document_whose_links_hold(
    sbom: ModuleType, bill: dict[str, Any]
) -> None:
    pytest.importorskip("cyclonedx", reason="it carries the schema")
    from json import dumps

    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = sbom.limited(bill, sbom.needed())
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(dumps(found)) is None
    assert validator.validate_str(dumps(found | {"patients": []})) is not None
    refs = {each["bom-ref"] for each in found["components"]}
    refs.add(found["metadata"]["component"]["bom-ref"])
    links = found["dependencies"]
    assert {each["ref"] for each in links} == refs
    assert {ref for each in links for ref in each.get("dependsOn", [])} <= refs


def _digest_of_wheel(folder: Path, epoch: int) -> str:
    folder.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
    # The times of files are those of a checkout, not of the commit.
    for file in folder.rglob("*"):
        os.utime(file, (epoch - len(str(folder)), epoch - len(str(folder))))
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "SOURCE_DATE_EPOCH": str(epoch),
    }
    subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=True)
    [wheel] = (folder / "dist").glob("*.whl")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()
