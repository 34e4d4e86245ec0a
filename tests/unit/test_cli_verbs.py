"""The command finds its verbs late, keeps libraries quiet, and turns errors into exit statuses."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from wardround_common import cli
from wardround_common.errors import ConfigError, DataError, RoundError

FROZEN_VERBS = {
    *("explain", "schema", "validate", "backbone", "simulate", "report", "data"),
    *("site", "aggregator", "audit"),
}
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@dataclass
class FakeVerb:
    """An entry point that counts how often it was imported."""

    name: str
    body: Callable[[], object]
    loaded: int = 0

    def load(self) -> click.Command:
        self.loaded += 1

        @click.command(self.name)
        @click.option("--json", "as_json", is_flag=True)
        def command(as_json: bool) -> object:
            del as_json
            return self.body()

        return command


Plant = Callable[[Callable[[], object]], FakeVerb]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    def planted(body: Callable[[], object]) -> FakeVerb:
        verb = FakeVerb("report", body)
        monkeypatch.setattr(cli, "_verbs", lambda: (verb,))
        return verb

    return planted


def _raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


def test_the_list_of_verbs_is_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    verbs = capsys.readouterr().out.partition("Verbs:\n")[2]
    assert {line.split()[0] for line in verbs.splitlines()} == FROZEN_VERBS
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][cli.VERB_GROUP]
    assert set(declared) == set(cli.VERBS) == FROZEN_VERBS


def test_the_list_of_verbs_imports_none_of_them_and_a_verb_only_itself(
    plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = plant(lambda: None)
    assert cli.run(["--help"]) == 0
    assert "report" in capsys.readouterr().out
    assert verb.loaded == 0
    assert cli.run(["report", "--help"]) == 0
    assert verb.loaded == 1


def test_help_and_validate_import_no_heavy_library() -> None:
    script = (
        "import sys; from wardround_common.cli import run; run(['--help']); run(['explain']);"
        "print([m for m in ('torch', 'flwr', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(cli.ENVIRONMENT))
def test_telemetry_and_downloads_are_off_before_a_verb_is_imported(
    name: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "as the user had it")
    verb = plant(lambda: None)
    seen: list[str | None] = []
    original = verb.load
    monkeypatch.setattr(verb, "load", lambda: (seen.append(os.environ.get(name)), original())[1])
    cli.run(["report"])
    assert seen == [cli.ENVIRONMENT[name]]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("wrong", code="c"), 2),
        (DataError("wrong", code="d"), 2),
        (RoundError("abandoned", code="r"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_expected_failures_become_exit_statuses_without_a_traceback(
    error: BaseException, status: int, plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(_raising(error))
    assert cli.run(["report"]) == status
    shown = capsys.readouterr()
    assert shown.err.strip().splitlines()[-1] == f"error: {error}" or status == 130
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_an_unexpected_failure_keeps_its_traceback(plant: Plant) -> None:
    plant(_raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        cli.run(["report"])


def test_each_line_of_a_message_is_marked(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    plant(_raising(ConfigError("one\ntwo", code="c")))
    cli.run(["report"])
    assert capsys.readouterr().err == "error: one\nerror: two\n"


def test_errors_are_json_where_json_was_asked_for(
    plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(_raising(DataError("no such column", code="missing_column")))
    assert cli.run(["report", "--json"]) == 2
    expected = {"error": {"code": "missing_column", "message": "no such column"}}
    assert json.loads(capsys.readouterr().err) == expected
    assert cli.run(["nonsense", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "usage"


def test_an_unknown_verb_and_an_unknown_option_are_bad_input(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["nonsense"]) == 2
    assert cli.run(["validate", "--nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_a_verb_whose_part_is_not_installed_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = FakeVerb("report", lambda: None)
    missing = ModuleNotFoundError("No module", name="wardround_server")
    monkeypatch.setattr(verb, "load", _raising(missing))
    monkeypatch.setattr(cli, "_verbs", lambda: (verb,))
    assert cli.run(["report"]) == 2
    assert "lacks the part" in capsys.readouterr().err


def test_a_verb_may_choose_its_exit_status(plant: Plant) -> None:
    plant(lambda: 1)
    assert cli.run(["report"]) == 1
    plant(lambda: None)
    assert cli.run(["report"]) == 0


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads(PYPROJECT.read_text())["project"]["version"]
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"wardround, version {version}\n"
