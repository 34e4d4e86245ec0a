"""A federation in memory: a small file, sites that answer without data, a carrier that brings it.

What a site sends is an :class:`Arrival`. A *fault* turns the honest arrival into whatever arrives
instead; the same faults run against the in-memory carrier, Flower's, and the whole engine.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from wardround_common.canonical import canonical_bytes
from wardround_common.errors import WireError
from wardround_common.exact_head import HeadSums
from wardround_common.spec.exchange import Fp32Update, UpdateCoding
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import SiteId, TensorSpec, sha256_hex
from wardround_common.wire.codecs.base import Codec
from wardround_common.wire.codecs.registry import codec_for
from wardround_common.wire.layout import Layout, Packed, as_bytes, from_buffer
from wardround_common.wire.step import MAX_MANIFEST_BYTES, Receipt, StepManifest, parse
from wardround_server.rounds.carrier import Answer, Question
from wardround_server.rounds.engine import RoundEngine
from wardround_server.rounds.journal import Journal
from wardround_server.rounds.outcome import RunOutcome

RUN = "0123456789abcdef"


def federation(**tables: Any) -> FederationSpec:
    """A table federation of sites a, b and c; each argument updates one table of the file."""
    raw: dict[str, Any] = {
        "federation": {"name": "tiny", "sites": ["a", "b", "c"], "seed": 3},
        "data": {
            "modality": "tabular",
            "subject": "id",
            "label": "label",
            "numeric": ["x1", "x2"],
            "categorical": {"colour": ["blue", "red"]},
            "standardise": "none",
        },
        "task": {"kind": "classification", "labels": ["no", "yes"]},
        "training": {"batch_size": 8, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
        "rounds": {"count": 3},
        "evaluation": {"bootstrap": 100, "personalise_epochs": 1},
        "exact_head": {"enabled": False},
    }
    for name, table in tables.items():
        raw[name] = {**raw.get(name, {}), **table}
    return FederationSpec.model_validate_json(json.dumps(raw))


def write_dataset(folder: Path, hospitals: Sequence[str], rows: int = 16) -> None:
    """A prepared set: one CSV with a column that names the hospital, and its description."""
    rng = np.random.Generator(np.random.PCG64(5))
    lines = ["id,hospital,x1,x2,colour,label"]
    for place, hospital in enumerate(hospitals):
        for row in range(rows):
            x1, x2 = rng.normal(size=2) + place
            label = "yes" if (x1 - x2 + rng.normal() * 0.3 > 0) == (row % 7 > 0) else "no"
            colour = ("blue", "red")[row % 2]
            lines.append(f"{hospital}{row},{hospital},{x1:.4f},{x2:.4f},{colour},{label}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "dataset.toml").write_text('format = "csv"\npath = "table.csv"\n')


def simulated(hospitals: Sequence[str], **tables: Any) -> FederationSpec:
    """A federation file over :func:`write_dataset` in the folder ``data`` beside it."""
    simulation = {
        "dataset": "data",
        "pooled": False,
        "threads": 1,
        "partition": {
            "kind": "column",
            "column": "hospital",
            "values": {name: [name] for name in hospitals},
        },
    }
    tables["federation"] = {"sites": list(hospitals), **tables.get("federation", {})}
    tables["simulation"] = {**simulation, **tables.get("simulation", {})}
    return federation(**tables)


@dataclass(frozen=True, eq=False)
class Arrival:
    """What arrives from a site: ``data`` is an array handed over, or bytes from a wire."""

    site: str
    step: int
    receipt: bytes | None = None
    data: Packed | bytes | None = None
    failure: str | None = None

    def answer(self, reply: Layout) -> Answer:
        """As a carrier reports it: of the promised size, or a failure."""
        site, update = SiteId(self.site), self.data
        if isinstance(update, bytes):
            try:
                update = from_buffer(reply, update)
            except WireError as error:
                return Answer(site, self.step, failure=error.code)
        if update is not None and update.nbytes != reply.num_bytes:
            return Answer(site, self.step, failure="update_bytes")
        return Answer(site, self.step, self.receipt, update, self.failure)


Fault = Callable[[Arrival, list[Arrival]], list[Arrival]]
"""The honest arrival and the site's earlier honest ones -> what arrives instead."""


