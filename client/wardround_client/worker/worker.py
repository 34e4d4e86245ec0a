"""One site's worker: it holds the data and answers the steps of a run.

The rules:

1. A step is answered only for the federation file and the backbone that this site holds, and only
   if the layouts are the ones it derives itself: a manifest can ask for nothing else.
2. What leaves is an array of exactly the derived layout, coded as the federation file says, and a
   receipt of exactly the step's form.
3. The answer depends on the manifest, the array, the site's data and, with error feedback, on what
   earlier rounds lost, not on what else was asked: asked again, it gives the same bytes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from wardround_client.data.identities import Identities
from wardround_client.data.split import SiteExamples
from wardround_client.training.local import Course, predict, train
from wardround_client.training.seeds import derive_seed
from wardround_client.worker.comparison import ModelComparison
from wardround_client.worker.datasets import SiteDatasets
from wardround_client.worker.error_feedback import ErrorFeedback
from wardround_common import __version__
from wardround_common.errors import ConfigError, WireError
from wardround_common.exact_head import HeadSums, sums_layout
from wardround_common.moments import moments_layout
from wardround_common.shared_model import SharedModel
from wardround_common.spec.data import TabularData
from wardround_common.spec.federation import Lora, TuningMethod
from wardround_common.spec.lending import Lending
from wardround_common.tuning.lora_factors import at_rank, zero_beyond_rank
from wardround_common.types import Digest, SiteId, sha256_hex
from wardround_common.wire.bodies import (
    CompareBody,
    DescribeBody,
    EvaluateBody,
    SumsBody,
    TrainBody,
)
from wardround_common.wire.layout import Layout, Packed, as_bytes, pack, unpack
from wardround_common.wire.step import (
    Phase,
    Receipt,
    StepKind,
    StepManifest,
    TableMoments,
    WireModel,
    layout_to_wire,
)

Work = tuple[WireModel, Packed | None]


class SiteWorker:
    """Answers steps for one site.

    Args:
        name: the site.
        shared: the federation's model; sites of a simulation share it.
        examples: reads the site's data, when the first step comes.
        cache: folder for cached features and block inputs.
        device: where to compute.
        feedback: what coding lost of the site's updates in a run; None where nothing is to be
            remembered.
        lora_rank: this site's largest rank of adapters; None for the federation's.
        lending: what the site lends to training; None for the defaults.
        cache_gib: largest file of block inputs; None for the default of a site's file.

    Raises:
        ConfigError: a rank below the federation's, and the federation averages factors.
    """

    def __init__(
        self,
        name: SiteId,
        shared: SharedModel,
        examples: Callable[[], SiteExamples],
        cache: Path,
        device: torch.device,
        *,
        feedback: Callable[[str], ErrorFeedback] | None = None,
        lora_rank: int | None = None,
        lending: Lending | None = None,
        cache_gib: float | None = None,
    ) -> None:
        self._rank = _smaller_rank(shared.federation.tuning, lora_rank)
        self.name = name
        self._cache_gib = cache_gib
        self._shared = shared
        self._load = examples
        self._cache = cache
        self._device = device
        self._feedback = feedback
        self._lending = lending
        self._examples: SiteExamples | None = None
        self._datasets: SiteDatasets | None = None
        self._seconds: dict[Phase, float] = {}
        self._steps: dict[StepKind, Callable[[StepManifest, Packed | None], Work]] = {
            "describe": self._describe,
            "moments": self._moments,
            "gram": self._gram,
            "train": self._train,
            "evaluate": self._evaluate,
            "compare": self._compare,
        }

    def execute(
        self, manifest: StepManifest, state: Packed | None, *, handed_over: bool = False
    ) -> tuple[Receipt, Packed | None]:
        """Answer one step.

        Args:
            manifest: what is asked.
            state: the array that came with it, of the manifest's state layout; None if empty.
            handed_over: the array came, and the answer's goes, within this process's memory:
                neither is hashed.

        Returns:
            The receipt and the array that goes with it; the array is valid until the next call
            for any site that shares the model.

        Raises:
            WireError: the manifest is not for this site, file or backbone, or the array is not
                the one it names.
            DataError: the site's data cannot be used as declared.
        """
        self._seconds = {}
        self.check(manifest)
        if not handed_over:
            _check_digest(manifest, state)
        with self._timed("data"):
            examples = self._loaded()
        body, update = self._steps[manifest.kind](manifest, state)
        receipt = Receipt(
            run=manifest.run,
            step=manifest.step,
            kind=manifest.kind,
            round=manifest.round,
            manifest_sha256=manifest.digest(),
            site=self.name,
            tensors=layout_to_wire(manifest.reply_of(self.name)),
            update_sha256=None if update is None or handed_over else sha256_hex(as_bytes(update)),
            num_subjects=examples.train.num_subjects,
            num_examples=len(examples.train),
            body=body.model_dump(mode="json"),
            seconds={phase: round(spent, 3) for phase, spent in self._seconds.items()},
        )
        return receipt, update

    @property
    def datasets(self) -> SiteDatasets:
        """The site's data in the forms that steps need."""
        if self._datasets is None:
            self._datasets = SiteDatasets(
                self._shared,
                self._loaded(),
                self._cache,
                self._device,
                lending=self._lending,
                cache_gib=self._cache_gib,
            )
        return self._datasets

    @property
    def num_subjects(self) -> int:
        """Training subjects; reads the data.

        Raises:
            DataError: it cannot be used as declared.
        """
        return self._loaded().train.num_subjects

    def patients(self, kind: StepKind) -> dict[str, Identities]:
        """The patients behind the answer to a kind of question: part -> uint64 [n]; reads the data.

        Raises:
            DataError: it cannot be used as declared.
        """
        examples = self._loaded()
        parts = {
            "training": examples.train,
            "validation": examples.validation,
            "held-out": examples.test,
        }
        wanted = {
            "describe": ("training", "held-out"),
            "evaluate": ("training", "validation"),
            "compare": ("training", "held-out"),
        }.get(kind, ("training",))
        found = {name: parts[name].identities for name in wanted}
        return {name: who for name, who in found.items() if who is not None}

    def _loaded(self) -> SiteExamples:
        if self._examples is None:
            self._examples = self._load()
        return self._examples

    def check(self, manifest: StepManifest) -> None:
        """Refuse a question that does not fit this site's files.

        Raises:
            WireError: the code says what differs.
        """
        spec = self._shared.federation
        if manifest.round > max(spec.rounds.count, 1):  # before layouts of that round are derived
            raise WireError("the federation file has no such round", code="other_round")
        checks = (
            (manifest.spec_sha256 == spec.digest(), "other_federation_file"),
            (manifest.backbone_sha256 == self._shared.backbone_digest, "other_backbone"),
            (manifest.seed == spec.federation.seed, "other_seed"),
            (self.name in manifest.sites, "not_in_cohort"),
            (manifest.sites == spec.federation.sites, "other_roster"),
            (manifest.state == layout_to_wire(self._state_layout(manifest)), "other_state"),
            (manifest.reply == layout_to_wire(self._reply_layout(manifest)), "other_reply"),
            (manifest.kind != "train" or manifest.ranks.get(self.name) == self._rank, "other_rank"),
        )
        for holds, code in checks:
            if not holds:
                raise WireError("the manifest does not fit this site's files", code=code)

    def _state_layout(self, manifest: StepManifest) -> Layout:
        if manifest.kind in {"train", "evaluate"}:
            return self._shared.state_layout(manifest.round)
        if manifest.kind == "compare":
            return ModelComparison.state_layout(self._shared)
        return Layout(())

    def _reply_layout(self, manifest: StepManifest) -> Layout:
        if manifest.kind == "train":
            return self._shared.layout(manifest.round)
        if manifest.kind == "moments":
            data = self._shared.federation.data
            return moments_layout(len(data.numeric) if isinstance(data, TabularData) else 0)
        if manifest.kind == "gram":
            return sums_layout(self._shared.feature_dim, self._shared.task.num_outputs, self._folds)
        return Layout(())

    @property
    def _folds(self) -> int:
        head = self._shared.federation.exact_head
        return head.folds if head.ridge == "auto" else 1

    def _describe(self, manifest: StepManifest, state: Packed | None) -> Work:
        del manifest, state
        examples = self._loaded()
        return (
            DescribeBody(
                num_test_subjects=examples.test.num_subjects,
                has_subjects=self._shared.federation.data.subject is not None,
                findings=tuple(sorted({finding.code for finding in examples.findings})),
                version=__version__,
                lora_rank=self._rank,
            ),
            None,
        )

    def _moments(self, manifest: StepManifest, state: Packed | None) -> Work:
        del manifest, state
        return SumsBody(), self.datasets.moment_sums().ravel()

    def _gram(self, manifest: StepManifest, state: Packed | None) -> Work:
        del state
        with self._timed("features"):
            features = self.datasets.features("train", self._table_moments(manifest))
        sums = HeadSums(self._shared.feature_dim, self._shared.task.num_outputs, self._folds)
        subjects = features.subjects.numpy()
        codes, place = np.unique(subjects, return_inverse=True)
        seed = derive_seed(manifest.seed, "folds", self.name)
        dealt = np.random.Generator(np.random.PCG64(seed)).permutation(len(codes)) % self._folds
        folds = dealt[place][features.examples_of_rows().numpy()]
        sums.add(features.features.numpy(), features.targets.numpy(), folds)
        return SumsBody(), sums.packed()

    def _train(self, manifest: StepManifest, state: Packed | None) -> Work:
        spec, round_ = self._shared.federation, manifest.round
        layout = manifest.reply_layout
        assert state is not None
        with self._timed("features"):
            data = self.datasets.training_set("train", self._table_moments(manifest), round_)
        received, name = unpack(manifest.state_layout, state), self._name_of(manifest)
        if self._rank is not None:
            received = zero_beyond_rank(received, self._rank)
        course = Course(
            rounds=range(round_, round_ + 1),
            epochs=spec.training.local_epochs,
            start=1,
            total=spec.rounds.count,
            seed=derive_seed(manifest.seed, "train", self.name),
            anchor=_on(self._device, received) if spec.aggregation.rule == "fedprox" else None,
        )
        with self._timed("train"):
            how = self.datasets.execution(data, round_)
            self._shared.start_from(received, name)
            trained = train(self._shared, data, course, self._device, how=how)
            update = self._shared.return_to(layout, received, name)
            if self._rank is not None:
                cut = at_rank(unpack(layout, update), self._rank)
                layout = manifest.reply_of(self.name)
                update = pack(layout, cut)
        with self._timed("code"):
            sent = self._coded(manifest, layout, update)
        return TrainBody(loss=trained.loss, num_steps=trained.num_steps), sent

    def _coded(self, manifest: StepManifest, layout: Layout, update: Packed) -> Packed:
        """The update as it is sent: itself, or coded with what was lost before."""
        codec = self._shared.codec(layout)
        if codec is None:
            return update
        if self._feedback is None:
            return codec.encode(update)
        feedback, round_ = self._feedback(manifest.run), manifest.round
        remainder = feedback.before(round_, update.size)
        if remainder is not None:
            update += remainder
        coded = codec.encode(update)
        decoded = np.empty_like(update) if remainder is None else remainder
        codec.decode(coded, decoded)
        feedback.keep(round_, np.subtract(update, decoded, out=decoded))
        return coded

    def _evaluate(self, manifest: StepManifest, state: Packed | None) -> Work:
        assert state is not None
        num_subjects = self.datasets.part("validation").num_subjects
        if num_subjects == 0:
            return EvaluateBody(loss=None, metric=None, num_validation_subjects=0), None
        data = self.datasets.training_set(
            "validation", self._table_moments(manifest), manifest.round
        )
        with self._timed("evaluate"):
            self._shared.start_from(unpack(manifest.state_layout, state), self._name_of(manifest))
            predictions, loss = predict(self._shared, data, self._device)
        metric = predictions.metric(self._shared.federation.metric)
        return EvaluateBody(loss=loss, metric=metric, num_validation_subjects=num_subjects), None

    def _compare(self, manifest: StepManifest, state: Packed | None) -> Work:
        assert state is not None
        comparison = ModelComparison(
            self._shared, self.datasets, self._device, seed=manifest.seed, site=self.name
        )
        with self._timed("evaluate"):
            result = comparison.run(
                unpack(manifest.state_layout, state),
                self._table_moments(manifest),
                rounds=manifest.round,
            )
        return CompareBody(comparison=result), None

    def _name_of(self, manifest: StepManifest) -> Digest | None:
        """A name for the state that came with a manifest; None where this site changes it first."""
        return manifest.digest() if self._rank is None else None

    def _table_moments(self, manifest: StepManifest) -> TableMoments | None:
        data = self._shared.federation.data
        if isinstance(data, TabularData) and data.standardise == "site":
            return self.datasets.own_moments()
        return manifest.moments

    @contextmanager
    def _timed(self, phase: Phase) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - started


def _smaller_rank(tuning: TuningMethod, rank: int | None) -> int | None:
    """A site's own rank of adapters where it is below the federation's, else None."""
    if not isinstance(tuning, Lora) or rank is None or rank >= tuning.rank:
        return None
    if tuning.merge != "product":
        raise ConfigError(
            f"compute.lora_rank = {rank} is below the federation's {tuning.rank}, which needs "
            'tuning.merge = "product" in the federation file; leave it out, or ask the coordinator',
            code="lora_rank",
        )
    return rank


def _on(device: torch.device, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _check_digest(manifest: StepManifest, state: Packed | None) -> None:
    received = sha256_hex(b"" if state is None else as_bytes(state))
    if received != manifest.state_sha256:
        raise WireError("the array is not the one the manifest names", code="state_digest")
