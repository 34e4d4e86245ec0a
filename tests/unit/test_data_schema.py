"""The schema check: each finding, beside data that is as declared."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wardround_client.data.findings import SchemaError
from wardround_client.data.readers import read
from wardround_client.data.schema import Checked, check, columns_needed
from wardround_common.modalities.base import ImageInputs, TableInputs, TextInputs, TokenInputs
from wardround_common.spec.data import ImageData, TabularData, TextData, TokenData
from wardround_common.spec.federation import Classification, Entities
from wardround_common.spec.site import SiteData

TASK = Classification(kind="classification", labels=("no", "yes"))
COLUMN_SPLIT = {"kind": "column", "column": "part"}
GOOD = "id,part,age,sex,label\n7,train,61,f,no\n8,train,?,m,yes\n9,test,55,,yes\n"


def _table(**changes: object) -> TabularData:
    values = {
        "modality": "tabular",
        "numeric": ("age",),
        "categorical": {"sex": ("f", "m")},
        "label": "label",
        "subject": "id",
    }
    return TabularData.model_validate(values | changes)


def _check(folder: Path, csv: str, data: object = None, format_: str = "csv") -> Checked:
    (folder / "d").write_text(csv)
    spec = data if data is not None else _table()
    site = SiteData(format=format_, path="d")  # type: ignore[arg-type]
    task = Entities(kind="entities", types=("Drug",)) if isinstance(spec, TokenData) else TASK
    wanted = frozenset(columns_needed(spec))  # type: ignore[arg-type]
    return check(read(site, folder, wanted, None), spec, task)  # type: ignore[arg-type]


def _errors(folder: Path, csv: str, data: object = None, format_: str = "csv"):
    with pytest.raises(SchemaError) as caught:
        _check(folder, csv, data, format_)
    return {finding.code: (finding.count, finding.first_row) for finding in caught.value.findings}


def test_a_table_as_declared_keeps_missing_cells_as_nan_and_minus_one(tmp_path):
    checked = _check(tmp_path, GOOD)
    inputs = checked.examples.inputs
    assert isinstance(inputs, TableInputs)
    assert np.array_equal(inputs.numeric[:, 0], [61, np.nan, 55], equal_nan=True)
    assert inputs.categorical[:, 0].tolist() == [0, 1, -1]
    assert [int(target[0]) for target in checked.examples.targets] == [0, 1, 1]
    assert checked.examples.subjects.tolist() == [0, 1, 2]
    assert checked.findings == ()


def test_drop_leaves_out_rows_with_an_empty_cell_and_says_how_many(tmp_path):
    checked = _check(tmp_path, GOOD, _table(missing="drop"))
    assert len(checked.examples) == 1
    assert [(finding.code, finding.count) for finding in checked.findings] == [
        ("dropped_incomplete", 2)
    ]


def test_a_label_map_gives_class_names_to_raw_values(tmp_path):
    csv = GOOD.replace(",no", ",0").replace(",yes", ",3")
    checked = _check(tmp_path, csv, _table(label_map={"0": "no", "3": "yes"}))
    assert [int(target[0]) for target in checked.examples.targets] == [0, 1, 1]
    assert _errors(tmp_path, csv) == {"unknown_label": (3, 1)}


@pytest.mark.parametrize(
    ("old", "new", "code", "row"),
    [
        ("8,train", ",train", "missing_subject", 2),
        ("m,yes", "m,perhaps", "unknown_label", 2),
        ("m,yes", "m,", "missing_label", 2),
        ("f,no", "x,no", "unknown_category", 1),
        ("61", "sixty", "not_a_number", 1),
        ("61", "6_1", "not_a_number", 1),
        ("61", "inf", "not_finite", 1),
        ("61", "nan", "not_finite", 1),
    ],
)
def test_finds_a_wrong_cell_with_its_row(tmp_path, old, new, code, row):
    assert _errors(tmp_path, GOOD.replace(old, new)) == {code: (1, row)}


def test_all_findings_come_at_once_and_none_of_them_in_the_public_message(tmp_path):
    csv = GOOD.replace("61", "Mustermann").replace("m,yes", "m,perhaps")
    (tmp_path / "d").write_text(csv)
    with pytest.raises(SchemaError) as caught:
        _check(tmp_path, csv)
    error = caught.value
    assert [finding.code for finding in error.findings] == ["unknown_label", "not_a_number"]
    assert "row 1" in str(error)
    assert "row 2" in str(error)
    assert "Mustermann" not in error.public_message
    assert "perhaps" not in error.public_message
    assert error.code == "unknown_label"


def test_finds_every_missing_column(tmp_path):
    with pytest.raises(SchemaError) as caught:
        _check(tmp_path, "id,sex\n1,f\n")
    assert [finding.column for finding in caught.value.findings] == ["age", "label"]
    assert caught.value.code == "missing_column"


def test_finds_that_no_row_is_left(tmp_path):
    assert _errors(tmp_path, "id,age,sex,label\n") == {"no_rows": (0, None)}
    assert _errors(tmp_path, GOOD.replace("61", "").replace("55", ""), _table(missing="drop")) == {
        "no_rows": (0, None)
    }


def test_a_published_split_is_kept_and_other_rows_left_out(tmp_path):
    checked = _check(tmp_path, GOOD.replace("8,train", "8,devel"), _table(split=COLUMN_SPLIT))
    assert checked.parts is not None
    assert checked.parts.tolist() == [0, 1]
    assert [(finding.code, finding.count) for finding in checked.findings] == [
        ("left_out_by_split", 1)
    ]


def test_refuses_a_patient_in_both_parts_of_a_published_split(tmp_path):
    leaking = GOOD.replace("9,test", "7,test")
    assert _errors(tmp_path, leaking, _table(split=COLUMN_SPLIT)) == {
        "subject_in_two_parts": (1, None)
    }
    assert len(_check(tmp_path, GOOD, _table(split=COLUMN_SPLIT)).examples) == 3
    assert len(_check(tmp_path, leaking).examples) == 3  # a random split keeps patients together


def test_finds_empty_texts(tmp_path):
    data = TextData(modality="text", text="age", label="label")
    checked = _check(tmp_path, GOOD.replace("?", "a text"), data)
    assert isinstance(checked.examples.inputs, TextInputs)
    assert checked.examples.inputs.texts == ("61", "a text", "55")
    assert _errors(tmp_path, GOOD.replace("61", "  "), data) == {"empty_text": (1, 1)}


def test_finds_unknown_tags(tmp_path):
    data = TokenData(modality="tokens")
    checked = _check(tmp_path, "a\tB-Drug\nb\tI-Drug\n\nc\tO\n", data, "conll")
    assert isinstance(checked.examples.inputs, TokenInputs)
    assert [target.tolist() for target in checked.examples.targets] == [[1, 2], [0]]
    assert _errors(tmp_path, "a\tO\n\nb\tB-Gene\nc\tS-Drug\n", data, "conll") == {
        "unknown_tag": (1, 2)
    }


def test_finds_a_format_that_the_modality_does_not_read(tmp_path):
    assert "wrong_format" in _errors(tmp_path, "a\tO\n", _table(), "conll")
    assert _errors(tmp_path, GOOD, TokenData(modality="tokens")) == {"wrong_format": (1, None)}


def _manifest(folder: Path, second: str) -> str:
    (folder / "scans").mkdir(exist_ok=True)
    for name, mode in (("a.png", "L"), ("b.png", "RGB")):
        buffer = io.BytesIO()
        Image.new(mode, (20, 30)).save(buffer, "png")
        (folder / "scans" / name).write_bytes(buffer.getvalue())
    (folder / "scans" / "cut.png").write_bytes(buffer.getvalue()[:40])
    return f"file,label\nscans/a.png,no\n{second},yes\n"


IMAGES = ImageData(modality="image", label="label", size=16)


def test_images_are_read_relative_to_their_manifest(tmp_path):
    checked = _check(tmp_path, _manifest(tmp_path, "scans/b.png"), IMAGES)
    assert isinstance(checked.examples.inputs, ImageInputs)
    assert checked.examples.inputs.pixels.shape == (2, 16, 16, 3)
    assert [name for name, _ in checked.digests] == ["d", "scans/a.png", "scans/b.png"]
    grey = _check(tmp_path, _manifest(tmp_path, "scans/a.png"), IMAGES).examples.inputs
    assert isinstance(grey, ImageInputs)
    assert grey.pixels.shape == (2, 16, 16, 1)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("scans/none.png", "missing_image"),
        ("scans/cut.png", "unreadable_image"),
        ("../d", "image_outside_folder"),
        ("/etc/hostname", "image_outside_folder"),
        ("", "image_outside_folder"),
    ],
)
def test_finds_images_that_cannot_be_used(tmp_path, name, code):
    assert _errors(tmp_path, _manifest(tmp_path, name), IMAGES) == {code: (1, 2)}