def edited(arrival: Arrival, **fields: Any) -> Arrival:
    """The same arrival with fields of the receipt replaced, in canonical form."""
    assert arrival.receipt is not None
    return replace(arrival, receipt=canonical_bytes({**json.loads(arrival.receipt), **fields}))


def with_update(arrival: Arrival, update: Packed) -> Arrival:
    """The same arrival with another array and the receipt's digest to match."""
    digest = sha256_hex(as_bytes(update))
    return replace(edited(arrival, update_sha256=digest), data=update)


def manifest_of(data: bytes) -> StepManifest:
    """A manifest from its bytes."""
    return parse(StepManifest, data, max_bytes=MAX_MANIFEST_BYTES)


@dataclass
class FakeSite:
    """A site that answers every step in form, without data; equal questions, equal answers.

    Attributes:
        metrics: round -> validation metric; 0.5 where absent.
        coding: how its updates are coded.
    """

    name: str
    subjects: int = 10
    metrics: Mapping[int, float] = field(default_factory=dict)
    asked: list[StepManifest] = field(default_factory=list)
    coding: UpdateCoding = field(default_factory=lambda: Fp32Update(coding="fp32"))

    def reply(self, manifest: StepManifest) -> Arrival:
        """The honest arrival."""
        self.asked.append(manifest)
        update = self.update(manifest)
        receipt = Receipt(
            run=manifest.run,
            step=manifest.step,
            kind=manifest.kind,
            round=manifest.round,
            manifest_sha256=manifest.digest(),
            site=self.name,
            tensors=manifest.reply,
            update_sha256=None if update is None else sha256_hex(as_bytes(update)),
            num_subjects=self.subjects,
            num_examples=2 * self.subjects,
            body=self.body(manifest),
            seconds={"train": 0.5},
        )
        return Arrival(self.name, manifest.step, receipt.to_bytes(), update)

    def update(self, manifest: StepManifest) -> Packed | None:
        """Values bound to site and step; for sums, those of data."""
        layout = manifest.reply_layout
        if not layout.num_values:
            return None
        seed = int(sha256_hex(f"{self.name} {manifest.step}".encode())[:8], 16)
        rng = np.random.Generator(np.random.PCG64(seed))
        if manifest.kind == "moments":
            return np.concatenate([np.full(2, 20.0), rng.normal(size=2), rng.random(2) + 20])
        if manifest.kind == "gram":
            folds = len(layout.tensors) // 2
            width, outputs = layout.tensors[1].shape
            sums = HeadSums(width - 1, outputs, folds)
            features = rng.normal(size=(20, width - 1)).astype(np.float32)
            sums.add(features, rng.integers(0, outputs, 20), np.arange(20) % folds)
            return sums.packed()
        values = rng.normal(size=layout.num_values).astype(layout.dtype)
        codec = codec_for(self.coding, layout)
        return values if codec is None else codec.encode(values)

    def body(self, manifest: StepManifest) -> dict[str, Any]:
        """The numbers that the kind of step wants."""
        score = {
            "metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
            "num_subjects": 5,
            "num_examples": 5,
            "reliability": None,
            "calibration": None,
        }
        comparison = {
            **dict.fromkeys(("local", "personalised", "exact_head"), None),
            **dict.fromkeys(("difference", "difference_personalised"), None),
            "federated": score,
            "verdict": "not measurable",
            "notes": [],
        }
        metric = self.metrics.get(manifest.round, 0.5)
        bodies: dict[str, dict[str, Any]] = {
            "describe": {
                "num_test_subjects": 5,
                "has_subjects": True,
                "findings": [],
                "version": "0.1.0",
            },
            "train": {"loss": 1.0 / (manifest.round + 1), "num_steps": 3},
            "evaluate": {"loss": 0.5, "metric": metric, "num_validation_subjects": 4},
            "compare": {"comparison": comparison},
        }
        return bodies.get(manifest.kind, {})


