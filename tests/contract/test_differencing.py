"""Two answers about nearly the same patients: the second one does not leave, over runs and restarts."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.airlocks import Hospital
from tests.policies import write_policy
from tests.support import write_dataset
from wardround_client.data.identities import Identities, digest64
from wardround_client.policy.cohorts import Cohorts
from wardround_client.policy.rules import PolicyError
from wardround_common.errors import IntegrityError

K, TRAINED, ROWS = 5, 40, 50
KINDS = ("describe", "moments", "gram", "train")
"""Whose answers are about the training patients."""


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    split = {"kind": "column", "column": "part", "train": ["train"], "test": ["test"]}
    made = Hospital(tmp_path, data={"split": split, "validation_fraction": 0.0})
    without(made, ())
    write_policy(tmp_path, limits__min_cell=K, limits__min_subjects=K)
    return made


def without(hospital: Hospital, gone: Sequence[int]) -> None:
    """The site's table without some of its patients, from now on."""
    write_dataset(hospital.folder / "data", ["a", "b", "c"], rows=ROWS)
    table = hospital.folder / "data" / "table.csv"
    head, *rows = table.read_text().splitlines()
    names = tuple(f"a{row}," for row in gone)
    lines = [f"{head},part"]
    for row in rows:
        held_out = int(row.split(",")[0][1:]) >= TRAINED
        if not row.startswith(names or "#"):
            lines.append(f"{row},{'test' if held_out else 'train'}")
    table.write_text("\n".join(lines) + "\n")


def codes(hospital: Hospital, run: int) -> dict[str, str]:
    """What a worker that starts now says to each kind of question of another run."""
    said = {}
    with hospital.airlock() as airlock:
        for step, kind in enumerate(KINDS):
            asked = hospital.question(kind, step=step, run=f"{run:016x}")
            said[kind] = airlock.ask(asked).failure
    return said


def changes() -> Iterator[tuple[int, ...]]:
    """Patients to leave out: too few of them to hide among."""
    for size in range(1, K):
        for first in range(0, TRAINED - size, 7):
            yield tuple(range(first, first + size))


def test_no_answer_tells_apart_fewer_patients_than_a_cell_has(hospital: Hospital) -> None:
    assert set(codes(hospital, 0).values()) == {""}
    said: list[str] = []
    for run, gone in enumerate(changes(), start=1):
        without(hospital, gone)
        said += codes(hospital, run).values()
    assert len(said) > 80
    assert set(said) == {"policy_differencing"}
    without(hospital, ())
    assert set(codes(hospital, 900).values()) == {""}, "the data is as it was"


def test_enough_patients_may_have_changed(hospital: Hospital) -> None:
    assert set(codes(hospital, 0).values()) == {""}
    without(hospital, range(20))
    assert set(codes(hospital, 1).values()) == {""}


def test_twin_without_it_one_patient_is_the_difference_of_two_sums(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cohorts, "check", lambda *_: None)
    sums = []
    for run, gone in enumerate(((), (3,))):
        without(hospital, gone)
        with hospital.airlock() as airlock:
            got = airlock.ask(hospital.question("moments", run=f"{run:016x}"))
        assert got.failure == ""
        sums.append(np.frombuffer(got.array, dtype="<f8").reshape(3, -1))
    without(hospital, ())
    rows = (hospital.folder / "data" / "table.csv").read_text().splitlines()
    (row,) = (row.split(",") for row in rows if row.startswith("a3,"))
    (count, *_), (x1, x2), _ = sums[0] - sums[1]
    assert (count, f"{x1:.4f}", f"{x2:.4f}") == (1.0, row[2], row[3])


def people(*numbers: int) -> Identities:
    return np.array([digest64(str(number).encode()) for number in numbers], dtype=np.uint64)


def test_sets_are_remembered_over_restarts_and_a_damaged_one_stops_everything(
    tmp_path: Path,
) -> None:
    Cohorts(tmp_path / "c").keep({"training": people(*range(30))})
    again = Cohorts(tmp_path / "c")
    again.check({"training": people(*range(30), *range(10))}, K)
    again.check({"training": people(*range(25))}, K)
    for almost in (people(*range(29)), people(*range(34)), people(*range(1, 31))):
        with pytest.raises(PolicyError) as caught:
            again.check({"training": almost}, K)
        assert caught.value.code == "policy_differencing"
    (kept,) = (tmp_path / "c").glob("*.set")
    raw = {digest64(str(number).encode()).to_bytes(8, "little") for number in range(30)}
    found = kept.read_bytes()
    assert not any(found[at : at + 8] in raw for at in range(0, len(found), 8)), "keyed"
    kept.write_bytes(found[:-8])
    with pytest.raises(IntegrityError):
        Cohorts(tmp_path / "c")
