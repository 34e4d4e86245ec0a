"""Rounds of LoRA over a tiny text encoder: what goes down, what comes up, and resumed runs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support import RUN, Silent
from tests.unit.tiny_bert import save_encoder, text_federation
from wardround_client.app import client_app
from wardround_client.simulated import InProcessSites
from wardround_client.worker.worker import SiteWorker
from wardround_common.errors import ConfigError, RefusedError
from wardround_common.shared_model import shared_model
from wardround_common.spec.federation import FederationSpec
from wardround_common.tuning.lora_factors import A, B, layout_at_rank
from wardround_common.types import SiteId
from wardround_common.wire.layout import unpack
from wardround_common.wire.step import Receipt, layout_to_wire
from wardround_server.admission import admit
from wardround_server.folder import RunFolder
from wardround_server.rounds.carrier import Answer, FlowerCarrier, Question
from wardround_server.rounds.engine import RoundEngine
from wardround_server.rounds.journal import Journal
from wardround_server.rounds.outcome import RunOutcome
from wardround_server.simulation.local_grid import LocalGrid

SITES = ("a", "b", "c")


class KilledError(Exception):
    """The aggregator dies."""


class Mortal(FlowerCarrier):
    """A carrier that dies before, or in the middle of, one question."""

    dies_at: int | None = None
    after: int = 1

    def ask(self, question: Question, deadline_s: float) -> Iterator[Answer]:
        """As the carrier, until death."""
        for place, answer in enumerate(super().ask(question, deadline_s)):
            if question.step == self.dies_at and place == self.after:
                raise KilledError
            yield answer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("lora")
    save_encoder(path / "encoder", layers=1)
    (path / "data").mkdir()
    rng = np.random.Generator(np.random.PCG64(1))
    words = np.array(["heart", "lung", "clear", "acetamol"])
    lines = ["id,report,finding"]
    for row in range(36):
        text = " ".join(rng.choice(words, 5))
        lines.append(f"p{row},{text},{'yes' if text.count('heart') > 1 else 'no'}")
    (path / "data" / "table.csv").write_text("\n".join(lines) + "\n")
    (path / "data" / "dataset.toml").write_text('format = "csv"\npath = "table.csv"\n')
    return path


def _spec(base: Path, ranks: dict[str, int] | None = None, **tuning: Any) -> FederationSpec:
    from wardround_common.backbones.store import file_digest

    return text_federation(
        f"hf:{base / 'encoder'}",
        file_digest(base / "encoder" / "model.safetensors"),
        federation={"name": "tiny", "sites": SITES, "seed": 1},
        data={
            "modality": "text", "text": "report", "label": "finding", "subject": "id",
            "max_tokens": 16,
        },
        tuning={"method": "lora", "rank": 4, "targets": ("query", "value"), **tuning},
        training={"batch_size": 4, "optimizer": {"name": "adamw", "learning_rate": 0.05}},
        rounds={"count": 3},
        exact_head={"enabled": False},
        evaluation={"bootstrap": 100, "compare": False},
        simulation={
            "dataset": "data", "partition": {"kind": "iid"}, "lora_ranks": ranks or {},
            "threads": 1,
        },
    )  # fmt: skip


def _run(
    spec: FederationSpec,
    base: Path,
    folder: Path,
    *,
    dies_at: int | None = None,
    store_updates: bool = True,
) -> RunOutcome:
    failures: list[Exception] = []
    sites = InProcessSites(
        spec, base=base, raw=None, cache=folder.parent / "cache", memory=folder / "sites"
    )
    grid = LocalGrid(client_app(sites.workers, lambda _, e: failures.append(e)), SITES)
    node_of = {SiteId(site): 2 + place for place, site in enumerate(SITES)}
    carrier = Mortal(grid, node_of, clock=lambda: 0.0)
    carrier.dies_at = dies_at
    engine = RoundEngine(
        shared_model(spec),
        carrier,
        Journal(folder),
        Silent(),
        run=RUN,
        store_updates=store_updates,
    )
    outcome = engine.run()
    assert failures == []
    return outcome


def _array_bytes_up(outcome: RunOutcome) -> list[int]:
    return [record.train.bytes_up for record in outcome.rounds]


@pytest.mark.parametrize(
    ("ranks", "tuning"),
    [
        (None, {"merge": "product"}),
        ({"a": 1, "c": 2}, {"merge": "product"}),
        (None, {"train": "b"}),
        (None, {"train": "alternate"}),
    ],
    ids=["product", "ranks", "b", "alternate"],
)
@pytest.mark.parametrize("stored", [True, False])
def test_a_killed_and_resumed_run_ends_in_the_same_bytes(
    base: Path, tmp_path: Path, ranks: Any, tuning: dict[str, Any], stored: bool
) -> None:
    spec = _spec(base, ranks, **tuning)
    whole = _run(spec, base, tmp_path / "whole", store_updates=stored)
    steps = [step.manifest.step for step in whole.steps if step.manifest.kind == "train"]
    for dies_at in steps[1:]:
        folder = tmp_path / f"killed-{dies_at}"
        with pytest.raises(KilledError):
            _run(spec, base, folder, dies_at=dies_at, store_updates=stored)
        resumed = _run(spec, base, folder, store_updates=stored)
        assert resumed.state.digest() == whole.state.digest()
    assert whole.state.digest() != _run(_spec(base), base, tmp_path / "plain").state.digest(), (
        "the option changes the model"
    )


def test_alternating_rounds_send_one_half_and_receive_all_that_has_moved(
    base: Path, tmp_path: Path
) -> None:
    outcome = _run(_spec(base, train="alternate"), base, tmp_path / "run")

    def halves(layout: Any) -> set[str]:
        return {half for half in (A, B) for t in layout.tensors if t.name.endswith(half)}

    trained = [record.train.manifest for record in outcome.rounds]
    assert [halves(m.reply_layout) for m in trained] == [{B}, {A}, {B}]
    assert [halves(m.state_layout) for m in trained] == [{B}, {A, B}, {A, B}]
    tensors = unpack(outcome.state.layout, outcome.state.values)
    start = shared_model(_spec(base, train="alternate")).initial
    moved = {name for name, value in tensors.items() if not torch.equal(value, start[name])}
    assert moved == set(tensors), "both halves and the head moved"


def test_training_b_alone_leaves_a_at_its_seeded_start_and_halves_the_bytes(
    base: Path, tmp_path: Path
) -> None:
    both = _run(_spec(base), base, tmp_path / "both")
    only_b = _run(_spec(base, train="b"), base, tmp_path / "b")
    assert not any(t.name.endswith(A) for t in only_b.state.layout.tensors)
    head = sum(t.num_values for t in only_b.state.layout.tensors if t.name.startswith("head."))
    factors = (only_b.state.layout.num_values - head) * 4 * len(SITES)
    assert both.state.layout.num_values - head == 2 * (only_b.state.layout.num_values - head)
    saved = np.subtract(_array_bytes_up(both), _array_bytes_up(only_b))
    assert (saved >= factors).all(), "the bytes of A, and its names in the receipts"


@pytest.mark.parametrize("train", ["both", "b", "alternate"])
def test_the_model_file_has_both_factors_of_every_adapter(
    base: Path, tmp_path: Path, train: str
) -> None:
    spec = _spec(base, train=train)
    outcome = _run(spec, base, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    beside = shared_model(spec).untrained_adapters()
    folder.write_model(outcome, spec.digest(), beside)
    written = load_file(tmp_path / "run" / "model.safetensors")
    layers = {name.removesuffix(A) for name in written if name.endswith(A)}
    assert len(layers) == 2
    assert layers == {name.removesuffix(B) for name in written if name.endswith(B)}
    assert (beside != {}) is (train == "b")


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_an_update_of_another_rank_than_the_declared_one_is_refused(
    base: Path, tmp_path: Path, rank: int
) -> None:
    outcome = _run(_spec(base, {"a": 2}, merge="product"), base, tmp_path / "run")
    manifest = outcome.rounds[0].train.manifest
    part = outcome.rounds[0].train.contributions[SiteId("a")]
    layout = layout_at_rank(manifest.reply_layout, rank)
    receipt = Receipt(
        run=manifest.run,
        step=manifest.step,
        kind="train",
        round=manifest.round,
        manifest_sha256=manifest.digest(),
        site="a",
        tensors=layout_to_wire(layout),
        num_subjects=part.num_subjects,
        num_examples=part.num_examples,
        body=part.body.model_dump(mode="json"),
    )
    update = np.zeros(layout.num_values, dtype=np.float32)
    judged = partial(
        admit, manifest, SiteId("a"), receipt, update, subjects_of={}, handed_over=True
    )
    if rank == 2:
        assert judged().update is update
        return
    with pytest.raises(RefusedError) as caught:
        judged()
    assert caught.value.code == "layout_mismatch"


def test_a_site_of_a_smaller_rank_sends_fewer_bytes_and_moves_the_model(
    base: Path, tmp_path: Path
) -> None:
    full = _run(_spec(base, merge="product"), base, tmp_path / "full")
    small = _run(_spec(base, {"a": 1, "c": 4}, merge="product"), base, tmp_path / "small")
    manifest = small.rounds[0].train.manifest
    assert manifest.ranks == {"a": 1}, "a rank that is not smaller is the federation's"
    saved = manifest.reply_layout.num_bytes - manifest.reply_of("a").num_bytes
    assert saved == 4 * 3 * 2 * (16 + 16), "3 of 4 ranks of 2 layers of 16 x 16"
    assert all(
        record.train.refused == [] and set(record.train.contributions) == set(SITES)
        for record in small.rounds
    )
    apart = np.subtract(_array_bytes_up(full), _array_bytes_up(small))
    assert (np.abs(apart - saved) < 100).all(), "receipts differ by a few digits"
    assert small.state.digest() != full.state.digest()


def test_training_at_a_smaller_rank_leaves_the_other_components_exactly_zero(base: Path) -> None:
    spec = _spec(base, {"a": 2}, merge="product")
    shared = shared_model(spec)
    sites = InProcessSites(spec, base=base, raw=None, cache=base / "cache", memory=base / "sites")
    worker = sites.workers[SiteId("a")]
    from wardround_client.training.local import Course, train
    from wardround_common.tuning.lora_factors import zero_beyond_rank

    shared.reset()
    shared.load(zero_beyond_rank(shared.initial, 2))
    data = worker.datasets.training_set("train", None, 1)
    train(shared, data, Course(range(1, 2), 2, 1, 1, 3), torch.device("cpu"))
    for name, tensor in shared.tensors(shared.names(1)).items():
        if name.endswith(A):
            assert tensor[:2].any()
            assert not tensor[2:].any()
        if name.endswith(B):
            assert tensor[:, :2].any()
            assert not tensor[:, 2:].any()


def test_a_smaller_rank_is_refused_where_factors_are_averaged(base: Path) -> None:
    shared = shared_model(_spec(base))

    def none() -> Any:
        raise AssertionError

    with pytest.raises(ConfigError, match="merge") as refused:
        SiteWorker(SiteId("a"), shared, none, base, torch.device("cpu"), lora_rank=2)
    assert refused.value.code == "lora_rank"
