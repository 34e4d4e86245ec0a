"""The manifest of one step (down) and the receipt of one site (up).

A run is a sequence of *steps*; a training round is a step of kind ``train``. Both messages are
canonical JSON of bounded size, so a digest names exactly one meaning. They carry no text that
anybody wrote: only names from the federation file, numbers, digests and codes.
"""

from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from wardround_common.audit.heads import SignedHead
from wardround_common.canonical import canonical_bytes, parse_canonical
from wardround_common.crypto.signing import PublicKey, Signature, SigningKey, is_signed
from wardround_common.errors import WireError
from wardround_common.tuning.lora_factors import layout_at_rank
from wardround_common.types import HEX_DIGEST, SITE_NAME, Digest, TensorSpec, sha256_hex
from wardround_common.wire.layout import Layout

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_RECEIPT_BYTES = 1 * 2**20
MAX_COUNT = 10**12
"""Counts above this are no hospital's; sums of such counts stay exact in float64."""

_MANIFEST, _RECEIPT = "manifest", "receipt"

StepKind = Literal["describe", "moments", "gram", "train", "evaluate", "compare"]
HexDigest = Annotated[str, Field(pattern=HEX_DIGEST)]
SiteName = Annotated[str, Field(pattern=SITE_NAME)]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Phase = Literal["data", "features", "train", "code", "evaluate"]
Seconds = Annotated[float, Field(ge=0.0, le=1e9)]
WireTensor = tuple[str, Literal["float32", "float64"], tuple[int, ...]]


