"""A backbone cut in two before one of its blocks.

``suffix(prefix(x))`` is the backbone itself, to the bit: the prefix is the network's own forward,
stopped when the block is called; the suffix is the network's own forward with all that comes before
the block passed through. Whatever the author wrote between and after the blocks (pooling, masks,
functional activations) is therefore the author's. A cut is handed out only after it has reproduced
the whole forward on a probe; an architecture that does not pass is not cut (:func:`split_at` gives
None), and its whole forward is used: correct, only slower.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from wardround_common.backbones.image import ImageBackbone
from wardround_common.backbones.text import TextBackbone
from wardround_common.modalities.base import Encoder
from wardround_common.modalities.image import ImageEncoder

HIDDEN: Final = "hidden"
MASK: Final = "attention_mask"
_REFUSALS: Final = (
    *(RuntimeError, TypeError, AttributeError, ValueError),
    *(IndexError, KeyError, AssertionError),
)


class _ReachedError(Exception):
    """Carries the block's input out of the network's forward."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Passing(nn.Module):
    """Stands in for a module before the cut: gives back what it is given."""

    def forward(self, values: Any = None, *_: Any, inputs_embeds: Any = None, **__: Any) -> Any:
        """``values``, or ``inputs_embeds`` where a transformer's embedding layer is called."""
        return inputs_embeds if values is None else values


