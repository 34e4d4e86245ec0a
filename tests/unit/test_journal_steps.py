"""What the engine keeps in the journal, and what it refuses to go on from."""

import json
from pathlib import Path

import pytest

from tests.support import FakeCarrier, fake_sites, federation, run_engine
from wardround_common.errors import IntegrityError
from wardround_server.rounds.journal import Journal


@pytest.mark.parametrize(
    "other",
    [
        federation(federation={"seed": 4}),
        federation(rounds={"count": 4}),
        federation(federation={"sites": ["a", "c", "b"]}),
    ],
)
def test_a_folder_of_another_federation_is_refused_unchanged(tmp_path: Path, other) -> None:
    spec = federation()
    run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    carrier = FakeCarrier(fake_sites(other))
    with pytest.raises(IntegrityError) as caught:
        run_engine(other, carrier, tmp_path)
    assert caught.value.code == "journal_manifest"
    assert carrier.questions == []
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_a_step_under_way_of_another_federation_is_refused_too(tmp_path: Path) -> None:
    spec = federation()
    run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path)
    log = tmp_path / "journal.jsonl"
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    assert json.loads(log.read_bytes())["kind"] == "step_started"
    other = federation(federation={"seed": 4})
    with pytest.raises(IntegrityError) as caught:
        run_engine(other, FakeCarrier(fake_sites(other)), tmp_path)
    assert caught.value.code == "journal_manifest"


def test_a_damaged_state_ends_the_run_instead_of_going_into_the_model(tmp_path: Path) -> None:
    spec = federation()
    outcome = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path)
    path = tmp_path / "objects" / outcome.state.digest()
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(IntegrityError) as caught:
        run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path)
    assert caught.value.code == "journal_object"


def test_the_object_is_durable_before_the_record_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = Journal.append
    named: list[str] = []

    def checked(self: Journal, kind: str, **fields: object) -> None:
        for key in ("update", "produced"):
            if fields.get(key) is not None:
                named.append(str(fields[key]))
                assert (tmp_path / "objects" / named[-1]).exists()
        appended(self, kind, **fields)

    monkeypatch.setattr(Journal, "append", checked)
    spec = federation()
    run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path)
    assert len(named) == 12, "nine updates and three states"
