"""The benchmarks can be called, compare like with like, and say what they could not measure."""

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import machine, papers, process_tree, run
from benchmarks.local import measure as local_measure
from benchmarks.local.workloads import NAMES as LOCAL_NAMES
from benchmarks.local.workloads import Workload as LocalWorkload
from benchmarks.simulator import __main__ as simulator
from benchmarks.simulator import bare, case, measure, ours, summary
from benchmarks.simulator.rounds import RoundClock
from benchmarks.simulator.workloads import NAMES, RATE, Workload
from wardround_client.training.batches import EncodedSet, shuffled
from wardround_client.training.seeds import derive_seed
from wardround_common.modalities.base import Encoded


def _run(cpu_s: float = 1.0, shift: float = 0.0) -> measure.Run:
    return measure.Run(cpu_s, 2.0, 3.0, 4.0, 5.0, np.ones(4, dtype=np.float32) + shift)


def _case(**runs: list[measure.Run]) -> dict[str, Any]:
    skipped = {} if "flower" in runs else {"flower": measure.NO_RAY}
    workload = Workload("table", 10, 6)
    return summary.summarise(workload, runs, skipped, measure.to_compare(workload, runs))


def test_without_arguments_every_part_is_run_in_full() -> None:
    assert vars(run.arguments([])) == {"quick": False, "only": None}
    assert vars(run.arguments(["--quick", "--only", "simulator"])) == {
        "quick": True,
        "only": "simulator",
    }


def test_a_part_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.arguments(["--only", "nothing"])
    assert "simulator" in capsys.readouterr().err


@pytest.mark.parametrize("part", sorted(run.PARTS))
def test_every_part_is_a_module_with_a_table_in_the_measurements(part: str) -> None:
    assert importlib.util.find_spec(run.PARTS[part]) is not None
    text = papers.MEASUREMENTS.read_text()
    assert text.index(f"<!-- {part} -->\n") < text.index(f"<!-- /{part} -->")


def test_measured_processes_have_one_thread_and_no_telemetry() -> None:
    environment = run.environment()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["FLWR_TELEMETRY_ENABLED"] == environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(run.ROOT)


def test_where_last_bits_grow_parameters_are_compared_after_one_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Workload] = []

    def simulate(name: str, workload: Workload) -> measure.Run:
        asked.append(workload)
        return _run(shift=1e-6 if name == "ours" else 0.0)

    monkeypatch.setattr(measure, "simulate", simulate)
    workload, runs = Workload("resnet18", 10, 5), {"bare": [_run()], "ours": [_run(shift=1e-3)]}
    found = measure.to_compare(workload, runs)
    assert [each.num_rounds for each in asked] == [1, 1]
    case_ = summary.summarise(workload, runs, {}, found)
    assert summary.disagreements([case_]) == []
    final = {name: [each.parameters for each in own] for name, own in runs.items()}
    assert summary.disagreements([summary.summarise(workload, runs, {}, final)]) != []


def test_quick_leaves_cases_out_and_invents_none() -> None:
    assert simulator.arguments(["--quick"]).quick
    assert set(simulator.QUICK) < set(simulator.FULL)


def test_a_case_names_one_of_the_implementations() -> None:
    wanted = case.arguments(["ours", "cnn", "10", "6", "folder"])
    assert (wanted.implementation, wanted.num_sites, wanted.out) == ("ours", 10, Path("folder"))
    with pytest.raises(SystemExit):
        case.arguments(["theirs", "cnn", "10", "6", "folder"])


