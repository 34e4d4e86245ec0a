"""Loading: own data, shared data, pooled data, and what is kept in memory."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wardround_client.data import load
from wardround_client.data.load import load_pooled, load_site
from wardround_common.errors import ConfigError, DataError
from wardround_common.modalities.base import TableInputs
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.site import SiteSpec

SITES = ("north", "south")
BY_HOSPITAL = {"kind": "column", "column": "hospital", "values": {"north": ("N",), "south": ("S",)}}


def _federation(**data: object) -> FederationSpec:
    table = {"modality": "tabular", "numeric": ("age",), "label": "label", "subject": "id"}
    return FederationSpec.model_validate(
        {
            "federation": {"name": "f", "sites": SITES},
            "data": table | data,
            "task": {"kind": "classification", "labels": ("no", "yes")},
        }
    )


def _site(name: str = "north", path: str = "d.csv", **shared: object) -> SiteSpec:
    data: dict[str, object] = {"format": "csv", "path": path}
    if shared:
        data["shared_part"] = {"sites": SITES} | shared
    return SiteSpec.model_validate({"name": name, "data": data})


def _rows(hospital: str = "", count: int = 40) -> list[str]:
    return [
        f"{hospital}{row // 2},{hospital},{row + 500 * (hospital == 'S')},{'no' if row % 3 else 'yes'}"
        for row in range(count)
    ]


def _write(path: Path, *rows: str) -> None:
    path.write_text("\n".join(["id,hospital,age,label", *rows]) + "\n")


def _ages(examples) -> list[float]:
    assert isinstance(examples.inputs, TableInputs)
    return examples.inputs.numeric[:, 0].tolist()


def _codes(loaded) -> set[str]:
    return {finding.code for finding in loaded.findings}


def test_a_hospitals_own_file_and_the_same_rows_of_shared_data_give_the_same_parts(tmp_path):
    north, south = _rows("N"), _rows("S")
    mixed = [row for pair in zip(south, north, strict=True) for row in pair]
    _write(tmp_path / "d.csv", *mixed)
    _write(tmp_path / "own.csv", *north)
    federation = _federation(validation_fraction=0.2)
    shared = load_site(federation, _site("north", partition=BY_HOSPITAL), tmp_path)
    own = load_site(federation, _site("north", "own.csv"), tmp_path)
    for part in ("train", "validation", "test"):
        one, other = getattr(shared, part), getattr(own, part)
        assert len(one)
        assert _ages(one) == _ages(other)
        assert one.subjects.tolist() == other.subjects.tolist()


def test_pooled_is_the_sites_in_roster_order_with_subjects_apart(tmp_path):
    _write(tmp_path / "d.csv", *_rows("S"), *_rows("N"))
    federation = _federation()
    sites = [load_site(federation, _site(name, partition=BY_HOSPITAL), tmp_path) for name in SITES]
    pooled = load_pooled(federation, _site(partition=BY_HOSPITAL), tmp_path)
    assert _ages(pooled.train) == _ages(sites[0].train) + _ages(sites[1].train)
    assert _ages(pooled.test) == _ages(sites[0].test) + _ages(sites[1].test)
    assert pooled.train.num_subjects == sum(site.train.num_subjects for site in sites)
    assert len({pooled.data_sha256, *(site.data_sha256 for site in sites)}) == 3


def test_a_patient_of_two_hospitals_counts_once_for_each_and_is_mentioned(tmp_path):
    _write(tmp_path / "d.csv", *(row.replace("S", "N", 1) for row in _rows("S")), *_rows("N"))
    federation = _federation()
    sites = [load_site(federation, _site(name, partition=BY_HOSPITAL), tmp_path) for name in SITES]
    pooled = load_pooled(federation, _site(partition=BY_HOSPITAL), tmp_path)
    assert pooled.train.num_subjects == sum(site.train.num_subjects for site in sites)
    assert "subject_at_two_sites" in _codes(pooled)


def test_real_sites_cannot_be_pooled(tmp_path):
    _write(tmp_path / "d.csv", *_rows("N"))
    with pytest.raises(ConfigError) as caught:
        load_pooled(_federation(), _site(), tmp_path)
    assert caught.value.code == "not_shared"


def test_a_site_with_one_class_only_works_and_is_warned(tmp_path):
    _write(tmp_path / "d.csv", *(row.replace("yes", "no") for row in _rows("N")))
    loaded = load_site(_federation(validation_fraction=0.2), _site(), tmp_path)
    assert "one_class" in _codes(loaded)
    assert len(loaded.train)
    assert len(loaded.test)
    _write(tmp_path / "d.csv", *_rows("N"))
    assert _codes(load_site(_federation(), _site(), tmp_path)) == set()


def test_equal_rows_in_training_and_test_are_mentioned(tmp_path):
    _write(tmp_path / "d.csv", *(f"{row},N,50,{'no' if row % 3 else 'yes'}" for row in range(40)))
    assert "duplicate_rows" in _codes(load_site(_federation(), _site(), tmp_path))


def test_a_site_with_one_patient_trains_and_is_warned_that_nothing_is_held_out(tmp_path):
    _write(tmp_path / "d.csv", "1,N,50,no", "1,N,51,yes")
    loaded = load_site(_federation(), _site(), tmp_path)
    assert (len(loaded.train), len(loaded.test)) == (2, 0)
    assert _codes(loaded) == {"no_test_rows"}


def test_refuses_data_without_a_training_row(tmp_path):
    _write(tmp_path / "d.csv", "1,test,50,no")
    split = {"kind": "column", "column": "hospital"}
    with pytest.raises(DataError) as caught:
        load_site(_federation(split=split), _site(), tmp_path)
    assert caught.value.code == "no_training_rows"


@pytest.mark.parametrize(
    ("name", "shared", "code"),
    [
        ("west", {"partition": BY_HOSPITAL}, "unknown_site"),
        (
            "north",
            {"partition": BY_HOSPITAL | {"values": {"north": ("N",)}}},
            "site_without_values",
        ),
        (
            "north",
            {"partition": BY_HOSPITAL | {"values": {"north": ("N",), "south": ("X",)}}},
            "empty_site",
        ),
        ("north", {"partition": {"kind": "quantity", "min_subjects": 30}}, "too_few_subjects"),
    ],
)
def test_refuses_a_share_that_cannot_be(tmp_path, name, shared, code):
    _write(tmp_path / "d.csv", *_rows("N"), *_rows("S", 4))
    with pytest.raises(ConfigError) as caught:
        load_site(_federation(), _site(name, **shared), tmp_path)
    assert caught.value.code == code


def test_rows_of_no_site_are_left_out_and_mentioned(tmp_path):
    _write(tmp_path / "d.csv", *_rows("N"), *_rows("S"), *_rows("E", 6))
    pooled = load_pooled(_federation(), _site(partition=BY_HOSPITAL), tmp_path)
    assert len(pooled.train) + len(pooled.test) == 80
    assert {finding.code: finding.count for finding in pooled.findings}["row_of_no_site"] == 6


def test_shared_data_is_parsed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    _write(tmp_path / "d.csv", *_rows("N"), *_rows("S"))
    reads: list[str] = []
    original = load.read
    monkeypatch.setattr(load, "read", lambda *args: reads.append("x") or original(*args))
    federation = _federation()
    first = load_site(federation, _site("north", partition=BY_HOSPITAL), tmp_path)
    load_site(federation, _site("south", partition=BY_HOSPITAL), tmp_path)
    load_pooled(federation, _site(partition=BY_HOSPITAL), tmp_path)
    assert len(reads) == 1
    _write(tmp_path / "d.csv", *_rows("N", 60), *_rows("S"))
    second = load_site(federation, _site("north", partition=BY_HOSPITAL), tmp_path)
    assert len(reads) == 2
    assert second.train.num_subjects > first.train.num_subjects
    assert second.data_sha256 != first.data_sha256


def test_the_digest_names_the_bytes_and_the_schema_but_not_the_place(tmp_path):
    digests = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder / "d.csv", *_rows("N"))
        digests.append(load_site(_federation(), _site(), tmp_path / folder).data_sha256)
    assert digests[0] == digests[1]
    other = _federation(split={"kind": "random", "seed": 5})
    assert load_site(other, _site(), tmp_path / "a").data_sha256 != digests[0]


def test_an_image_that_changes_beside_its_manifest_is_read_again(tmp_path):
    for row in range(6):
        buffer = io.BytesIO()
        Image.new("L", (16, 16), row).save(buffer, "png")
        (tmp_path / f"{row}.png").write_bytes(buffer.getvalue())
    _write(
        tmp_path / "d.csv", *(f"{row},N,{row}.png,{'no' if row % 2 else 'yes'}" for row in range(6))
    )
    federation = FederationSpec.model_validate(
        {
            "federation": {"name": "f", "sites": SITES},
            "data": {"modality": "image", "file": "age", "label": "label", "size": 16},
            "task": {"kind": "classification", "labels": ("no", "yes")},
            "backbone": {"ref": "hf:x", "sha256": "0" * 64},
        }
    )
    before = load_site(federation, _site(), tmp_path)
    buffer = io.BytesIO()
    Image.new("L", (17, 16), 200).save(buffer, "png")
    (tmp_path / "3.png").write_bytes(buffer.getvalue())
    after = load_site(federation, _site(), tmp_path)
    assert before.data_sha256 != after.data_sha256
    pixels = np.concatenate([after.train.inputs.pixels, after.test.inputs.pixels])  # type: ignore[attr-defined]
    assert 200 in pixels
