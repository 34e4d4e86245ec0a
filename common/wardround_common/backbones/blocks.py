"""Blocks: the units that tuning methods thaw, in order from input to output.

A block is one prefix of parameter names, or several joined by ``+`` where modules that belong
together have no common name (EfficientNet's ``conv_head+bn2``).
"""

from typing import Final

from torch import nn

_CONTAINERS: Final = (
    "encoder.layer",
    "encoder.layers",
    "transformer.layer",
    "blocks",
    "stages",
    "layers",
    "features",
)
_RESNET: Final = frozenset({"layer1", "layer2", "layer3", "layer4"})


def find_blocks(module: nn.Module, prefix: str = "") -> tuple[str, ...]:
    """The blocks of a network.

    They are the children of its stack of layers where it has one (transformers, EfficientNet,
    ConvNeXt, Swin), else ``layer1`` to ``layer4`` (ResNet), else all top-level children. What
    follows the stack is a last block of its own if it holds a convolution or a linear layer, and
    belongs to the last block if it is a norm. What precedes the stack is the stem, in no block.

    Args:
        module: the network without its classifier.
        prefix: put before every name, such as ``net.``.
    """
    stack = _stack(module)
    if not stack:
        return tuple(
            prefix + name
            for name, child in module.named_children()
            if next(child.parameters(), None) is not None
        )
    tail = _tail(module, stack)
    if any(_holds_weights(module.get_submodule(name)) for name in tail):
        stack, tail = [*stack, "+".join(tail)], []
    stack[-1] = "+".join([stack[-1], *tail])
    return tuple("+".join(prefix + part for part in block.split("+")) for block in stack)


def block_parameters(module: nn.Module, block: str) -> frozenset[str]:
    """Names of the parameters in one block."""
    prefixes = tuple(f"{part}." for part in block.split("+"))
    return frozenset(name for name, _ in module.named_parameters() if name.startswith(prefixes))


def _stack(module: nn.Module) -> list[str]:
    """Names of the members of the network's stack of layers; empty if it has none."""
    for path in _CONTAINERS:
        try:
            container = module.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(container, nn.ModuleList | nn.Sequential):
            members = _members(path, container)
            if members:
                return members
    return [name for name, _ in module.named_children() if name in _RESNET]


def _members(path: str, container: nn.Module) -> list[str]:
    """The members of a stack that have parameters, a mere norm joined to the one before it."""
    members: list[str] = []
    for name, child in container.named_children():
        if next(child.parameters(), None) is None:
            continue
        if members and not _holds_weights(child):
            members[-1] += f"+{path}.{name}"
        else:
            members.append(f"{path}.{name}")
    return members


def _tail(module: nn.Module, stack: list[str]) -> list[str]:
    """Names of the modules with parameters that come after the stack, in order."""
    names = [name for name, _ in module.named_parameters()]
    inside = tuple(f"{part}." for block in stack for part in block.split("+"))
    last = max(index for index, name in enumerate(names) if name.startswith(inside))
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names[last + 1 :]))


def _holds_weights(module: nn.Module) -> bool:
    """Whether a module itself is more than a norm: its weight has two dimensions or more."""
    return any(parameter.dim() > 1 for parameter in module.parameters())
