"""The model of a federation, and which of its tensors each round exchanges.

Built from the federation file alone, in the same way at the aggregator and at every site, so both
know every exchanged name, shape and dtype before the first message. A simulation builds it once
for all sites: they take turns in it, loading the trainable set in place.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from functools import cached_property

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wardround_common.backbones.registry import load_backbone
from wardround_common.backbones.split import SplitBackbone, modules_before, probe_of, split_at
from wardround_common.change import Change
from wardround_common.model import FineTunedModel, build_model
from wardround_common.spec.federation import FederationSpec
from wardround_common.tasks.base import Task
from wardround_common.tasks.registry import task_for
from wardround_common.tuning import lora_factors
from wardround_common.tuning.registry import tuning_for
from wardround_common.types import Digest
from wardround_common.wire.codecs.base import Codec
from wardround_common.wire.codecs.registry import codec_for
from wardround_common.wire.layout import Layout, Packed, layout_of

_BACKBONE, _HEAD = "backbone.", "head."


class SharedModel:
    """A model whose trainable set is loaded and read in place.

    Attributes:
        federation: the file it was built from.
        task: its loss and metrics.
        model: the module; in evaluation mode between uses.
        feature_dim: width of the backbone's features.
        backbone_digest: SHA-256 of the pretrained weights; None for tables.

    Raises:
        BackboneError: the backbone is missing, corrupt or not the pinned one.
        ConfigError: the tuning method does not fit the backbone.
    """

    def __init__(self, federation: FederationSpec) -> None:
        self.federation = federation
        self.task: Task = task_for(federation.task)
        self._tuning = tuning_for(federation.tuning)
        loaded = self._tuning.prepare(load_backbone(federation), federation.federation.seed)
        self.model: FineTunedModel = build_model(
            loaded, federation.head, self.task.num_outputs, federation.federation.seed
        )
        self.feature_dim = loaded.feature_dim
        self.backbone_digest: Digest | None = loaded.digest
        self.encoder = loaded.encoder
        self._blocks = loaded.blocks
        self._shares_batchnorm = federation.exchange.batchnorm == "shared"
        self._splits: dict[str, SplitBackbone | None] = {}
        self._names: tuple[int, tuple[str, ...]] = (-1, ())
        self._first: tuple[int, str | None] = (-1, None)
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._layout: tuple[int, Layout] = (-1, Layout(()))
        self._codec: tuple[Layout, Codec | None] | None = None
        self._change: Change | None = None
        self._place: Callable[[Layout], Packed] | None = None
        self._standing: Digest | None = None
        self._trainable: tuple[tuple[str, ...], list[nn.Parameter]] = ((), [])
        self._frozen: tuple[str, list[nn.Module]] = ("", [])
        self._trained: tuple[int, frozenset[str]] = (0, frozenset())
        self._state_layout: tuple[int, Layout] = (-1, Layout(()))
        ever = self.state_layout(max(federation.rounds.count, 1)).tensors
        start = self.tensors(spec.name for spec in ever)
        self.initial = {name: tensor.clone() for name, tensor in start.items()}

    def names(self, round_: int) -> tuple[str, ...]:
        """Names of the tensors that a round (from 1) trains and sites send, in model order.

        Parameters that the tuning method trains, the head, and - only if the file says so -
        BatchNorm's running mean and variance. Integer buffers are never among them. Every site
        asks for the same round, so the last answer is kept.
        """
        last = self._names
        if last[0] != round_:
            last = self._names = (round_, self._names_in(round_))
        return last[1]

    def _names_in(self, round_: int) -> tuple[str, ...]:
        return self._exchanged(self._tuning.trainable(self.model.backbone, self._blocks, round_))

    def _exchanged(self, chosen: frozenset[str]) -> tuple[str, ...]:
        parameters = [
            name
            for name, _ in self.model.named_parameters()
            if name.startswith(_HEAD) or name.removeprefix(_BACKBONE) in chosen
        ]
        return (*parameters, *(self._statistics() if self._shares_batchnorm else ()))

    def layout(self, round_: int) -> Layout:
        """The layout of what sites send in a round: what the round trains."""
        last = self._layout
        if last[0] != round_:
            last = self._layout = (round_, self._layout_of(self.names(round_)))
        return last[1]

    def _layout_of(self, names: tuple[str, ...]) -> Layout:
        """One layout for the same names: comparing it with itself costs nothing."""
        if names not in self._layouts:
            self._layouts[names] = layout_of(self.tensors(names))
        return self._layouts[names]

    def codec(self, layout: Layout) -> Codec | None:
        """How updates of a layout are coded; None for plain float32."""
        if self._codec is None or self._codec[0] != layout:
            self._codec = (layout, codec_for(self.federation.exchange.update, layout))
        return self._codec[1]

    def state_layout(self, round_: int) -> Layout:
        """The layout of what goes down in a round: all that rounds 1 to this one train.

        What no round so far has trained is at its seeded start at every site.
        """
        last = self._state_layout
        if last[0] != round_:
            trained = self._trained
            done, chosen = trained if trained[0] <= round_ else (0, frozenset[str]())
            for earlier in range(done + 1, round_ + 1):
                chosen |= self._tuning.trainable(self.model.backbone, self._blocks, earlier)
            self._trained = (round_, chosen)
            last = self._state_layout = (round_, self._layout_of(self._exchanged(chosen)))
        return last[1]

    def untrained_adapters(self) -> dict[str, torch.Tensor]:
        """The LoRA factors that no round trains, as drawn: an adapter is of no use without both."""
        names = (name for name in self._tensors if name.endswith((lora_factors.A, lora_factors.B)))
        return self.tensors(name for name in names if name not in self.initial)

    def head_only(self, round_: int) -> bool:
        """Whether a round leaves the backbone as it is, so that features can be cached."""
        return all(name.startswith(_HEAD) for name in self.names(round_))

    def first_trained(self, round_: int) -> str | None:
        """The first block that a round moves, where all that is before it stays as it is.

        None for head-only rounds, where every block stays; and where something outside of the
        blocks moves, or something in the first of them.
        """
        if self._first[0] != round_:
            self._first = (round_, self._first_trained(round_))
        return self._first[1]

    def _first_trained(self, round_: int) -> str | None:
        names = [n.removeprefix(_BACKBONE) for n in self.names(round_) if not n.startswith(_HEAD)]
        prefixes = [tuple(f"{part}." for part in block.split("+")) for block in self._blocks]
        places = [
            next((i for i, prefix in enumerate(prefixes) if name.startswith(prefix)), 0)
            for name in names
        ]
        return self._blocks[min(places)] if places and min(places) > 0 else None

    def split(self, block: str) -> SplitBackbone | None:
        """The backbone cut before a block; None where its architecture cannot be.

        The model must be in its initial state and in evaluation mode.
        """
        if block not in self._splits:
            backbone = self.model.backbone
            probe = probe_of(backbone, self.encoder)
            device = next((p.device for p in backbone.parameters()), None)
            self._splits[block] = (
                None
                if probe is None
                else split_at(backbone, block, {n: t.to(device) for n, t in probe.items()})
            )
        return self._splits[block]

    def tensors(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The model's own tensors by name, detached, not copied."""
        return {name: self._tensors[name] for name in names}

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        found = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        return {name: tensor.detach() for name, tensor in found.items()}

    def move_to(self, device: torch.device) -> None:
        """Keep the model on a device; states are copied there as they are loaded."""
        if next(iter(self._tensors.values())).device == device:
            return
        self.model.to(device)
        self.__dict__.pop("_tensors")
        self._change = self._standing = None

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Write tensors into the model, in place.

        Args:
            state: name -> values of the tensor's shape; names that are not given keep theirs.
        """
        self._standing = None
        with torch.no_grad():
            for name, tensor in self.tensors(state).items():
                tensor.copy_(state[name])

    def reset(self, but: Container[str] = ()) -> None:
        """Back to the state before the first round, except for the tensors named."""
        self.load({name: value for name, value in self.initial.items() if name not in but})

    def place_updates(self, place: Callable[[Layout], Packed]) -> None:
        """Have :meth:`return_to` write to arrays that ``place`` gives for a layout, one a call."""
        self._place = place

    def start_from(self, state: Mapping[str, torch.Tensor], name: Digest | None) -> None:
        """Put the model into a state; tensors that are not in it are at their start.

        Args:
            state: name -> value.
            name: names the state among all that this model is put into; None for one without a
                name. A model that :meth:`return_to` left in it is not written to again.
        """
        if name is None or self._standing != name:
            self.reset(but=state)
            self.load(state)
        self._standing = None  # whoever starts from a state is about to leave it

    def return_to(
        self, layout: Layout, state: Mapping[str, torch.Tensor], name: Digest | None
    ) -> Packed:
        """How the model's tensors differ from a state, packed; and the model back in that state.

        One pass for both, block by block: what was read to be subtracted is still in the cache
        when it is written back, and the next site of a simulation starts from the same state.

        Args:
            layout: the tensors that were trained, in order.
            state: name -> value; those that the model started from.
            name: as given to :meth:`start_from`; None if nobody starts from it again.

        Returns:
            float32 [n], in one buffer that the next call uses again, or where
            :meth:`place_updates` said.
        """
        if self._change is None or self._change.layout != layout:
            self._change = Change(layout, self.tensors(spec.name for spec in layout.tensors))
        changed = self._change.take(state, self._place(layout) if self._place else None)
        self._standing = name
        return changed

    def train_mode(self, round_: int) -> list[nn.Parameter]:
        """Make the round's parameters trainable, the rest frozen; returns the trainable ones.

        BatchNorm stays in evaluation mode unless its statistics are shared: a frozen norm layer in
        training mode would move with raw batches and leak them. What comes before the first
        trained block stays in evaluation mode too, whether or not its output is cached.
        """
        self._standing = None
        names = self.names(round_)
        first = self.first_trained(round_)
        if self.head_only(round_):
            self.model.head.train()
        else:
            self.model.train()
        if first is not None:
            for module in self._before(first):
                module.training = False
        if not self._shares_batchnorm:
            for norm in self._batchnorms:
                norm.training = False
        if self._trainable[0] != names:
            self._trainable = (names, self._set_trainable(frozenset(names)))
        return self._trainable[1]

    def eval_mode(self) -> None:
        """Evaluation mode throughout; most modules never left it, and PyTorch would set them all."""
        for module in self._modules:
            if module.training:
                module.training = False

    @cached_property
    def _modules(self) -> tuple[nn.Module, ...]:
        return tuple(self.model.modules())

    def _before(self, block: str) -> list[nn.Module]:
        if self._frozen[0] != block:
            self._frozen = (block, modules_before(self.model.backbone, block))
        return self._frozen[1]

    def _set_trainable(self, names: frozenset[str]) -> list[nn.Parameter]:
        trainable = []
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
            if name in names:
                trainable.append(parameter)
        return trainable

    @cached_property
    def _batchnorms(self) -> tuple[nn.Module, ...]:
        return tuple(m for m in self.model.modules() if isinstance(m, _BatchNorm))

    @property
    def learns_statistics(self) -> bool:
        """Whether BatchNorm takes statistics from training batches."""
        return self._shares_batchnorm and bool(self._batchnorms)

    def block_modules(self) -> tuple[nn.Module, ...]:
        """The modules of the backbone's blocks, input to output."""
        paths = (path for block in self._blocks for path in block.split("+"))
        return tuple(self.model.backbone.get_submodule(path) for path in paths)

    def head_state(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """A linear head's weight [C, d] and bias [C] under the names of this model's head."""
        names = [name for name, _ in self.model.named_parameters() if name.startswith(_HEAD)]
        return dict(zip(names, (weight, bias), strict=True))

    @cached_property
    def head_parameters(self) -> frozenset[int]:
        """Identities of the head's parameters, for its own learning rate."""
        return frozenset(id(parameter) for parameter in self.model.head.parameters())

    def _statistics(self) -> Iterable[str]:
        for prefix, module in self.model.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                yield f"{prefix}.running_mean"
                yield f"{prefix}.running_var"


_built: dict[Digest, SharedModel] = {}


def shared_model(federation: FederationSpec) -> SharedModel:
    """The process's one model of a federation; the last one built is kept."""
    digest = federation.digest()
    if digest not in _built:
        _built.clear()
        _built[digest] = SharedModel(federation)
    return _built[digest]
