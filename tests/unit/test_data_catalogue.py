"""Public sets: pinned sources, equal bytes, whole or not at all."""

import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from wardround_client.data import catalogue, store
from wardround_client.data.cli import data as command
from wardround_client.data.entries import ENTRIES, entry_named
from wardround_client.data.load import load_pooled, load_site
from wardround_client.data.prepare.reports import report_row
from wardround_common.errors import DataError
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.site import SiteSpec
from wardround_common.types import sha256_hex

RAW = Path(os.environ.get("WARDROUND_DATA", "../shared/data"))
DIGESTS = {
    "heart": "26d08d821714b309929f08745cf9a9a5edc8a134cd438e7008a1d8912a486248",
    "heart-uci": "e86532c660972358dcbaedf319518f024881a1eff7c95660e21dac3390e8c02b",
    "reports": "1819031281686fcd9ad1367409492928b7fdb826753047a365a7d89ccc95220d",
    "ultrasound": "94bee9f06597673adcef47a5dd090e2bb5e63c927d6a2b7e5d930756a710af6a",
    "entities": "d0b79f12a248db768018339b4e0dd7eff55fb2a75eda986891866204d800f493",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WARDROUND_DATA", raising=False)
    return tmp_path / "cache" / "data"


@pytest.fixture
def tiny(monkeypatch):
    """The heart set with a pinned source of two rows."""
    entry = entry_named("heart")
    header = ",".join(["id", *(c if c != "hospital" else "dataset" for c in entry_columns())])
    source = f"{header}\n" + "".join(f"{row},Cleveland{',1' * 14}\n" for row in (1, 2))
    tiny = dataclasses.replace(
        entry, sources={"heart_disease_uci.csv": sha256_hex(source.encode())}, package=None
    )
    monkeypatch.setitem(ENTRIES, "heart", tiny)
    return source


def entry_columns() -> tuple[str, ...]:
    from wardround_client.data.prepare.heart import COLUMNS

    return COLUMNS[1:]


def _needs(name: str) -> None:
    entry = entry_named(name)
    if any(path is None for path in catalogue.source_paths(entry, RAW).values()):
        pytest.skip(f"needs the source files of {name} (WARDROUND_DATA or {entry.obtain})")


@pytest.mark.parametrize("name", DIGESTS)
def test_a_set_is_prepared_with_the_same_bytes_everywhere(name, cache):
    _needs(name)
    prepared = catalogue.find(name, RAW)
    assert DIGESTS[name] in prepared.description.files.values()
    assert prepared.path.is_relative_to(cache / name)
    assert prepared.description.licence
    assert prepared.description.citation


def test_heart_uci_has_flambys_rows_and_parts():
    _needs("heart-uci")
    prepared = catalogue.find("heart-uci", RAW)
    hospitals = ("cleveland", "hungarian", "switzerland", "va")
    federation = FederationSpec.model_validate(
        {
            "federation": {"name": "f", "sites": hospitals},
            "data": {
                "modality": "tabular",
                "numeric": ("age", "cp_2", "restecg_2", "flamby_restecg_text_0"),
                "label": "num",
                "label_map": {"0": "no", "1": "yes", "2": "yes", "3": "yes", "4": "yes"},
                "subject": "id",
                "split": {"kind": "column", "column": "part"},
                "missing": "drop",
            },
            "task": {"kind": "classification", "labels": ("no", "yes")},
        }
    )
    part = {
        "partition": {
            "kind": "column",
            "column": "hospital",
            "values": {h: (h,) for h in hospitals},
        },
        "sites": hospitals,
    }
    sites = [
        SiteSpec.model_validate(
            {"name": h, "data": {"format": "csv", "path": str(prepared.path), "shared_part": part}}
        )
        for h in hospitals
    ]
    loaded = [load_site(federation, site, Path()) for site in sites]
    counts = [(len(each.train), len(each.test)) for each in loaded]
    assert counts == [(199, 104), (172, 89), (30, 16), (85, 45)]
    one_class = ["one_class" in {finding.code for finding in each.findings} for each in loaded]
    assert one_class == [False, False, True, False]
    pooled = load_pooled(federation, sites[0], Path())
    assert (len(pooled.train), len(pooled.test)) == (486, 254)


def test_the_source_is_only_read_and_the_set_prepared_once(tiny, tmp_path, cache, monkeypatch):
    raw = tmp_path / "raw" / "heart"
    raw.mkdir(parents=True)
    (raw / "heart_disease_uci.csv").write_text(tiny)
    first = catalogue.find("heart", raw.parent)
    assert [path.name for path in raw.iterdir()] == ["heart_disease_uci.csv"]
    assert sorted(path.name for path in cache.iterdir()) == ["heart"]
    monkeypatch.setattr(catalogue, "write_set", lambda *_: pytest.fail("prepared again"))
    assert catalogue.find("heart", None).path == first.path


def test_refuses_a_source_with_another_digest_and_writes_nothing(tiny, tmp_path, cache):
    (tmp_path / "heart_disease_uci.csv").write_text(tiny.replace("1", "2", 1))
    with pytest.raises(DataError, match="pinned file has") as caught:
        catalogue.find("heart", tmp_path)
    assert caught.value.code == "wrong_digest"
    assert not cache.exists()


@pytest.mark.parametrize("name", ["heart", "heart-uci"])
def test_a_missing_source_is_named_with_its_digest_and_how_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError) as caught:
        catalogue.find(name, tmp_path)
    assert caught.value.code == "missing_source"
    entry = entry_named(name)
    assert all(digest in str(caught.value) for digest in entry.sources.values())
    assert entry.obtain[1:] in str(caught.value)