class FakeCarrier:
    """Brings questions to :class:`FakeSite`s, through their faults, in any order.

    Args:
        sites: who is there.
        faults: site -> fault.
        seed: shuffles the order of arrival; None keeps the roster's.
    """

    def __init__(
        self,
        sites: Sequence[FakeSite],
        faults: Mapping[str, Fault] | None = None,
        seed: int | None = None,
    ) -> None:
        self.sites = {site.name: site for site in sites}
        self.faults = dict(faults or {})
        self.questions: list[Question] = []
        self._past: dict[str, list[Arrival]] = {}
        self._rng = None if seed is None else np.random.Generator(np.random.PCG64(seed))

    def ask(self, question: Question, deadline_s: float) -> Iterator[Answer]:
        """See ``Carrier``."""
        assert deadline_s > 0
        self.questions.append(question)
        manifest = manifest_of(question.manifest)
        order = list(question.sites)
        if self._rng is not None:
            self._rng.shuffle(order)  # type: ignore[arg-type]
        for name in order:
            if name not in self.sites:
                yield Answer(name, question.step, failure="site_unknown")
                continue
            for arrival in self._arrivals(name, manifest):
                yield arrival.answer(question.reply)

    def _arrivals(self, name: str, manifest: StepManifest) -> list[Arrival]:
        honest = self.sites[name].reply(manifest)
        past = self._past.setdefault(name, [])
        arrivals = self.faults[name](honest, past) if name in self.faults else [honest]
        past.append(honest)
        return arrivals


class Silent:
    """An observer that says nothing, and keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def step_started(self, manifest: StepManifest) -> None:
        """Kept."""
        self.events.append(("started", manifest.kind))

    def answer_arrived(self, kind: str, site: str, refusal: str | None) -> None:
        """Kept."""
        self.events.append((site, refusal or "admitted"))

    def step_ended(self, result: Any) -> None:
        """Kept."""
        self.events.append(("ended", result.manifest.kind))


class StubModel:
    """As much of a SharedModel as the engine uses: ``num_late`` of the tensors join in round 2."""

    def __init__(self, spec: FederationSpec, num_late: int = 0) -> None:
        self.federation = spec
        self.backbone_digest = None
        self.feature_dim = 3
        self.task = SimpleNamespace(num_outputs=2)
        tensors = (
            TensorSpec("head.0.weight", "float32", (2, 3)),
            TensorSpec("head.0.bias", "float32", (2,)),
        )
        late = tuple(TensorSpec(f"backbone.{i}", "float32", (3,)) for i in range(num_late))
        self.layouts = Layout(tensors), Layout((*late, *tensors))
        self.initial = {t.name: torch.zeros(t.shape) for t in (*late, *tensors)}

    def head_state(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """The head's tensors by name."""
        return {"head.0.weight": weight, "head.0.bias": bias}

    def layout(self, round_: int) -> Layout:
        """What sites send in round ``round_``."""
        return self.layouts[round_ > 1]

    def state_layout(self, round_: int) -> Layout:
        """What goes down in round ``round_``."""
        return self.layouts[round_ > 1]

    def codec(self, layout: Layout) -> Codec | None:
        """How its updates are coded."""
        return codec_for(self.federation.exchange.update, layout)


def run_engine(
    spec: FederationSpec,
    carrier: Any,
    folder: Path,
    *,
    store_updates: bool = True,
    model: Any = None,
    observer: Any = None,
) -> RunOutcome:
    """One run of the engine over a carrier."""
    engine = RoundEngine(
        model or StubModel(spec),
        carrier,
        Journal(folder),
        observer or Silent(),
        run=RUN,
        store_updates=store_updates,
    )
    return engine.run()


def fake_sites(spec: FederationSpec) -> list[FakeSite]:
    """The roster; site number i has 10 + i subjects."""
    coding = spec.exchange.update
    names = enumerate(spec.federation.sites)
    return [FakeSite(name, 10 + place, coding=coding) for place, name in names]


def never(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
    """The fault of a site that does not answer."""
    return []


def in_kind(kind: str, fault: Fault, round_: int | None = None) -> Fault:
    """A fault that shows in one kind of step (and one round) only."""

    def chosen(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
        assert honest.receipt is not None
        receipt = json.loads(honest.receipt)
        applies = receipt["kind"] == kind and round_ in {None, receipt["round"]}
        return fault(honest, past) if applies else [honest]

    return chosen
