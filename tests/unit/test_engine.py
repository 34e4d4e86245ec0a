"""The round engine over a carrier in memory: quorum, deadline, refusals, late replies, resume."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.malformed import MALFORMED
from tests.support import (
    Arrival,
    FakeCarrier,
    FakeSite,
    Silent,
    StubModel,
    fake_sites,
    federation,
    in_kind,
    never,
    run_engine,
    with_update,
)
from wardround_common.errors import RoundError
from wardround_common.types import sha256_hex
from wardround_server.rounds.journal import Journal
from wardround_server.rounds.outcome import RunOutcome


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses power; tests/fault does."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _of_round(outcome: RunOutcome, round_: int) -> Any:
    return outcome.rounds[round_ - 1].train


def _mean_update(sites: list[FakeSite], step: Any) -> np.ndarray:
    updates = [np.asarray(site.update(step.manifest), dtype=np.float64) for site in sites]
    return np.average(updates, axis=0, weights=[site.subjects for site in sites])


def test_a_round_moves_the_state_by_the_mean_weighted_by_subjects(tmp_path: Path) -> None:
    spec = federation(rounds={"count": 2})
    outcome = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path)
    moved = sum(_mean_update(fake_sites(spec), _of_round(outcome, r)) for r in (1, 2))
    np.testing.assert_allclose(outcome.state.values, moved, rtol=1e-6)
    assert outcome.model_round == 2
    assert [step.manifest.kind for step in outcome.steps] == [
        "describe",
        "train",
        "train",
        "compare",
    ]


def test_any_order_of_arrival_gives_one_model(tmp_path: Path) -> None:
    spec = federation(federation={"sites": [f"s{i}" for i in range(12)]})
    digests = {
        run_engine(
            spec, FakeCarrier(fake_sites(spec), seed=seed), tmp_path / str(seed)
        ).state.digest()
        for seed in range(6)
    }
    assert len(digests) == 1


def test_only_sites_of_the_roster_are_asked(tmp_path: Path) -> None:
    spec = federation()
    carrier = FakeCarrier([*fake_sites(spec), FakeSite("elsewhere")])
    run_engine(spec, carrier, tmp_path)
    assert {site for question in carrier.questions for site in question.sites} == {"a", "b", "c"}
    assert carrier.sites["elsewhere"].asked == []


def test_one_site_of_every_malformed_kind_changes_nothing_for_the_others(tmp_path: Path) -> None:
    evil = {f"evil-{i}": kind for i, kind in enumerate(MALFORMED)}
    roster = {"federation": {"sites": ["a", *evil, "b", "c"]}, "rounds": {"quorum_sites": 3}}
    spec = federation(**roster)

    def run(name: str, faults: dict[str, Any]) -> RunOutcome:
        return run_engine(spec, FakeCarrier(fake_sites(spec), faults, seed=1), tmp_path / name)

    attacked = run(
        "attacked",
        {site: in_kind("train", MALFORMED[kind].fault, 2) for site, kind in evil.items()},
    )
    without = run("without", {site: in_kind("train", never, 2) for site in evil})
    honest = run("honest", {})

    refused = dict(_of_round(attacked, 2).refused)
    assert refused == {site: MALFORMED[kind].code for site, kind in evil.items()}, "N of N"
    assert set(_of_round(attacked, 2).contributions) == {"a", "b", "c"}
    assert attacked.state.digest() == without.state.digest()
    assert attacked.state.digest() != honest.state.digest(), "the round would have counted them"
    for round_ in (1, 3):
        assert len(_of_round(attacked, round_).contributions) == len(evil) + 3
    stored = list(Journal(tmp_path / "attacked").find("answer_refused"))
    assert {str(r["site"]): str(r["code"]) for r in stored} == refused


@pytest.mark.parametrize("kind", ["NaN first", "a huge norm", "weight above the cap"])
def test_without_admission_the_same_bytes_would_harm_the_model(tmp_path: Path, kind: str) -> None:
    """The failing twin of the defence: a plain mean of whatever arrived."""
    spec = federation(rounds={"count": 1, "quorum_sites": 2})
    arrived: dict[str, dict[str, Arrival]] = {"honest": {}, "evil": {}}

    def attack(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        evil = MALFORMED[kind].make(honest, past)
        arrived["honest"][honest.site], arrived["evil"][honest.site] = honest, evil
        return [evil]

    def keep(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        arrived["honest"][honest.site] = arrived["evil"][honest.site] = honest
        return [honest]

    faults = {
        "a": in_kind("train", keep),
        "b": in_kind("train", keep),
        "c": in_kind("train", attack),
    }
    defended = run_engine(spec, FakeCarrier(fake_sites(spec), faults), tmp_path).state.values

    def plain_mean(arrivals: dict[str, Arrival]) -> np.ndarray:
        weights = [json.loads(a.receipt or b"")["num_subjects"] for a in arrivals.values()]
        return np.average([np.asarray(a.data) for a in arrivals.values()], axis=0, weights=weights)

    good, bad = plain_mean(arrived["honest"]), plain_mean(arrived["evil"])
    assert np.abs(defended).max() < 10
    assert np.abs(good).max() < 10
    harm = {
        "NaN first": not np.isfinite(bad).all(),
        "a huge norm": float(np.linalg.norm(bad)) > 50,
        "weight above the cap": bool(
            np.abs(bad - np.asarray(arrived["honest"]["c"].data)).max() < 1e-2
        ),
    }
    assert harm[kind], "one site alone decides"


@pytest.mark.parametrize("kind", ["moments", "gram"])
def test_impossible_sums_of_one_site_do_not_end_the_run(tmp_path: Path, kind: str) -> None:
    spec = federation(
        exact_head={"enabled": True, "ridge": 1.0},
        data={"standardise": "federated"},
        rounds={"quorum_sites": 2},
    )

    def negative(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        return [with_update(honest, -np.asarray(honest.data))]

    def run(name: str, fault: Any) -> RunOutcome:
        carrier = FakeCarrier(fake_sites(spec), {"b": in_kind(kind, fault)})
        return run_engine(spec, carrier, tmp_path / name)

    attacked, without = run("attacked", negative), run("without", never)
    (step,) = [s for s in attacked.steps if s.manifest.kind == kind]
    assert step.refused == [("b", "impossible_sums")]
    assert attacked.moments == without.moments
    assert attacked.exact_head is not None
    assert without.exact_head is not None
    np.testing.assert_array_equal(attacked.exact_head.weight, without.exact_head.weight)


def test_sums_of_sites_are_gone_even_if_nothing_is_trained(tmp_path: Path) -> None:
    spec = federation(exact_head={"enabled": True}, rounds={"count": 0})
    run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path)
    assert len(list((tmp_path / "objects").iterdir())) == 1


def test_a_round_without_its_quorum_of_sites_is_abandoned_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    spec = federation(rounds={"quorum_sites": 3})

    def run(name: str, faults: dict[str, Any]) -> RunOutcome:
        return run_engine(spec, FakeCarrier(fake_sites(spec), faults), tmp_path / name)

    outcome = run("one-missing", {"b": in_kind("train", never, 2)})
    second = _of_round(outcome, 2)
    assert (second.abandoned, second.missing) == (True, ["b"])
    assert outcome.rounds[1].loss is None
    assert outcome.model_round == 3
    expected = sum(_mean_update(fake_sites(spec), _of_round(outcome, r)) for r in (1, 3))
    np.testing.assert_allclose(outcome.state.values, expected, rtol=1e-6)
    third = _of_round(outcome, 3).manifest
    first = _of_round(outcome, 1).manifest
    assert third.state_sha256 == second.manifest.state_sha256 != first.state_sha256
    assert second.manifest.step < third.step, "numbers of abandoned steps are not used again"


def test_a_round_without_its_quorum_of_subjects_is_abandoned(tmp_path: Path) -> None:
    spec = federation(rounds={"quorum_sites": 1, "quorum_subjects": 23})
    faults = {"c": in_kind("train", never)}
    tables = {"rounds": {"quorum_sites": 1, "quorum_subjects": 21}}
    assert (
        _of_round(
            run_engine(
                spec,
                FakeCarrier(fake_sites(spec), {"a": in_kind("train", never, 1)}),
                tmp_path / "bc",
            ),
            1,
        ).abandoned
        is False
    ), "11 + 12 subjects suffice"
    abandoned = run_engine(
        federation(rounds={**tables["rounds"], "quorum_subjects": 22, "max_abandoned": 3}),
        FakeCarrier(fake_sites(spec), faults),
        tmp_path / "ab",
    )
    assert all(record.train.abandoned for record in abandoned.rounds), "10 + 11 do not"
    assert abandoned.model_round == 0
    assert not abandoned.state.values.any(), "the model has not moved"


def test_too_many_abandoned_rounds_end_the_run_and_name_who_was_missing(tmp_path: Path) -> None:
    spec = federation(rounds={"count": 9, "max_abandoned": 1})
    faults = {
        "b": in_kind("train", never),
        "c": in_kind("train", MALFORMED["NaN last"].fault),
    }
    carrier = FakeCarrier(fake_sites(spec), faults)
    with pytest.raises(RoundError) as caught:
        run_engine(spec, carrier, tmp_path)
    assert caught.value.code == "quorum_not_met"
    assert "b (no answer)" in str(caught.value)
    assert "c (not_finite)" in str(caught.value)
    assert [q.round for q in carrier.questions if q.kind == "train"] == [1, 2]


def test_abandoned_rounds_count_only_in_a_row(tmp_path: Path) -> None:
    spec = federation(rounds={"count": 5, "max_abandoned": 1})

    def every_other(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        return [] if json.loads(honest.receipt or b"")["round"] % 2 else [honest]

    faults = {"a": in_kind("train", every_other)}
    outcome = run_engine(spec, FakeCarrier(fake_sites(spec), faults), tmp_path)
    assert [r.train.abandoned for r in outcome.rounds] == [True, False, True, False, True]


def test_a_run_that_ended_for_want_of_sites_goes_on_once_they_are_back(tmp_path: Path) -> None:
    spec = federation(rounds={"max_abandoned": 0})
    with pytest.raises(RoundError):
        run_engine(
            spec, FakeCarrier(fake_sites(spec), {"b": in_kind("train", never, 2)}), tmp_path / "r"
        )
    carrier = FakeCarrier(fake_sites(spec))
    resumed = run_engine(spec, carrier, tmp_path / "r")
    whole = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path / "whole")
    assert resumed.state.digest() == whole.state.digest()
    asked = [(q.kind, q.round, q.sites) for q in carrier.questions]
    assert asked[0] == ("train", 2, ("b",)), "who had answered is not asked again"


@pytest.mark.parametrize("kind", ["describe", "gram", "moments"])
def test_steps_before_training_need_the_quorum(tmp_path: Path, kind: str) -> None:
    spec = federation(exact_head={"enabled": True, "ridge": 1.0}, data={"standardise": "federated"})
    faults = {"c": in_kind(kind, never)}
    with pytest.raises(RoundError, match="c \\(no answer\\)") as caught:
        run_engine(spec, FakeCarrier(fake_sites(spec), faults), tmp_path)
    assert caught.value.code == "quorum_not_met"


def test_a_late_reply_is_recorded_and_not_used(tmp_path: Path) -> None:
    spec = federation(rounds={"quorum_sites": 2})

    def late(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        receipt = json.loads(honest.receipt or b"")
        if receipt["kind"] == "train" and receipt["round"] == 1:
            return []
        if receipt["kind"] == "train" and receipt["round"] == 2:
            return [past[-1], honest]
        return [honest]

    outcome = run_engine(spec, FakeCarrier(fake_sites(spec), {"b": late}), tmp_path / "late")
    without = run_engine(
        spec,
        FakeCarrier(fake_sites(spec), {"b": in_kind("train", never, 1)}),
        tmp_path / "without",
    )
    assert outcome.state.digest() == without.state.digest()
    assert _of_round(outcome, 1).missing == ["b"]
    assert _of_round(outcome, 2).late == ["b"]
    assert "b" in _of_round(outcome, 2).contributions
    (record,) = Journal(tmp_path / "late").find("answer_late")
    assert (record["site"], record["step"]) == ("b", _of_round(outcome, 1).manifest.step)


def test_a_second_answer_counts_once_and_the_site_is_not_called_refused(tmp_path: Path) -> None:
    spec = federation()
    twice = in_kind("train", lambda honest, past: [honest, honest])
    observer = Silent()
    outcome = run_engine(
        spec, FakeCarrier(fake_sites(spec), {"b": twice}), tmp_path / "twice", observer=observer
    )
    once = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path / "once")
    assert outcome.state.digest() == once.state.digest()
    assert ("b", "duplicate") in observer.events
    assert ["b", "duplicate"] in [list(pair) for pair in _of_round(outcome, 1).refused]


def test_a_site_whose_answer_was_refused_gets_no_second_try_in_the_step(tmp_path: Path) -> None:
    spec = federation(rounds={"quorum_sites": 2})
    bad = MALFORMED["NaN first"]
    again = in_kind("train", lambda honest, past: [bad.make(honest, past), honest], 1)
    outcome = run_engine(spec, FakeCarrier(fake_sites(spec), {"b": again}), tmp_path)
    first = _of_round(outcome, 1)
    assert "b" not in first.contributions
    assert sorted(code for _, code in first.refused) == ["duplicate", "not_finite"]


def test_a_stranger_is_refused_and_the_cohort_unharmed(tmp_path: Path) -> None:
    spec = federation()

    def speaks_for_another(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        stranger = FakeSite("stranger").reply(sites[0].asked[-1])
        return [stranger, honest]

    sites = fake_sites(spec)
    outcome = run_engine(
        spec, FakeCarrier(sites, {"a": in_kind("train", speaks_for_another)}), tmp_path / "s"
    )
    assert ("stranger", "not_in_cohort") in _of_round(outcome, 1).refused
    plain = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path / "p")
    assert outcome.state.digest() == plain.state.digest()


def test_an_unknown_site_fails_its_steps_and_the_quorum_decides(tmp_path: Path) -> None:
    spec = federation(rounds={"quorum_sites": 2})
    outcome = run_engine(spec, FakeCarrier(fake_sites(spec)[:2]), tmp_path)
    assert _of_round(outcome, 1).refused == [("c", "site_unknown")]
    assert outcome.model_round == 3


def test_early_stopping_keeps_the_best_model(tmp_path: Path) -> None:
    metrics = {1: 0.6, 2: 0.9, 3: 0.8, 4: 0.9, 5: 0.99}
    spec = federation(data={"validation_fraction": 0.2}, rounds={"count": 5, "early_stopping": 2})
    sites = [FakeSite(name, 10 + i, metrics) for i, name in enumerate("abc")]
    outcome = run_engine(spec, FakeCarrier(sites), tmp_path / "stopped")
    two = federation(data={"validation_fraction": 0.2}, rounds={"count": 2})
    after_two = run_engine(
        two, FakeCarrier([FakeSite(n, 10 + i) for i, n in enumerate("abc")]), tmp_path / "two"
    )
    assert [record.round for record in outcome.rounds] == [1, 2, 3, 4]
    assert outcome.model_round == 2
    assert outcome.state.digest() == after_two.state.digest()
    assert outcome.compared is not None
    assert outcome.compared.manifest.round == 2, "what is compared is the kept model"


def test_validation_is_the_mean_over_subjects_and_rounds_are_spaced(tmp_path: Path) -> None:
    spec = federation(data={"validation_fraction": 0.2}, evaluation={"every_rounds": 2})
    sites = [FakeSite(name, 10, {2: m}) for name, m in zip("abc", (0.2, 0.6, 1.0), strict=True)]
    outcome = run_engine(spec, FakeCarrier(sites), tmp_path)
    assert [r.metric for r in outcome.rounds] == [None, pytest.approx(0.6), None]


def test_gradual_unfreezing_exchanges_only_the_rounds_own_set(tmp_path: Path) -> None:
    spec = federation(rounds={"count": 3})
    model = StubModel(spec, num_late=2)
    carrier = FakeCarrier(fake_sites(spec))
    outcome = run_engine(spec, carrier, tmp_path, model=model)
    trained = [q for q in carrier.questions if q.kind == "train"]
    assert [len(q.state) for q in trained] == [8, 14, 14]
    assert [q.reply.num_values for q in trained] == [8, 14, 14]
    first = _mean_update(fake_sites(spec), _of_round(outcome, 1))
    np.testing.assert_allclose(trained[1].state, np.concatenate([np.zeros(6), first]), rtol=1e-6)
    assert outcome.state.layout == model.layouts[1]


def test_what_was_sent_is_what_the_manifest_names(tmp_path: Path) -> None:
    spec = federation()
    carrier = FakeCarrier(fake_sites(spec))
    run_engine(spec, carrier, tmp_path)
    for question in carrier.questions:
        named = json.loads(question.manifest)["state_sha256"]
        assert named == sha256_hex(np.asarray(question.state).tobytes())


def test_a_finished_run_asks_nobody_and_gives_the_same_model(tmp_path: Path) -> None:
    spec = federation(
        data={"validation_fraction": 0.2, "standardise": "federated"},
        exact_head={"enabled": True},
        head={"warm_start": True},
        rounds={"early_stopping": 1},
    )
    first = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path)
    carrier = FakeCarrier(fake_sites(spec))
    again = run_engine(spec, carrier, tmp_path)
    assert carrier.questions == []
    assert again.state.digest() == first.state.digest()
    assert again.moments == first.moments
    assert again.rounds[-1].loss == first.rounds[-1].loss
    assert [s.seconds for s in again.steps] == [s.seconds for s in first.steps]


@pytest.mark.parametrize("store_updates", [True, False])
def test_a_run_stopped_amid_a_round_goes_on_to_the_same_model(
    tmp_path: Path, store_updates: bool
) -> None:
    spec = federation(data={"validation_fraction": 0.2})

    class Stop(Exception):  # noqa: N818
        pass

    def stop(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        raise Stop

    faults = {"c": in_kind("train", stop, 3)}
    with pytest.raises(Stop):
        run_engine(
            spec,
            FakeCarrier(fake_sites(spec), faults),
            tmp_path / "stopped",
            store_updates=store_updates,
        )
    carrier = FakeCarrier(fake_sites(spec))
    resumed = run_engine(spec, carrier, tmp_path / "stopped", store_updates=store_updates)
    whole = run_engine(spec, FakeCarrier(fake_sites(spec)), tmp_path / "whole")
    assert resumed.state.digest() == whole.state.digest()
    first = carrier.questions[0]
    assert (first.kind, first.round) == ("train", 3)
    assert first.sites == (("c",) if store_updates else ("a", "b", "c"))


def test_of_a_finished_run_the_last_state_is_kept_and_no_update(tmp_path: Path) -> None:
    spec = federation()
    carrier = FakeCarrier(fake_sites(spec))
    outcome = run_engine(spec, carrier, tmp_path)
    journal = Journal(tmp_path)
    kept = {path.name for path in (tmp_path / "objects").iterdir()}
    updates = {str(r["update"]) for r in journal.find("answer_admitted") if r["update"]}
    produced = {str(r["produced"]) for r in journal.find("step_finished") if r["produced"]}
    assert len(updates) == 9
    assert kept == {outcome.state.digest()} < produced


@pytest.mark.parametrize("coding", ["bf16", "int8", "top-k", "powersgd"])
def test_coded_updates_are_stored_coded_and_folded_decoded_in_any_order(
    tmp_path: Path, coding: str
) -> None:
    spec = federation(exchange={"update": {"coding": coding}}, rounds={"count": 2})
    digests = set()
    for seed in (None, 1, 2, 3):
        carrier = FakeCarrier(fake_sites(spec), seed=seed)
        outcome = run_engine(spec, carrier, tmp_path / str(seed))
        digests.add(outcome.state.digest())
        stub = StubModel(spec)
        codec = stub.codec(stub.layout(1))
        assert codec is not None
        receipts = outcome.rounds[0].train.bytes_up - 3 * codec.num_bytes
        assert 0 < receipts < 3 * 1000
    assert len(digests) == 1
    plain = federation(rounds={"count": 2})
    exact = run_engine(plain, FakeCarrier(fake_sites(plain)), tmp_path / "plain")
    loses = coding != "powersgd"  # which leaves matrices as small as this head whole
    assert (exact.state.digest() not in digests) is loses