class WireModel(BaseModel):
    """Frozen, closed, canonical."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        return canonical_bytes(self.model_dump(mode="json"))

    def digest(self) -> Digest:
        """The SHA-256 of the canonical encoding."""
        return self._digest

    @cached_property
    def _digest(self) -> Digest:
        return sha256_hex(self.to_bytes())


Model = TypeVar("Model", bound=WireModel)


def parse(model: type[Model], data: bytes, *, max_bytes: int) -> Model:
    """Decode a wire model.

    Raises:
        WireError: too long, not canonical JSON, or not of the model's form.
    """
    parse_canonical(data, max_bytes=max_bytes)
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise WireError(f"not a {model.__name__}", code="message_form") from error


class TableMoments(WireModel):
    """Federated mean and deviation of the numeric columns, in the federation file's order."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class StepManifest(WireModel):
    """What every site of a step is told.

    Attributes:
        run: the run's identifier.
        step: number of the step in the run, from 0; never reused, also not after an abandoned one.
        kind: what is asked.
        round: training round that the step belongs to, from 1; 0 before training.
        sites: the cohort, in roster order.
        spec_sha256: canonical hash of the federation file; a site that holds another one refuses.
        backbone_sha256: digest of the backbone, or None for tables.
        state: layout of the array that comes with this manifest.
        state_sha256: its digest.
        reply: layout of the array that is wanted back; empty where only the receipt is.
        ranks: site -> LoRA rank of its reply, where it is smaller than that of ``reply``.
        update_norm: largest L2 norm of the reply.
        subjects: largest number of training subjects a site may claim.
        bound: largest magnitude of a value in the reply.
        seed: the run's seed.
        moments: how numeric columns are standardised, once that is known.
        head: of the aggregator's log of this run before this step, for sites to keep; None in a
            simulation.
        coordinator: public key of who asks; None in a simulation.
        signature: by that key, over all the rest; None likewise.
    """

    protocol: Literal[1] = 1
    run: RunId
    step: int = Field(ge=0)
    kind: StepKind
    round: int = Field(ge=0)
    sites: tuple[SiteName, ...]
    spec_sha256: HexDigest
    backbone_sha256: HexDigest | None
    state: tuple[WireTensor, ...] = ()
    state_sha256: HexDigest
    reply: tuple[WireTensor, ...] = ()
    ranks: dict[SiteName, Annotated[int, Field(ge=1, le=256)]] = Field(default_factory=dict)
    update_norm: float = Field(gt=0)
    subjects: int = Field(ge=1)
    bound: float = Field(gt=0)
    seed: int = Field(ge=0)
    moments: TableMoments | None = None
    head: SignedHead | None = None
    coordinator: PublicKey | None = None
    signature: Signature | None = None

    def signed(self, key: SigningKey) -> "StepManifest":
        """The same question, signed: it has another digest, always the same one."""
        unsigned = self._with(coordinator=key.public, signature=None).to_bytes()
        signature = key.sign(_MANIFEST, unsigned)
        return self._with(coordinator=key.public, signature=signature)

    @property
    def is_signed(self) -> bool:
        """Whether the key that it names has signed it; whose key that is, the site knows."""
        if self.coordinator is None or self.signature is None:
            return False
        unsigned = self._with(signature=None).to_bytes()
        return is_signed(_MANIFEST, unsigned, self.coordinator, self.signature)

    def _with(self, **fields: str | None) -> "StepManifest":
        """The same with other fields; nothing that was derived from the old ones is kept."""
        kept: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        kept.update(fields)
        return StepManifest(**kept)

    @cached_property
    def state_layout(self) -> Layout:
        """The layout of the array that comes with this manifest."""
        return layout_from_wire(self.state)

    @cached_property
    def reply_layout(self) -> Layout:
        """The layout of the array that is wanted back."""
        return layout_from_wire(self.reply)

    def reply_of(self, site: str) -> Layout:
        """The layout of the array that is wanted back from one site."""
        rank = self.ranks.get(site)
        return self.reply_layout if rank is None else layout_at_rank(self.reply_layout, rank)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Manifests without ranks, head or signature have the bytes that they always had."""
        fields: dict[str, Any] = write(self)
        optional = ("ranks", "head", "coordinator", "signature")
        absent = {key for key in optional if not getattr(self, key)}
        return {key: value for key, value in fields.items() if key not in absent}


class Receipt(WireModel):
    """What a site answers.

    Attributes:
        manifest_sha256: digest of the manifest that was answered: binds run, step, round, cohort,
            model and limits, so a receipt fits one question only.
        site: who answers.
        tensors: layout of the array that comes with it; must be the manifest's ``reply``,
            at the site's rank.
        update_sha256: digest of that array's bytes; None when there is none.
        num_subjects: training subjects behind the answer: the weight.
        num_examples: training examples behind it.
        body: numbers of this kind of step; see :mod:`wardround_common.wire.bodies`.
        seconds: time by phase, in seconds; measured, hence not part of any result.
        head: of the site's audit log before this answer, for others to keep; None in a simulation.
        signature: by the key of that log, over all the rest; None likewise.
    """

    protocol: Literal[1] = 1
    run: RunId
    step: int = Field(ge=0)
    kind: StepKind
    round: int = Field(ge=0)
    manifest_sha256: HexDigest
    site: SiteName
    tensors: tuple[WireTensor, ...] = ()
    update_sha256: HexDigest | None = None
    num_subjects: int
    num_examples: int = Field(ge=0, le=MAX_COUNT)
    body: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[Phase, Seconds] = Field(default_factory=dict)
    head: SignedHead | None = None
    signature: Signature | None = None

    def signed(self, key: SigningKey) -> "Receipt":
        """The same answer, signed by the key of its head.

        Args:
            key: of the log whose head it carries.
        """
        unsigned = self.model_copy(update={"signature": None})
        signature = key.sign(_RECEIPT, canonical_bytes(unsigned.model_dump(mode="json")))
        return self.model_copy(update={"signature": signature})

    @property
    def is_signed(self) -> bool:
        """Whether the key of its head has signed it; whose key that is, the aggregator knows."""
        if self.head is None or self.signature is None:
            return False
        unsigned = self.model_copy(update={"signature": None})
        document = canonical_bytes(unsigned.model_dump(mode="json"))
        return is_signed(_RECEIPT, document, self.head.key, self.signature)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Receipts without head or signature have the bytes that they always had."""
        fields: dict[str, Any] = write(self)
        absent = {key for key in ("head", "signature") if not getattr(self, key)}
        return {key: value for key, value in fields.items() if key not in absent}


@lru_cache(maxsize=2)
def parse_manifest(data: bytes) -> StepManifest:
    """Decode a manifest. Every site of a step gets the same bytes: in one process, once.

    Raises:
        WireError: too long, not canonical JSON, or not of the manifest's form.
    """
    return parse(StepManifest, data, max_bytes=MAX_MANIFEST_BYTES)


@lru_cache(maxsize=16)
def layout_to_wire(layout: Layout) -> tuple[WireTensor, ...]:
    """A layout as manifests and receipts carry it."""
    assert layout.dtype != "uint8", "a manifest describes values, not their coding"
    return tuple((t.name, layout.dtype, t.shape) for t in layout.tensors)


def layout_from_wire(tensors: tuple[WireTensor, ...]) -> Layout:
    """The layout behind a manifest's list.

    Raises:
        WireError: the list is not a legal layout.
    """
    return Layout(tuple(TensorSpec(name, dtype, shape) for name, dtype, shape in tensors))