def test_refuses_an_unknown_set_naming_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="heart, heart-uci"):
        catalogue.find("hart")
    with pytest.raises(DataError, match=r"dataset\.toml"):
        catalogue.locate("hart", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "gone", "no description", "older recipe"])
def test_a_damaged_half_or_older_set_is_never_taken_for_done(tiny, tmp_path, cache, damage):
    (tmp_path / "heart_disease_uci.csv").write_text(tiny)
    good = catalogue.find("heart", tmp_path).path.read_bytes()
    toml = cache / "heart" / "dataset.toml"
    if damage == "cut":
        (cache / "heart" / "data.csv").write_bytes(good[:-5])
    elif damage == "gone":
        (cache / "heart" / "data.csv").unlink()
    elif damage == "no description":
        toml.unlink()
    else:
        toml.write_text(toml.read_text().replace("recipe = ", 'recipe = "0" #'))
    assert catalogue.ready(entry_named("heart")) is None
    assert catalogue.find("heart", tmp_path).path.read_bytes() == good
    assert sorted(path.name for path in cache.iterdir()) == ["heart"]


def test_a_failure_while_writing_leaves_nothing_behind(tiny, tmp_path, cache, monkeypatch):
    (tmp_path / "heart_disease_uci.csv").write_text(tiny)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_file", full)
    with pytest.raises(DataError, match="No space left") as caught:
        catalogue.find("heart", tmp_path)
    assert caught.value.code == "store_not_writable"
    assert list(cache.iterdir()) == []


def test_a_simulation_may_name_a_folder_of_its_own(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "rows.csv").write_text("a\n1\n")
    (folder / "dataset.toml").write_text('format = "csv"\npath = "rows.csv"\n')
    found = catalogue.locate("mine", tmp_path)
    assert (found.name, found.format, found.path) == ("mine", "csv", folder / "rows.csv")


@pytest.mark.parametrize(
    ("toml", "code"),
    [
        ('format = "xml"\npath = "rows.csv"\n', "dataset_malformed"),
        ('format = "csv"\n', "dataset_malformed"),
        ("format = ", "dataset_malformed"),
        ('format = "csv"\npath = "other.csv"\n', "dataset_damaged"),
        (
            f'format = "csv"\npath = "rows.csv"\n[files]\n"rows.csv" = "{"0" * 64}"\n',
            "dataset_damaged",
        ),
    ],
)
def test_refuses_a_folder_whose_description_is_wrong(tmp_path, toml, code):
    (tmp_path / "rows.csv").write_text("a\n1\n")
    (tmp_path / "dataset.toml").write_text(toml)
    with pytest.raises(DataError) as caught:
        catalogue.locate(".", tmp_path)
    assert caught.value.code == code


def _report(findings: str, *coded: str) -> bytes:
    majors = "".join(f"<major>{code}</major>" for code in coded)
    return (
        f'<e><uId id="CXR3"/><AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">Secret.</AbstractText><MeSH>{majors}</MeSH></e>'
    ).encode()


def test_a_report_gives_its_findings_only():
    assert report_row(_report(" Clear\n lungs. ", "normal")) == (
        "CXR3",
        "CXR3",
        "Clear lungs.",
        "normal",
    )
    abnormal = report_row(_report("Opacity.", "normal", "Opacity/lung"))
    assert abnormal is not None
    assert abnormal[3] == "abnormal"
    assert report_row(_report("", "normal")) is None


def test_refuses_a_report_that_declares_entities():
    bomb = b'<!DOCTYPE e [<!ENTITY a "b">]>' + _report("&a;")
    with pytest.raises(DataError) as caught:
        report_row(bomb)
    assert caught.value.code == "source_corrupt"


def test_the_command_lists_and_prepares(tiny, tmp_path):
    (tmp_path / "heart_disease_uci.csv").write_text(tiny)
    run = CliRunner()
    listed = run.invoke(command, ["list", "--data", str(tmp_path), "--json"])
    states = {row["name"]: row["state"] for row in json.loads(listed.output)}
    assert set(states) == set(DIGESTS)
    assert states["heart"].startswith("available")
    got = run.invoke(command, ["get", "heart", "--from", str(tmp_path), "--json"])
    assert Path(json.loads(got.output)["path"]).is_file()
    assert "prepared" in run.invoke(command, ["list"]).output
    failed = run.invoke(command, ["get", "nothing"])
    assert isinstance(failed.exception, DataError)
