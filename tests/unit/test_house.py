"""The project's own papers agree with each other and with the code."""

import ast
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAPERS = ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "docs/architecture.md")
TARGETS = {"demo", "test", "test-slow", "check", "bench", "bench-quick", "docs", "proto"}
TARGETS |= {"chart", "clean", "e2e", "help", "sbom", "wheel"}


def _requirements() -> dict[str, list[Requirement]]:
    """Extra ("" for the always installed) -> its requirements."""
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {name: [Requirement(text) for text in texts] for name, texts in groups.items()}


def _generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short_and_names_both_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "make demo" in text
    assert "make test" in text
    assert text.index("<!-- figures -->") < text.index("<!-- /figures -->")


@pytest.mark.parametrize(
    "name", ["spec-reference.md", "report.schema.json", "../deploy/nginx/nginx.conf"]
)
def test_generated_papers_are_those_of_the_models(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == _generator().GENERATED[name](), "run `make docs`"


def test_every_link_within_the_papers_leads_somewhere() -> None:
    papers = [ROOT / name for name in PAPERS]
    papers += sorted((ROOT / "docs").rglob("*.md"))
    broken = [
        f"{paper.name}: {target}"
        for paper in papers
        for target in re.findall(r"\]\(([^)#:\s]+)\)", paper.read_text())
        if not (paper.parent / target).exists()
    ]
    assert broken == []


def test_every_file_named_in_the_architecture_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`(wardround_[a-z]+/[a-z_/]+\.py)`", text)
    folders = {"wardround_server": "server", "wardround_client": "client"}
    assert len(named) >= 8
    for path in named:
        assert (ROOT / folders.get(path.split("/")[0], "common") / path).is_file(), path


def test_every_dependency_has_its_line_and_no_line_is_left_over() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    always, _, extras = text.partition("## Extras")
    rows = set(re.findall(r"^\| ([a-z][\w-]*) \|", always, re.MULTILINE)) - {"package"}
    pairs = set(re.findall(r"^\| ([\w-]+) \| ([a-z][\w-]*)", extras, re.MULTILINE))
    groups = _requirements()
    assert rows == {requirement.name for requirement in groups.pop("")}
    assert pairs - {("extra", "package")} == {
        (extra, requirement.name) for extra, group in groups.items() for requirement in group
    }


def test_every_direct_dependency_has_a_tested_version_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    for extra, group in _requirements().items():
        for requirement in group if extra not in {"ray", "imaging"} else ():
            assert requirement.specifier.contains(Version(tested[requirement.name])), requirement


def test_the_makefile_has_the_promised_targets_and_installs_the_demo_extra() -> None:
    text = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"^([a-z0-9-]+):", text, re.MULTILINE)) == TARGETS
    packages = text.partition("DEMO_PACKAGES :=")[2].partition("\n\n")[0]
    installed = set(packages.replace("\\", " ").split())
    assert installed == set(PROJECT["optional-dependencies"]["demo"])


@pytest.mark.parametrize("target", sorted(TARGETS - {"help"}))
def test_every_target_can_be_planned_by_make(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ci_runs_what_the_readme_promises() -> None:
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    assert path.read_text().endswith("make check\nmake test\nmake e2e\n")


def test_decisions_are_numbered_without_gaps_and_have_a_status() -> None:
    papers = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [paper.name[:4] for paper in papers] == [f"{n + 1:04}" for n in range(len(papers))]
    for paper in papers:
        text = paper.read_text()
        assert text.startswith(f"# {int(paper.name[:4])}. ")
        for part in ("- Status: ", "## Context and problem", "## Decision", "## Consequences"):
            assert part in text


def test_the_changelog_has_a_heading_for_privacy_and_security() -> None:
    assert "### Privacy & security" in (ROOT / "CHANGELOG.md").read_text()


def test_every_module_says_what_it_promises_and_has_a_telling_name() -> None:
    modules = [
        path for part in ("common", "server", "client") for path in (ROOT / part).rglob("*.py")
    ]
    assert len(modules) > 20
    for path in modules:
        assert ast.get_docstring(ast.parse(path.read_text())), path
        assert not re.search(r"utils?|helpers?|manager", path.stem), path


def test_no_module_can_run_foreign_code() -> None:
    banned = re.compile(r"\bimport (pickle|dill|joblib)\b|trust_remote_code=True|allow_pickle=True")
    for part in ("common", "server", "client"):
        for path in (ROOT / part).rglob("*.py"):
            text = path.read_text()
            assert not banned.search(text), path
            for call in re.findall(r"torch\.load\([^)]*\)", text):
                assert "weights_only=True" in call, path
