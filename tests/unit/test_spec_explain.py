"""Every key can be explained, near misses are named, and the schemas accept what the models do."""

import json
import tomllib

import jsonschema
import pytest

from tests.unit.spec_files import FEDERATION, SITE, changed
from wardround_common.errors import ConfigError
from wardround_common.spec.explain import explain, reference_markdown, schema_json
from wardround_common.spec.outline import FileKind, Node, walk
from wardround_common.spec.words import PATTERN_WORDS, toml_literal

KINDS: tuple[FileKind, ...] = ("federation", "site", "aggregator")
EVERY_NODE = [(kind, node) for kind in KINDS for node in walk(kind)]


def test_a_key_is_explained_with_type_range_default_and_file() -> None:
    assert explain("rounds.count").splitlines() == [
        "rounds.count",
        "  Training rounds; 0 stops after the exact head.",
        "  type: whole number of at least 0",
        "  default: 10",
        "  file: federation.toml",
    ]


def test_a_key_that_must_be_given_says_so() -> None:
    assert "default: none, it must be given" in explain("federation.name")
    assert "default: -" in explain("rounds.quorum_sites")


@pytest.mark.parametrize("key", ["tuning.rank", "tuning.lora.rank"])
def test_a_key_of_one_shape_is_found_with_and_without_the_shape(key: str) -> None:
    assert explain(key).startswith('tuning.rank (with tuning.method = "lora")')


def test_a_table_is_explained_with_its_shapes_and_keys() -> None:
    text = explain("tuning")
    assert text.startswith("[tuning]")
    assert 'method = "last-k": Train the last blocks' in text
    assert "Rank r of each adapter." in text


def test_a_name_that_is_both_shape_and_key_is_explained_as_both() -> None:
    text = explain("data.split.column")
    assert "[data.split]" in text
    assert "Column that names the part of each row." in text


def test_a_key_of_all_shapes_is_explained_once_and_without_a_shape() -> None:
    assert explain("data.validation_fraction").count("data.validation_fraction") == 1
    assert "(with" not in explain("data.validation_fraction")


def test_keys_of_the_site_file_have_a_prefix() -> None:
    assert "file: site.toml" in explain("site.data.path")
    with pytest.raises(ConfigError):
        explain("data.path")


def test_no_key_lists_the_tables_of_both_files() -> None:
    text = explain("")
    assert "federation.toml" in text
    assert "exact_head" in text
    assert "site.toml" in text


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("rounds.quorum_site", "rounds.quorum_sites"),
        ("quorum_sites", "rounds.quorum_sites"),
        ("site.data.paths", "site.data.path"),
        ("tuning.method.rank", "tuning.rank"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_ones(key: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explain(key)
    assert caught.value.code == "unknown_key"
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "node"), EVERY_NODE, ids=[f"{kind}-{node.key}" for kind, node in EVERY_NODE]
)
def test_every_key_has_documentation_and_can_be_explained(kind: FileKind, node: Node) -> None:
    assert len(node.description) > 8
    key = node.key if kind == "federation" else f"{kind}.{node.key}"
    assert node.description in explain(key)


def test_every_pattern_has_plain_words() -> None:
    used = {node.schema["pattern"] for _, node in EVERY_NODE if "pattern" in node.schema}
    assert used <= set(PATTERN_WORDS)


def test_the_reference_has_every_key() -> None:
    text = reference_markdown()
    assert all(f"`{node.path[-1]}`" in text for _, node in EVERY_NODE)


def test_literals_are_toml() -> None:
    value = {"a": [1, 2.5, True, "x\n\"y'"], "b": {"c": "ü"}}
    assert tomllib.loads(f"v = {toml_literal(value)}")["v"] == value


def test_the_schemas_are_valid_and_accept_the_good_files() -> None:
    for kind, text in (("federation", FEDERATION), ("site", SITE)):
        schema = json.loads(schema_json(kind))  # type: ignore[arg-type]
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(tomllib.loads(text), schema)


def test_the_schema_refuses_an_unknown_key() -> None:
    schema = json.loads(schema_json("federation"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(changed("count = 3", "cuont = 3")), schema)