class SplitBackbone:
    """One cut through a backbone; shares every parameter and buffer with it.

    Args:
        backbone: the whole backbone.
        first: path of the first module after the cut, such as ``net.layer3``.
        shape: of one example's hidden state, without the batch; None where it has a length of
            its own (text: ``[T, d]``).
        width: float32 values of one example, or of one position of a text.
        rest: hidden state and mask in, features out.
    """

    def __init__(
        self,
        backbone: nn.Module,
        first: str,
        shape: tuple[int, ...] | None,
        width: int,
        rest: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    ) -> None:
        self._backbone = backbone
        self._first = backbone.get_submodule(first)
        self._rest = rest
        self.shape = shape
        self.width = width

    @torch.no_grad()
    def prefix(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the first block after the cut would be given.

        The backbone must be in evaluation mode: what is before the cut is frozen, and neither
        dropout nor a batch's statistics may enter what is kept.

        Args:
            inputs: a batch as the backbone takes it.

        Returns:
            ``hidden``, float32 [B, ...]; for texts also their ``attention_mask``.
        """
        assert not self._backbone.training, "the prefix runs in evaluation mode only"
        tensors = {HIDDEN: _input_of(self._first, self._backbone, inputs)}
        return tensors | {name: inputs[name] for name in (MASK,) if name in inputs}

    def suffix(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The features, from what :meth:`prefix` gave.

        Returns:
            float32 [B, d], or [B, T, d] for token tasks.
        """
        return self._rest(tensors[HIDDEN], tensors.get(MASK))


def split_at(
    backbone: nn.Module, block: str, probe: Mapping[str, torch.Tensor]
) -> SplitBackbone | None:
    """Cut a backbone before a block.

    Args:
        backbone: in evaluation mode.
        block: one of its blocks.
        probe: a batch of two small examples, on the backbone's device.

    Returns:
        The cut, or None where the architecture cannot be cut there: it is no known kind of
        backbone, the block is not called once with one tensor, or the two halves do not give the
        probe's features to the bit.
    """
    first = block.split("+", maxsplit=1)[0]
    try:
        with torch.no_grad():
            whole = backbone(**probe)
            hidden = _input_of(backbone.get_submodule(first), backbone, probe)
            rest = _rest_of(backbone, first)
            constant = bool((hidden == hidden.flatten()[0]).all())  # it would prove nothing
            if rest is None or hidden.dtype != torch.float32 or constant:
                return None
            text = MASK in probe
            shape = None if text else tuple(hidden.shape[1:])
            width = int(hidden.shape[-1]) if text else hidden[0].numel()
            split = SplitBackbone(backbone, first, shape, width, rest)
            same = torch.equal(split.suffix(split.prefix(probe)), whole)
    except _REFUSALS:
        return None
    return split if same else None


def probe_of(backbone: nn.Module, encoder: Encoder) -> dict[str, torch.Tensor] | None:
    """Two small examples that differ everywhere; None for a backbone that cannot be cut."""
    if isinstance(backbone, ImageBackbone) and isinstance(encoder, ImageEncoder):
        shape = (2, 3, encoder.size, encoder.size)
        values = torch.arange(2 * 3 * encoder.size**2).mul(37).remainder(251)
        return {"pixels": values.view(shape).to(torch.uint8)}
    if isinstance(backbone, TextBackbone):
        words = int(getattr(backbone.net.config, "vocab_size", 1))
        ids = torch.arange(12).mul(7).remainder(words).view(2, 6)
        mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        return {"input_ids": ids, MASK: mask}
    return None


def modules_before(backbone: nn.Module, block: str) -> list[nn.Module]:
    """The modules registered before a block, without those that contain it."""
    first = block.split("+", maxsplit=1)[0]
    before: list[nn.Module] = []
    for name, module in backbone.named_modules():
        if name == first:
            break
        if name and not first.startswith(f"{name}."):
            before.append(module)
    return before


def _input_of(
    module: nn.Module, backbone: nn.Module, inputs: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """What ``module`` is given when the backbone runs on ``inputs``; nothing after it is run."""

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not isinstance(hidden, torch.Tensor):
            raise TypeError("a block is given something else than one tensor")
        raise _ReachedError(hidden)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        backbone(**inputs)
    except _ReachedError as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise ValueError("the block is never called")


def _rest_of(
    backbone: nn.Module, first: str
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None:
    """Hidden state and mask in, features out; None for other backbones than images and texts."""
    path = first.split(".")[1:]
    if isinstance(backbone, ImageBackbone):
        return _image_rest(backbone.net, path)
    if isinstance(backbone, TextBackbone):
        net, pairs = _without_start(backbone.net, path)

        def rest(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            _follow(pairs)
            output = net(inputs_embeds=hidden, attention_mask=mask)
            return backbone.features_of(output.last_hidden_state, mask)

        return rest
    return None


def _image_rest(
    net: nn.Module, path: list[str]
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    if type(net).__name__ == "VisionTransformer" and path[:2] == ["encoder", "layers"]:
        return _torchvision_vit(net, path[2])
    tail, pairs = _without_start(net, path)

    def rest(hidden: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        _follow(pairs)
        features: torch.Tensor = tail(hidden)
        return features.float()

    return rest


def _torchvision_vit(
    net: nn.Module, first: str
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """Torchvision adds class token and positions outside of any module that could be left out."""
    names = [name for name, _ in net.get_submodule("encoder.layers").named_children()]
    layers = [net.get_submodule(f"encoder.layers.{n}") for n in names[names.index(first) :]]
    norm, heads = net.get_submodule("encoder.ln"), net.get_submodule("heads")

    def rest(hidden: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        for layer in layers:
            hidden = layer(hidden)
        features: torch.Tensor = heads(norm(hidden)[:, 0])
        return features.float()

    return rest


_Pairs = list[tuple[nn.Module, nn.Module]]


def _without_start(module: nn.Module, path: list[str]) -> tuple[nn.Module, _Pairs]:
    """A copy of the containers along ``path`` whose modules before it pass their input through.

    Returns:
        The copy, and (copy, original) of each container: they share all else.
    """
    tail = copy.copy(module)
    children: dict[str, nn.Module | None] = dict(vars(module)["_modules"])
    vars(tail)["_modules"] = children  # a copy shares its dictionary of children otherwise
    pairs = [(tail, module)]
    place = list(children).index(path[0])
    before, first = list(children)[:place], children[path[0]]
    for name in before:
        if isinstance(module, nn.ModuleList):
            del children[name]  # what would stand in for it need not know its signature
        elif children[name] is not None:
            children[name] = _Passing()
    if isinstance(module, nn.ModuleList):
        kept = list(children.values())
        children.clear()
        children.update({str(number): member for number, member in enumerate(kept)})
        place = 0
    if hasattr(module, "_pos_embed"):
        vars(tail)["_pos_embed"] = _same  # timm's ViT adds positions outside of a module
    if len(path) > 1:
        assert first is not None
        children[list(children)[place]], more = _without_start(first, path[1:])
        pairs += more
    return tail, pairs


def _same(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _follow(pairs: _Pairs) -> None:
    """The copies are in the mode that the originals are in."""
    for copied, original in pairs:
        copied.training = original.training
