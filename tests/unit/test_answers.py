"""Answers that were given are found again whole, or refused; they are never made a second time."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from wardround_client.worker.answers import KEPT_RUNS, Answers, Stored
from wardround_common.errors import IntegrityError, WireError
from wardround_common.types import sha256_hex
from wardround_common.wire.step import Receipt, StepManifest

RUN = "0123456789abcdef"


def manifest(step: int = 3, run: str = RUN, **fields: object) -> StepManifest:
    return StepManifest(
        run=run,
        step=step,
        kind="train",
        round=1,
        sites=("a",),
        spec_sha256="1" * 64,
        backbone_sha256=None,
        state_sha256="2" * 64,
        update_norm=1.0,
        subjects=10,
        bound=1.0,
        seed=3,
    ).model_copy(update=fields)


def receipt(asked: StepManifest, array: bytes | None) -> bytes:
    return Receipt(
        run=asked.run,
        step=asked.step,
        kind=asked.kind,
        round=asked.round,
        manifest_sha256=asked.digest(),
        site="a",
        update_sha256=None if array is None else sha256_hex(array),
        num_subjects=3,
        num_examples=3,
    ).to_bytes()


def keep(answers: Answers, step: int, run: str = RUN, array: bytes | None = b"array") -> Stored:
    asked = manifest(step, run)
    return answers.keep(asked, receipt(asked, array), array)


def content(stored: Stored | None) -> tuple[bytes, bytes | None]:
    assert stored is not None
    with stored.opened() as file:
        return stored.receipt, None if file is None else file.read()


@pytest.mark.parametrize("array", [b"array", b"x" * 3_000_000, None])
def test_an_answer_is_found_again_by_another_process(tmp_path: Path, array: bytes | None) -> None:
    kept = keep(Answers(tmp_path), 3, array=array)
    found = Answers(tmp_path).find(manifest(3))
    assert found == kept
    assert content(found) == (receipt(manifest(3), array), array)


def test_only_the_very_same_question_has_it(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    keep(answers, 3)
    assert answers.find(manifest(3, bound=2.0)) is None
    assert answers.find(manifest(4)) is None
    assert answers.find(manifest(3, run="f" * 16)) is None


def _spoil_array(folder: Path) -> None:
    (path,) = folder.glob("*/*.array")
    path.write_bytes(b"arraz")


def _cut_array(folder: Path) -> None:
    (path,) = folder.glob("*/*.array")
    path.write_bytes(b"arra")


def _lose_array(folder: Path) -> None:
    (path,) = folder.glob("*/*.array")
    path.unlink()


def _swap_receipt(folder: Path) -> None:
    (path,) = folder.glob("*/*.receipt")
    path.write_bytes(receipt(manifest(3, bound=2.0), b"array"))


@pytest.mark.parametrize("spoil", [_spoil_array, _cut_array, _lose_array, _swap_receipt])
def test_a_damaged_answer_is_no_answer(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    keep(Answers(tmp_path), 3)
    spoil(tmp_path)
    with pytest.raises(IntegrityError) as caught:
        Answers(tmp_path).find(manifest(3))
    assert caught.value.code == "stored_answer"


def test_the_last_two_steps_of_a_run_are_kept_and_older_ones_are_not_answered_again(
    tmp_path: Path,
) -> None:
    answers = Answers(tmp_path)
    for step in range(5):
        keep(answers, step)
    for again in (answers, Answers(tmp_path)):
        assert content(again.find(manifest(4))) == content(again.find(manifest(4)))
        assert again.find(manifest(3)) is not None
        for step in range(3):
            with pytest.raises(WireError) as caught:
                again.find(manifest(step))
            assert caught.value.code == "answer_forgotten"
    assert len(list(tmp_path.glob("*/*"))) == 4


def test_a_step_that_this_site_missed_can_still_be_asked(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    keep(answers, 5)
    assert answers.find(manifest(4)) is None, "it may be computed: it never was"


def test_the_newest_runs_are_kept_and_how_far_the_others_went_is_remembered(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    runs = [f"{number:016x}" for number in range(KEPT_RUNS + 2)]
    for run in runs:
        keep(answers, 7, run)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(runs[2:])
    for again in (answers, Answers(tmp_path)):
        for step in (0, 7):
            with pytest.raises(WireError) as caught:
                again.find(manifest(step, runs[0]))
            assert caught.value.code == "answer_forgotten"
        assert again.find(manifest(8, runs[0])) is None, "a run that goes on may go on"
        assert again.find(manifest(7, runs[2])) is not None


def test_a_run_that_is_forgotten_twice_is_remembered_to_its_end(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    for step in (7, 9):
        keep(answers, step, "f" * 16)
        for number in range(KEPT_RUNS):
            keep(answers, 0, f"{step}{number:015x}")
    with pytest.raises(WireError):
        answers.find(manifest(9, "f" * 16))


def test_an_answer_that_is_being_read_survives_its_deletion_and_a_deleted_one_is_refused(
    tmp_path: Path,
) -> None:
    answers = Answers(tmp_path)
    old = keep(answers, 0)
    with old.opened() as file:
        keep(answers, 1)
        keep(answers, 2)
        assert file is not None
        assert file.read() == b"array"
    with pytest.raises(WireError) as caught, old.opened():
        pass
    assert caught.value.code == "answer_forgotten"


def test_what_was_half_written_is_no_answer_and_goes_with_the_next_one(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    asked = manifest(3)
    folder = answers.open_run(RUN)
    (folder / f".3-{asked.digest()}.receipt.1.tmp").write_bytes(b"half")
    (folder / f"3-{asked.digest()}.array").write_bytes(b"array")
    assert answers.find(asked) is None
    keep(answers, 5)
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {"5"}


def test_answers_are_for_this_user_alone(tmp_path: Path) -> None:
    keep(Answers(tmp_path / "runs"), 3)
    assert (tmp_path / "runs").stat().st_mode & 0o077 == 0


def test_every_folder_on_the_way_to_an_answer_is_durable_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    keep(Answers(tmp_path / "state" / "runs"), 3)
    whole = [tmp_path, tmp_path / "state", tmp_path / "state" / "runs"]
    array = next(place for place, path in enumerate(synced) if path.suffix == ".tmp")
    assert set(whole) <= set(synced[:array])
    assert synced[-1] == whole[-1] / RUN


def test_a_question_asked_while_old_answers_are_deleted_is_answered_or_forgotten(
    tmp_path: Path,
) -> None:
    answers = Answers(tmp_path)
    seen: list[str] = []

    def looking(done: threading.Event) -> None:
        while not done.is_set():
            for step in range(50):
                try:
                    found = answers.find(manifest(step))
                    seen.append("none" if found is None else "whole")
                except WireError as error:
                    seen.append(error.code)
                except Exception as error:  # noqa: BLE001  it is the finding
                    seen.append(repr(error))

    done = threading.Event()
    thread = threading.Thread(target=looking, args=(done,))
    thread.start()
    for step in range(50):
        keep(answers, step, array=b"x" * 1000)
    done.set()
    thread.join()
    assert {"answer_forgotten", "whole"} <= set(seen) <= {"answer_forgotten", "whole", "none"}
