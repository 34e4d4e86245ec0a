"""``federation.toml``: what the coordinator writes and every party reads.

One file drives simulation and deployment. The canonical hash of the parsed file names it: two
files that mean the same have the same hash, whatever their comments and order.
"""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wardround_common.canonical import canonical_bytes
from wardround_common.spec.base import (
    Count,
    NonNegative,
    OpenOrOne,
    OpenRate,
    Positive,
    Rate,
    RateBelowOne,
    SiteName,
    Table,
)
from wardround_common.spec.data import ColumnPartition, DataSpec, Partition, TabularData
from wardround_common.spec.exchange import Exchange
from wardround_common.spec.lending import Lending
from wardround_common.types import HEX_DIGEST, Digest, sha256_hex


class Federation(Table):
    """Who takes part."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Name of the federation, for reports."
    )
    sites: tuple[SiteName, ...] = Field(
        min_length=1,
        max_length=1000,
        description="The roster: every site that is asked, by name. Nobody else ever is.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of everything random in the run."
    )

    @field_validator("sites")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a site is named twice")
        return value


class Classification(Table):
    """One class for each example."""

    kind: Literal["classification"] = Field(description="Kind of task.")
    labels: tuple[str, ...] = Field(
        min_length=2,
        max_length=1000,
        description="Class names. With two, the second is the positive class.",
    )

    @field_validator("labels")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a label is named twice")
        return value


class Entities(Table):
    """Named entities in text, tagged B-/I-/O (IOB2); scored by strict entity F1."""

    kind: Literal["entities"] = Field(description="Kind of task.")
    types: tuple[str, ...] = Field(min_length=1, max_length=100, description="Entity types.")

    @field_validator("types")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("an entity type is named twice")
        return value

    @property
    def labels(self) -> tuple[str, ...]:
        """The tags in model order: O, then B-T and I-T of each type."""
        return ("O", *(f"{prefix}-{kind}" for kind in self.types for prefix in ("B", "I")))


TaskSpec = Annotated[Classification | Entities, Field(discriminator="kind")]


class Backbone(Table):
    """The shared pretrained model. It never travels in a round; each site holds it already."""

    ref: str = Field(
        default="none",
        pattern=r"^(none|(torchvision|timm|hf|package|file):\S{1,300})$",
        description='Where the weights are: "none" (tables), "package:NAME" (inside an installed '
        'Python package), "hf:FOLDER" (a local folder or cache entry), "file:PATH#ARCHITECTURE" '
        '(safetensors), "timm:ARCHITECTURE" or "torchvision:ARCHITECTURE" (imported beforehand).',
    )
    sha256: str | None = Field(
        default=None,
        pattern=HEX_DIGEST,
        description="Digest of the weights, printed by `wardround backbone show REF`. A site whose "
        "copy differs refuses. Required for every backbone but none.",
    )

    @model_validator(mode="after")
    def _pinned(self) -> "Backbone":
        if (self.ref == "none") != (self.sha256 is None):
            raise ValueError(
                "a backbone is pinned by its sha256 (see `wardround backbone show REF`), "
                'and ref = "none" has none'
            )
        return self


class HeadOnly(Table):
    """The backbone stays frozen; features are computed once per site and cached."""

    method: Literal["head"] = Field(description="What is trained beside the head.")


class LastBlocks(Table):
    """Train the last blocks of the backbone and the head.

    What comes before them stays in evaluation mode; its output is computed once and cached.
    """

    method: Literal["last-k"] = Field(description="What is trained beside the head.")
    blocks: Count = Field(default=1, description="How many blocks, counted from the output.")


class GradualUnfreezing(Table):
    """Start with the head and thaw one more block from the output at given rounds."""

    method: Literal["gradual"] = Field(description="What is trained beside the head.")
    unfreeze_at: tuple[Count, ...] = Field(
        min_length=1,
        description="Round numbers, ascending; at each the next block becomes trainable.",
    )

    @field_validator("unfreeze_at")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("list different round numbers in ascending order")
        return value


class FullTuning(Table):
    """Train every parameter."""

    method: Literal["full"] = Field(description="What is trained beside the head.")


class Lora(Table):
    """Low-rank adapters on linear layers (Hu et al. 2022), through PEFT, and the head."""

    method: Literal["lora"] = Field(description="What is trained beside the head.")
    rank: int = Field(default=8, ge=1, le=256, description="Rank r of each adapter.")
    alpha: Positive = Field(
        default=16.0, description="Scale: the adapter's output is times alpha / rank."
    )
    dropout: RateBelowOne = Field(default=0.0, description="Dropout on the adapter's input.")
    targets: tuple[str, ...] = Field(
        default=("query", "value"),
        min_length=1,
        description="Last parts of the names of the linear layers that get an adapter.",
    )
    merge: Literal["factors", "product"] = Field(
        default="factors",
        description='How adapters become one: "factors" averages the matrices A and B apart '
        '(FedIT; cheap, and not the mean of what the adapters do), "product" averages the products '
        "B A and keeps the best rank-r factors (FlexLoRA). Only product lets sites have smaller "
        "ranks; it goes with fedavg and fedprox.",
    )
    train: Literal["both", "b", "alternate"] = Field(
        default="both",
        description='Which matrices move: "both"; "b", with A frozen at its seeded start '
        '(FFA-LoRA); "alternate", B in odd and A in even rounds (RoLoRA). The last two send one '
        "matrix up a round and their mean is exact with merge = factors.",
    )

    @model_validator(mode="after")
    def _one_exact_way(self) -> "Lora":
        if self.merge == "product" and self.train != "both":
            raise ValueError(
                f'tuning.train = "{self.train}" already has an exact mean; '
                'use it with merge = "factors", or merge = "product" with train = "both"'
            )
        return self


class BiasOnly(Table):
    """Train the biases and the head (BitFit, Zaken et al. 2022)."""

    method: Literal["bias"] = Field(description="What is trained beside the head.")


TuningMethod = Annotated[
    HeadOnly | LastBlocks | GradualUnfreezing | FullTuning | Lora | BiasOnly,
    Field(discriminator="method"),
]


class Head(Table):
    """The part that maps features to classes."""

    kind: Literal["linear", "mlp"] = Field(
        default="linear", description='"mlp" adds one hidden layer.'
    )
    hidden: Count = Field(default=32, description="Units of the hidden layer of an mlp.")
    dropout: RateBelowOne = Field(default=0.0, description="Dropout before the last linear layer.")
    warm_start: bool = Field(
        default=False,
        description="Start a linear head from the one-round exact head instead of from zero.",
    )


class Optimizer(Table):
    """The local optimizer; it starts afresh each round."""

    name: Literal["sgd", "adam", "adamw"] = Field(default="adamw", description="The algorithm.")
    learning_rate: Positive = Field(default=1e-3, description="Step size at full schedule.")
    head_learning_rate: Positive | None = Field(
        default=None, description="Step size of the head where it should differ."
    )
    momentum: RateBelowOne = Field(default=0.9, description="Momentum of SGD.")
    weight_decay: NonNegative = Field(
        default=0.0, description="L2 (SGD, Adam) or decoupled (AdamW)."
    )


class ConstantSchedule(Table):
    """The same learning rate throughout."""

    kind: Literal["constant"] = Field(description="Shape of the schedule.")


class StepSchedule(Table):
    """Multiply the learning rate by gamma every so many rounds."""

    kind: Literal["step"] = Field(description="Shape of the schedule.")
    every_rounds: Count = Field(default=10, description="Rounds between two drops.")
    gamma: OpenRate = Field(default=0.1, description="Factor of each drop.")


class CosineSchedule(Table):
    """Linear warm-up, then half a cosine to zero, over the whole run."""

    kind: Literal["cosine"] = Field(description="Shape of the schedule.")
    warmup_fraction: Rate = Field(
        default=0.1, description="Share of all local steps spent warming up."
    )


Schedule = Annotated[ConstantSchedule | StepSchedule | CosineSchedule, Field(discriminator="kind")]


class Augmentation(Table):
    """Several views of each training image (Krizhevsky et al. 2012, section 4.1).

    View 0 is the image as it is; the others are drawn once, from the federation's seed and the
    image alone. Epoch e of the run trains on view e modulo their number, so a frozen backbone's
    features are still computed once for each view.
    """

    views: int = Field(
        default=4, ge=2, le=64, description="Views of each image, the plain one among them."
    )
    horizontal_flip: bool = Field(default=False, description="Mirror left and right, half of all.")
    vertical_flip: bool = Field(default=False, description="Mirror up and down, half of all.")
    rotation_degrees: float = Field(
        default=0.0, ge=0.0, le=180.0, description="Largest rotation, either way; corners black."
    )
    scale: tuple[OpenOrOne, ...] = Field(
        default=(1.0, 1.0),
        min_length=2,
        max_length=2,
        description="Smallest and largest share of the image's area in a square crop, which is "
        "scaled back to the image's size.",
    )
    brightness: RateBelowOne = Field(
        default=0.0, description="Largest relative change of brightness, either way."
    )
    contrast: RateBelowOne = Field(
        default=0.0, description="Largest relative change of contrast, either way."
    )

    @model_validator(mode="after")
    def _does_something(self) -> "Augmentation":
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale gives the smallest share first, such as [0.7, 1.0]")
        amounts = (self.rotation_degrees, self.brightness, self.contrast, 1.0 - self.scale[0])
        if not (self.horizontal_flip or self.vertical_flip or any(amounts)):
            raise ValueError(
                "every view would be the plain image; choose at least one of horizontal_flip, "
                "vertical_flip, rotation_degrees, scale, brightness, contrast"
            )
        return self


class Training(Table):
    """What a site does in one round."""

    local_epochs: Count = Field(
        default=1, description="Passes over the site's training part a round."
    )
    batch_size: Count = Field(default=32, description="Examples a step.")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="Local optimizer.")
    schedule: Schedule = Field(
        default_factory=lambda: ConstantSchedule(kind="constant"),
        description="Learning rate over the run. Absent: constant.",
    )
    class_weights: Literal["none", "balanced"] | tuple[Positive, ...] = Field(
        default="none",
        description='Loss weight of each class: "none", "balanced" (inverse to the site\'s own '
        "counts, mean 1), or one number a class.",
    )
    label_smoothing: Rate = Field(default=0.0, description="Label smoothing of the cross-entropy.")
    clip_norm: Positive | None = Field(
        default=None, description="Clip the gradient's L2 norm each step."
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        default="fp32",
        description='What matrix products and convolutions are computed in: "fp32"; "bf16" where a '
        'site\'s hardware has it, fp32 elsewhere; "auto", where it also was measured to be faster '
        "at that site (and likewise images with their channels last). Parameters and updates are "
        "float32 in any case. A site may be stricter.",
    )
    augmentation: Augmentation | None = Field(
        default=None,
        description="Views of each training image. Absent: the plain image alone. Validation and "
        "test always see the plain image.",
    )


class Rounds(Table):
    """How many rounds, and when one counts."""

    count: int = Field(
        default=10, ge=0, description="Training rounds; 0 stops after the exact head."
    )
    quorum_sites: Count | None = Field(
        default=None, description="Sites that must contribute. Absent: every site of the roster."
    )
    quorum_subjects: Count = Field(
        default=1, description="Training subjects that the contributing sites must have together."
    )
    deadline_s: Positive = Field(
        default=3600.0, description="Seconds that a round waits for replies."
    )
    max_abandoned: int = Field(
        default=2, ge=0, description="Abandoned rounds in a row after which the run ends as failed."
    )
    early_stopping: Count | None = Field(
        default=None,
        description="Stop after so many rounds without a better federated validation metric and "
        "keep the best model. Needs [data].validation_fraction.",
    )


class FedAvg(Table):
    """Mean of the updates weighted by training subjects (McMahan et al. 2017, algorithm 1)."""

    rule: Literal["fedavg"] = Field(description="The aggregation rule.")


class FedProx(Table):
    """FedAvg with a proximal term in the local loss (Li et al. 2020, algorithm 2)."""

    rule: Literal["fedprox"] = Field(description="The aggregation rule.")
    mu: Positive = Field(default=0.01, description="Weight of mu/2 * ||w - w_global||^2.")


class FedAvgM(Table):
    """FedAvg with server momentum (Hsu et al. 2019, section 4.3)."""

    rule: Literal["fedavgm"] = Field(description="The aggregation rule.")
    learning_rate: Positive = Field(default=1.0, description="Server step along the momentum.")
    momentum: RateBelowOne = Field(default=0.9, description="Share of the momentum that is kept.")


class FedAdam(Table):
    """Adam on the server (Reddi et al. 2021, algorithm 2), with bias correction as in Flower."""

    rule: Literal["fedadam"] = Field(description="The aggregation rule.")
    learning_rate: Positive = Field(default=0.1, description="Server step size (eta).")
    beta1: RateBelowOne = Field(default=0.9, description="Decay of the first moment.")
    beta2: RateBelowOne = Field(default=0.99, description="Decay of the second moment.")
    tau: Positive = Field(default=1e-3, description="Adaptivity: added to the root of v.")


class FedYogi(Table):
    """Yogi on the server (Reddi et al. 2021, algorithm 2)."""

    rule: Literal["fedyogi"] = Field(description="The aggregation rule.")
    learning_rate: Positive = Field(default=0.01, description="Server step size (eta).")
    beta1: RateBelowOne = Field(default=0.9, description="Decay of the first moment.")
    beta2: RateBelowOne = Field(default=0.99, description="Decay of the second moment.")
    tau: Positive = Field(default=1e-3, description="Adaptivity: added to the root of v.")


class FedAdagrad(Table):
    """Adagrad on the server (Reddi et al. 2021, algorithm 2)."""

    rule: Literal["fedadagrad"] = Field(description="The aggregation rule.")
    learning_rate: Positive = Field(default=0.1, description="Server step size (eta).")
    tau: Positive = Field(default=1e-3, description="Adaptivity: added to the root of v.")


AggregationRule = Annotated[
    FedAvg | FedProx | FedAvgM | FedAdam | FedYogi | FedAdagrad, Field(discriminator="rule")
]


class Limits(Table):
    """What a contribution may be at most; larger ones are refused, not clipped."""

    update_norm: Positive = Field(
        default=100.0, le=1e6, description="L2 norm of a site's update over all tensors."
    )
    subjects: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Training subjects that a site may claim."
    )


class ExactHead(Table):
    """The one-round exact head: ridge regression from summed Gram matrices."""

    enabled: bool = Field(default=True, description="Compute it as baseline (and as warm start).")
    ridge: Positive | Literal["auto"] = Field(
        default="auto",
        description='Penalty alpha of ||Xw - y||^2 + alpha ||w||^2; "auto" chooses by '
        "cross-validation from the same sums, no row leaves a site.",
    )
    folds: int = Field(
        default=5, ge=2, le=20, description="Cross-validation folds of ridge = auto."
    )


class Evaluation(Table):
    """What each site measures on its own held-out subjects."""

    metric: str | None = Field(
        default=None,
        description="The metric of verdicts and early stopping. Absent: accuracy, or strict entity "
        "F1. One of accuracy, balanced_accuracy, auc, f1_macro; entity_f1.",
    )
    bootstrap: int = Field(
        default=1000, ge=100, le=20_000, description="Bootstrap resamples of subjects per interval."
    )
    confidence: OpenRate = Field(default=0.95, description="Level of the intervals.")
    personalise_epochs: int = Field(
        default=3,
        ge=0,
        description="Local epochs that turn the federated into the personalised model.",
    )
    compare: bool = Field(
        default=True,
        description="Train local-only and personalised models for the report. The local-only model "
        "gets as many local epochs as the whole federated run.",
    )
    every_rounds: Count = Field(
        default=1, description="Federated validation after every so many rounds."
    )


class Simulation(Table):
    """How one machine plays the sites. Ignored in deployment."""

    dataset: str = Field(
        min_length=1,
        description="Name of a public set (`wardround data list`) or path of prepared data, "
        "relative to the federation file.",
    )
    partition: Partition = Field(description="Which rows each site gets.")
    subset: Count | None = Field(
        default=None, description="Use only the first so many examples of the training part."
    )
    pooled: bool = Field(default=True, description="Also train on all sites' data together.")
    threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Processor threads; absent: all. Part of the result.",
    )
    lora_ranks: dict[SiteName, int] = Field(
        default_factory=dict,
        description="Site -> LoRA rank where it is smaller than tuning.rank, as compute.lora_rank "
        'of site.toml. Needs tuning.merge = "product".',
    )
    checkpoint_s: NonNegative = Field(
        default=10.0,
        description="Seconds between two moments at which the run becomes durable; a crash costs "
        "the time since the last one, not the result. 0: after every step.",
    )
    compute: Lending = Field(
        default_factory=Lending, description="What each simulated site lends to training."
    )


class FederationSpec(Table):
    """The whole file."""

    federation: Federation = Field(description="Who takes part.")
    data: DataSpec = Field(description="The schema that every site's data must have.")
    task: TaskSpec = Field(description="What the model predicts.")
    backbone: Backbone = Field(default_factory=Backbone)
    tuning: TuningMethod = Field(
        default_factory=lambda: HeadOnly(method="head"),
        description="Which part of the backbone is trained; the head always is. Absent: head.",
    )
    head: Head = Field(default_factory=Head)
    training: Training = Field(default_factory=Training)
    rounds: Rounds = Field(default_factory=Rounds)
    aggregation: AggregationRule = Field(
        default_factory=lambda: FedAvg(rule="fedavg"),
        description="How the sites' updates become one. Absent: fedavg.",
    )
    limits: Limits = Field(default_factory=Limits)
    exchange: Exchange = Field(default_factory=Exchange)
    exact_head: ExactHead = Field(default_factory=ExactHead)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    simulation: Simulation | None = Field(
        default=None, description="How one machine plays the sites. Needed to simulate only."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "FederationSpec":
        for check in (
            self._check_modality,
            self._check_rounds,
            self._check_labels,
            self._check_partition,
            self._check_aggregation,
            self._check_lora,
        ):
            check()
        return self

    def _check_lora(self) -> None:
        lora = self.tuning if isinstance(self.tuning, Lora) else None
        rule = self.aggregation.rule
        plain = rule in {"fedavg", "fedprox"}
        if lora is not None and lora.merge == "product" and not plain:
            raise ValueError(
                f'tuning.merge = "product" gives new factors each round, and aggregation.rule = '
                f'"{rule}" remembers moments of the old ones; use fedavg or fedprox, or '
                'merge = "factors"'
            )
        if lora is not None and lora.train == "alternate" and not plain:
            raise ValueError(
                f'tuning.train = "alternate" trains other values each round, and aggregation.rule '
                f'= "{rule}" remembers moments of each; use fedavg or fedprox'
            )
        ranks = {} if self.simulation is None else self.simulation.lora_ranks
        if not ranks:
            return
        if lora is None or lora.merge != "product":
            raise ValueError(
                'simulation.lora_ranks needs tuning.method = "lora" with merge = "product": '
                "factors of different ranks have no mean"
            )
        strangers = sorted(set(ranks) - set(self.federation.sites))
        if strangers:
            raise ValueError(f"simulation.lora_ranks names sites not in the roster: {strangers}")
        wrong = {site: rank for site, rank in ranks.items() if not 1 <= rank <= lora.rank}
        if wrong:
            raise ValueError(
                f"simulation.lora_ranks: ranks are 1 to tuning.rank = {lora.rank}, not {wrong}"
            )

    def _check_aggregation(self) -> None:
        rule = self.aggregation.rule
        if rule not in {"fedavg", "fedprox"} and self.tuning.method == "gradual":
            raise ValueError(
                f'aggregation.rule = "{rule}" remembers moments of each trained value, and with '
                'tuning.method = "gradual" their set changes; use fedavg or fedprox, or another '
                "tuning method"
            )
        alternates = isinstance(self.tuning, Lora) and self.tuning.train == "alternate"
        if self.exchange.error_feedback and (alternates or self.tuning.method == "gradual"):
            raise ValueError(
                "exchange.update.error_feedback carries what an update lost to the next one of the "
                "same tensors, and with this tuning their set changes from round to round; set it "
                "to false, or use another tuning"
            )

    def _check_modality(self) -> None:
        tabular = isinstance(self.data, TabularData)
        if tabular != (self.backbone.ref == "none"):
            raise ValueError('tables take backbone.ref = "none", and only tables do')
        if (self.task.kind == "entities") != (self.data.modality == "tokens"):
            raise ValueError('task.kind = "entities" goes with data.modality = "tokens"')
        if tabular and self.tuning.method not in {"head", "full"}:
            raise ValueError('tables have no backbone: tuning.method is "head" or "full"')
        if self.training.augmentation is not None and self.data.modality != "image":
            raise ValueError(
                f"training.augmentation makes views of images; data.modality is "
                f'"{self.data.modality}": leave the table out'
            )
        if self.head.warm_start and not (self.exact_head.enabled and self.head.kind == "linear"):
            raise ValueError('head.warm_start needs exact_head.enabled and head.kind = "linear"')

    def _check_rounds(self) -> None:
        quorum = self.rounds.quorum_sites
        if quorum is not None and quorum > len(self.federation.sites):
            raise ValueError(
                f"rounds.quorum_sites = {quorum}, but the roster has "
                f"{len(self.federation.sites)} sites"
            )
        if self.rounds.early_stopping is not None and self.data.validation_fraction == 0.0:
            raise ValueError("rounds.early_stopping needs data.validation_fraction above 0")
        if self.rounds.count == 0 and not self.exact_head.enabled:
            raise ValueError("rounds.count = 0 with exact_head.enabled = false trains nothing")

    def _check_labels(self) -> None:
        num_labels = len(self.task.labels)
        weights = self.training.class_weights
        if isinstance(weights, tuple) and len(weights) != num_labels:
            raise ValueError(f"training.class_weights has {len(weights)} numbers, not {num_labels}")
        mapping = getattr(self.data, "label_map", {})
        unknown = sorted(set(mapping.values()) - set(self.task.labels))
        if unknown:
            raise ValueError(f"data.label_map names classes that task.labels has not: {unknown}")
        allowed = metrics_of(self.task.kind)
        if self.evaluation.metric is not None and self.evaluation.metric not in allowed:
            raise ValueError(
                f"evaluation.metric = {self.evaluation.metric!r}; allowed: {', '.join(allowed)}"
            )

    def _check_partition(self) -> None:
        if self.simulation is None or not isinstance(self.simulation.partition, ColumnPartition):
            return
        named = set(self.simulation.partition.values)
        if named != set(self.federation.sites):
            raise ValueError(
                "simulation.partition.values must name exactly the sites of the roster; "
                f"differing: {sorted(named ^ set(self.federation.sites))}"
            )

    @property
    def metric(self) -> str:
        """The metric of verdicts and early stopping."""
        return self.evaluation.metric or metrics_of(self.task.kind)[0]

    @property
    def quorum_sites(self) -> int:
        """The sites that must contribute to a round."""
        return self.rounds.quorum_sites or len(self.federation.sites)

    def digest(self) -> Digest:
        """The canonical hash of this specification."""
        return self._digest

    @cached_property
    def _digest(self) -> Digest:
        return sha256_hex(canonical_bytes(self.model_dump(mode="json")))


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics a task has, the default first. All lie in [0, 1], larger is better."""
    if task == "entities":
        return ("entity_f1",)
    return ("accuracy", "balanced_accuracy", "auc", "f1_macro")
