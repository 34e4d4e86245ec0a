"""The site worker: it answers only what fits its own files, in form, and the same every time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, RecordDict

from tests.support import simulated, write_dataset
from wardround_client.app import client_app
from wardround_client.simulated import InProcessSites
from wardround_client.worker.worker import SiteWorker
from wardround_common.errors import WireError
from wardround_common.exact_head import can_be_sums
from wardround_common.shared_model import SharedModel, shared_model
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.flower import HandedOver, failure_of, json_of, packed_of, to_content
from wardround_common.wire.layout import Layout, as_bytes, empty, layout_of, unpack
from wardround_common.wire.step import (
    MAX_RECEIPT_BYTES,
    Receipt,
    StepManifest,
    TableMoments,
    layout_to_wire,
    parse,
)
from wardround_server.admission import admit
from wardround_server.simulation.local_grid import LocalGrid


class World:
    """Three sites over one small table, and a model."""

    def __init__(self, base: Path, **tables: Any) -> None:
        write_dataset(base / "data", ("a", "b", "c"))
        tables = {
            "data": {"standardise": "federated", "validation_fraction": 0.25},
            "exact_head": {"enabled": True},
            **tables,
        }
        self.spec: FederationSpec = simulated(("a", "b", "c"), **tables)
        self.failures: list[tuple[str, Exception]] = []
        sites = InProcessSites(
            self.spec, base=base, raw=None, cache=base / "cache", memory=base / "sites"
        )
        self.workers: dict[SiteId, SiteWorker] = dict(sites.workers)
        self.app = client_app(self.workers, lambda site, error: self.failures.append((site, error)))
        self.shared: SharedModel = shared_model(self.spec)

    def manifest(self, kind: str, round_: int = 1, **fields: Any) -> StepManifest:
        """What the engine would ask."""
        worker = self.workers[SiteId("a")]
        draft = StepManifest(
            run="0123456789abcdef",
            step=3,
            kind=kind,  # type: ignore[arg-type]
            round=round_,
            sites=self.spec.federation.sites,
            spec_sha256=self.spec.digest(),
            backbone_sha256=None,
            state_sha256="0" * 64,
            update_norm=100.0,
            subjects=1000,
            bound=1e30 if kind in {"moments", "gram"} else 100.0,
            seed=self.spec.federation.seed,
            moments=None
            if kind in {"describe", "moments"}
            else TableMoments(mean=(0.5, 0.25), deviation=(1.5, 2.0)),
        )
        state = self.state(draft)
        return draft.model_copy(
            update={
                "state": layout_to_wire(worker._state_layout(draft)),
                "state_sha256": sha256_hex(b"" if state is None else as_bytes(state)),
                "reply": layout_to_wire(worker._reply_layout(draft)),
                **fields,
            }
        )

    def state(self, manifest: StepManifest) -> np.ndarray | None:
        """The array that goes with it."""
        values = empty(self.workers[SiteId("a")]._state_layout(manifest))
        values[:] = np.linspace(-0.1, 0.1, len(values))
        return values if len(values) else None

    def execute(self, site: str, manifest: StepManifest) -> tuple[Receipt, Any]:
        """One answered step; the array is copied, as its memory is used again."""
        receipt, update = self.workers[SiteId(site)].execute(manifest, self.state(manifest))
        return receipt, None if update is None else update.copy()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


KINDS = ("describe", "moments", "gram", "train", "evaluate", "compare")


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_answer_is_admitted(world: World, kind: str) -> None:
    manifest = world.manifest(kind)
    receipt, update = world.execute("b", manifest)
    admitted = admit(manifest, SiteId("b"), receipt.to_bytes(), update, subjects_of={})
    assert admitted.update is update
    assert (update is not None) == (kind in {"moments", "gram", "train"})
    assert 8 <= receipt.num_subjects == receipt.num_examples <= 16


@pytest.mark.parametrize("kind", KINDS)
def test_asked_again_and_after_anything_else_the_answer_has_the_same_bytes(
    world: World, kind: str
) -> None:
    manifest = world.manifest(kind)
    first, update = world.execute("a", manifest)
    kept = None if update is None else update.copy()
    for other in KINDS:
        world.execute("c", world.manifest(other))
    torch.manual_seed(999)
    again, repeated = world.execute("a", manifest)
    assert first.model_copy(update={"seconds": {}}) == again.model_copy(update={"seconds": {}})
    if kept is not None:
        assert repeated.tobytes() == kept.tobytes() == update.tobytes()


def test_sites_and_rounds_train_differently(world: World) -> None:
    updates = {
        (site, round_): world.execute(site, world.manifest("train", round_))[1].tobytes()
        for site in "ab"
        for round_ in (1, 2)
    }
    assert len(set(updates.values())) == 4


def test_an_update_is_the_trained_minus_the_received_state(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = world.manifest("train")
    state = world.state(manifest)
    assert state is not None
    before = state.copy()
    trained: dict[str, torch.Tensor] = {}
    return_to = SharedModel.return_to

    def watched(shared: SharedModel, layout: Layout, *args: Any) -> Any:
        names = [spec.name for spec in layout.tensors]
        trained.update({name: t.clone() for name, t in shared.tensors(names).items()})
        return return_to(shared, layout, *args)

    monkeypatch.setattr(SharedModel, "return_to", watched)
    receipt, update = world.workers[SiteId("a")].execute(manifest, state)
    np.testing.assert_array_equal(state, before), "what was received is not written to"
    layout = layout_of(world.shared.tensors(world.shared.names(1)))
    sums = unpack(layout, before + update)
    received = unpack(layout, before)
    for name, tensor in world.shared.tensors(world.shared.names(1)).items():
        torch.testing.assert_close(trained[name], sums[name], rtol=0, atol=1e-6)
        assert torch.equal(tensor, received[name]), "the model is back where it was"
    assert receipt.body["num_steps"] == -(-receipt.num_examples // 8)


@pytest.mark.parametrize("puts_back", [True, False], ids=["put_back", "left_trained"])
def test_a_site_starts_from_what_it_received_whoever_trained_before(
    world: World, monkeypatch: pytest.MonkeyPatch, puts_back: bool
) -> None:
    manifest = world.manifest("train")
    alone = world.execute("b", manifest)[1]
    world.execute("b", world.manifest("train", round_=2))
    if not puts_back:
        return_to = SharedModel.return_to

        def leave(shared: SharedModel, *args: Any) -> Any:
            trained = {name: t.clone() for name, t in shared.tensors(shared.initial).items()}
            change = return_to(shared, *args)
            standing = shared._standing
            shared.load(trained)
            shared._standing = standing
            return change

        monkeypatch.setattr(SharedModel, "return_to", leave)
    world.execute("a", manifest)
    assert (world.execute("b", manifest)[1].tobytes() == alone.tobytes()) == puts_back


def test_a_state_is_written_once_for_the_sites_that_train_on_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, loads = world.manifest("train"), []
    load = SharedModel.load
    monkeypatch.setattr(
        SharedModel, "load", lambda shared, state: (loads.append(len(state)), load(shared, state))
    )
    for site in "abc":
        world.execute(site, manifest)
    once = len(loads)
    world.execute("a", world.manifest("train", round_=2))
    assert 0 < once < len(loads)


def test_sums_are_such_as_data_have(world: World) -> None:
    manifest = world.manifest("gram")
    receipt, sums = world.execute("a", manifest)
    assert can_be_sums(manifest.reply_layout, sums)
    counts = [
        sums[where][-1] for spec, where in manifest.reply_layout.slices() if "gram" in spec.name
    ]
    assert sum(counts) == receipt.num_examples
    moments = world.execute("a", world.manifest("moments"))[1].reshape(3, 2)
    assert (moments[0] == receipt.num_examples).all()


@pytest.mark.parametrize(
    ("kind", "fields", "code"),
    [
        ("train", {"spec_sha256": "f" * 64}, "other_federation_file"),
        ("train", {"backbone_sha256": "f" * 64}, "other_backbone"),
        ("train", {"sites": ("b", "c")}, "not_in_cohort"),
        ("train", {"sites": ("a", "b")}, "other_roster"),
        ("gram", {"seed": 4}, "other_seed"),
        ("train", {"seed": 4}, "other_seed"),
        ("train", {"sites": ("a", "c", "b")}, "other_roster"),
        ("train", {"state": ()}, "other_state"),
        ("train", {"state": (("head.0.weight", "float32", (2, 4)),)}, "other_state"),
        ("train", {"reply": ()}, "other_reply"),
        ("train", {"reply": (("backbone.rows", "float32", (10_000, 4)),)}, "other_reply"),
        ("describe", {"reply": (("records", "float64", (16, 4)),)}, "other_reply"),
        ("evaluate", {"reply": (("logits", "float32", (16, 2)),)}, "other_reply"),
        ("train", {"state_sha256": "f" * 64}, "state_digest"),
        ("evaluate", {"state_sha256": sha256_hex(b"")}, "state_digest"),
    ],
)
def test_a_manifest_that_does_not_fit_the_sites_own_files_is_refused(
    world: World, kind: str, fields: dict[str, Any], code: str
) -> None:
    assert world.execute("a", world.manifest(kind))
    manifest = world.manifest(kind).model_copy(update=fields)
    with pytest.raises(WireError) as caught:
        world.workers[SiteId("a")].execute(manifest, world.state(world.manifest(kind)))
    assert caught.value.code == code


def test_a_site_standardises_by_itself_only_if_the_file_says_so(tmp_path: Path) -> None:
    ours = World(tmp_path / "one", data={"standardise": "site"})
    first = ours.execute("a", ours.manifest("train"))[1]
    other = ours.manifest("train", moments=TableMoments(mean=(9.0, 9.0), deviation=(1.0, 1.0)))
    np.testing.assert_array_equal(ours.execute("a", other)[1], first)
    world = World(tmp_path / "two")
    shifted = world.manifest("train", moments=TableMoments(mean=(9.0, 9.0), deviation=(1.0, 1.0)))
    assert (world.execute("a", shifted)[1] != world.execute("a", world.manifest("train"))[1]).any()


def test_fedprox_pulls_towards_the_received_state(tmp_path: Path) -> None:
    def length(mu: float) -> float:
        rule = {"rule": "fedprox", "mu": mu} if mu else {"rule": "fedavg"}
        world = World(tmp_path / str(mu), aggregation=rule, training={"local_epochs": 20})
        return float(np.linalg.norm(world.execute("a", world.manifest("train"))[1]))

    free, little, much = length(0.0), length(1e-6), length(5.0)
    assert little == pytest.approx(free, rel=1e-3)
    assert much < 0.8 * free


# -- the ClientApp -------------------------------------------------------------------------------


def _reply(world: World, content: Any, site: str = "a", kind: str = "train") -> Any:
    grid = LocalGrid(world.app, ["a", "b", "c", "nobody"])
    node = next(n.node_id for n in grid.get_nodes() if n.name == site)
    (reply,) = grid.send_and_receive([grid.create_message(content, kind, node, "1")])
    return reply.content


def _as_sent(manifest: StepManifest, state: Any) -> RecordDict:
    """The question as it arrives from another process."""
    content = to_content(manifest.to_bytes(), state)
    array = content["arrays"]["packed"]
    content["arrays"]["packed"] = Array(array.dtype, array.shape, array.stype, array.data)
    return content


def test_a_message_is_answered_by_the_site_it_is_for(world: World) -> None:
    manifest = world.manifest("train")
    for site in "abc":
        content = _reply(world, _as_sent(manifest, world.state(manifest)), site)
        receipt = parse(Receipt, json_of(content), max_bytes=MAX_RECEIPT_BYTES)
        assert receipt.site == site
        assert packed_of(content, manifest.reply_layout) is not None


def test_within_one_process_the_answer_is_the_one_that_would_be_sent(world: World) -> None:
    manifest = world.manifest("train")
    handed = _reply(world, to_content(manifest.to_bytes(), world.state(manifest)))
    assert isinstance(handed, HandedOver)
    update = np.array(handed.array)
    sent = _reply(world, _as_sent(manifest, world.state(manifest)))
    receipt = parse(Receipt, json_of(sent), max_bytes=MAX_RECEIPT_BYTES)
    kept = {"update_sha256": None, "seconds": {}}
    assert handed.receipt.model_copy(update=kept) == receipt.model_copy(update=kept)
    assert (update == packed_of(sent, manifest.reply_layout)).all()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "json_malformed"),
        (b"{}", "message_form"),
        (b"[" * 100_000, "json_malformed"),
        (b'{"a": 1}', "json_not_canonical"),
        (b" " * (4 * 2**20 + 1), "json_too_large"),
    ],
)
def test_a_malformed_manifest_is_answered_with_a_code(world: World, data: bytes, code: str) -> None:
    content = _reply(world, to_content(data, None))
    assert failure_of(content) == code
    assert list(content.config_records["wardround"]) == ["failure"]


def test_an_array_of_another_size_is_answered_with_a_code(world: World) -> None:
    manifest = world.manifest("train")
    content = _reply(world, to_content(manifest.to_bytes(), np.ones(3, dtype=np.float32)))
    assert failure_of(content) == "update_bytes"


def test_a_node_that_plays_no_site_says_so(world: World) -> None:
    manifest = world.manifest("describe")
    content = _reply(world, to_content(manifest.to_bytes(), None), "nobody", "query.describe")
    assert failure_of(content) == "site_unknown"


def test_whatever_an_unexpected_error_says_stays_at_the_site(world: World) -> None:
    def fail() -> Any:
        raise KeyError("patient-4711")

    worker = SiteWorker(SiteId("a"), world.shared, fail, Path("/nowhere"), torch.device("cpu"))
    told: list[tuple[str, Exception]] = []
    app = client_app({SiteId("a"): worker}, lambda site, error: told.append((site, error)))
    grid = LocalGrid(app, ["a"])
    manifest = world.manifest("describe")
    message = grid.create_message(to_content(manifest.to_bytes(), None), "query.describe", 2, "0")
    (reply,) = grid.send_and_receive([message])
    assert json.dumps(dict(reply.content.config_records["wardround"])) == (
        '{"failure": "internal_error"}'
    )
    assert "patient-4711" in str(told[0][1])


def test_what_a_simulated_site_lends_reaches_its_training(tmp_path: Path) -> None:
    hospitals = ("a", "b", "c")
    write_dataset(tmp_path / "data", hospitals)
    spec = simulated(hospitals, simulation={"compute": {"micro_batch": 3}})
    cache, memory = tmp_path / "cache", tmp_path / "sites"
    sites = InProcessSites(spec, base=tmp_path, raw=None, cache=cache, memory=memory)
    datasets = sites.workers[SiteId("a")].datasets
    data = datasets.training_set("train", None, 1)
    assert datasets.execution(data, 1).micro_batch == 3