@pytest.mark.parametrize("name", case.IMPLEMENTATIONS)
def test_every_implementation_can_be_imported_without_ray(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.simulator.{name}").simulate)


@pytest.mark.parametrize("name", NAMES)
def test_the_federation_file_trains_as_the_baselines_do(name: Any) -> None:
    workload = Workload(name, 3, 2)
    spec = workload.federation()
    assert spec.federation.sites == workload.sites
    assert spec.training.optimizer.learning_rate == RATE
    assert spec.training.optimizer.momentum == 0.0
    assert not spec.exact_head.enabled


@pytest.mark.parametrize("name", NAMES)
def test_baselines_see_the_examples_in_the_order_in_which_a_site_does(name: Any) -> None:
    workload = Workload(name, 3, 2)
    inputs, targets = workload.tensors(1)
    data = EncodedSet(Encoded(inputs, targets, torch.arange(len(targets))))
    seed = derive_seed(workload.federation().federation.seed, "train", "site-1")
    first, second = (
        [rows.tolist() for rows in shuffled(data, 16, derive_seed(seed, "shuffle", round_, 0))]
        for round_ in (1, 2)
    )
    assert [rows.tolist() for rows in workload.batches(1, 2)] == second != first


def test_our_simulation_ends_where_the_bare_loop_does() -> None:
    workload = Workload("table", 2, 2)
    clock = RoundClock()
    parameters = ours.simulate(workload, clock)
    assert summary.difference(parameters, bare.simulate(workload, RoundClock())) < 1e-6
    assert len(clock.rounds) == 2
    assert 0 < clock.rounds[1].train_cpu_s < clock.rounds[1].cpu_s


def test_the_first_round_is_kept_out_of_the_medians() -> None:
    rounds = [{"cpu_s": 0.1 * k, "wall_s": k, "train_cpu_s": 0.05 * k} for k in (1000, 2, 2, 4)]
    written = {"rounds": rounds, "first_round_s": 9.0, "memory_mib": 7.0}
    measured = measure.run_of(written, np.zeros(1, dtype=np.float32), num_sites=10)
    assert (measured.cpu_s, measured.wall_s) == pytest.approx((0.2, 2.0))
    assert measured.beyond_training_ms == pytest.approx(10.0)


def test_ratios_are_of_runs_that_followed_one_another() -> None:
    ratios = summary.paired([_run(2.0), _run(30.0)], [_run(1.0), _run(10.0)])
    assert ratios == {"median": 2.5, "min": 2.0, "max": 3.0}


def test_a_simulator_with_another_result_is_found_out() -> None:
    same = _case(bare=[_run()], ours=[_run(shift=1e-7)], flower=[_run()])
    assert summary.disagreements([same]) == []
    other = _case(bare=[_run()], ours=[_run(shift=1e-3)], flower=[_run(shift=float("nan"))])
    assert len(summary.disagreements([other])) == 2


def test_without_ray_flowers_row_says_how_to_get_it() -> None:
    measured = _case(bare=[_run()], ours=[_run(2.0)])
    assert "pip install 'wardround[ray]'" in summary.table([measured])
    assert summary.disagreements([measured]) == []
    assert measured["cpu_flower_of_ours"] is None


def test_every_row_of_the_table_has_every_column() -> None:
    full = _case(bare=[_run()], ours=[_run()], flower=[_run()])
    rows = summary.table([full, _case(bare=[_run()], ours=[_run()])]).splitlines()
    assert len(rows) == 2 + 6
    assert "of a bare loop" in summary.ratios([full])
    assert len({row.count("|") for row in rows}) == 1


def test_only_what_is_between_the_markers_is_replaced(tmp_path: Path) -> None:
    paper = tmp_path / "paper.md"
    paper.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    papers.put(paper, "x", "new\n")
    assert paper.read_text() == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="markers"):
        papers.put(paper, "y", "new")
    assert paper.read_text() == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"


def test_children_belong_to_the_process_tree_until_they_end() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        assert child.pid in process_tree.descendants(os.getpid())
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.pid not in process_tree.descendants(os.getpid())
    assert process_tree.memory_mib() > 1
    assert process_tree.descendants_cpu_seconds() > 0


def test_a_machine_is_named_with_its_versions() -> None:
    text = machine.line(machine.describe())
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "cores" in text


# -- local training ------------------------------------------------------------------------------


def _trained(precision: str, shift: float = 0.0) -> dict[str, Any]:
    start = np.ones(4, dtype=np.float32)
    plain = local_measure.Run(2.0, 5.0, start)
    runs = {"plain": [plain], "ours": [local_measure.Run(1.0, 5.0, start + shift)]}
    return local_measure.summarise(LocalWorkload("bert", quick=True), precision, runs)


def test_throughput_is_ours_over_the_plain_loops() -> None:
    assert _trained("fp32")["throughput_of_plain"]["median"] == 2.0


def test_a_loop_with_another_result_is_found_out_in_float32() -> None:
    assert local_measure.disagreements([_trained("fp32"), _trained("bf16", shift=0.1)]) == []
    assert len(local_measure.disagreements([_trained("fp32", shift=1e-3)])) == 1
    assert len(local_measure.disagreements([_trained("fp32", shift=float("nan"))])) == 1


def test_the_local_table_has_every_column_also_where_bfloat16_is_not_measured() -> None:
    decisions = {name: {"mode": "fp32", "why": "only_one"} for name in LOCAL_NAMES}
    rows = local_measure.table([_trained("fp32")], decisions).splitlines()
    assert len(rows) == 2 + 2 * len(LOCAL_NAMES)
    assert len({row.count("|") for row in rows}) == 1
    assert any(local_measure.NO_BF16 in row for row in rows)
