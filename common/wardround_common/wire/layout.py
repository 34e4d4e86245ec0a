"""The packed array: which tensors, in which order, at which offsets.

Values lie one tensor after the other, row-major, little-endian, all of one dtype, without header
or padding. The layout travels separately (in the manifest), so a receiver knows every size before
it looks at a single byte: there is nothing in the array that could claim another.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wardround_common.errors import WireError
from wardround_common.types import ITEM_BYTES, DTypeName, TensorSpec

if TYPE_CHECKING:  # a process that only passes arrays on has no torch
    import torch

Packed = npt.NDArray[np.float32] | npt.NDArray[np.float64] | npt.NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview

MAX_TENSORS = 20_000
MAX_VALUES = 2**34


@dataclass(frozen=True)
class Layout:
    """An ordered list of tensors of one dtype.

    Raises:
        WireError: a name repeats or is not printable ASCII, dtypes differ, a size is negative, or
            the whole is larger than any exchange may be (20,000 tensors, 2^34 values).
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if len(names) > MAX_TENSORS or len(set(names)) != len(names):
            raise WireError("too many tensors, or a name repeats", code="layout_names")
        if not all(0 < len(n) <= 200 and n.isascii() and n.isprintable() for n in names):
            raise WireError("a tensor name is empty, long or not ASCII", code="layout_names")
        if len({tensor.dtype for tensor in self.tensors}) > 1:
            raise WireError("tensors of one exchange have one dtype", code="layout_dtype")
        if any(size < 0 for tensor in self.tensors for size in tensor.shape):
            raise WireError("a size is negative", code="layout_shape")
        if self.num_values > MAX_VALUES:
            raise WireError("more values than an exchange may hold", code="layout_size")

    def __hash__(self) -> int:
        """Of the tensors; kept, since every site's answer is looked up by its layout."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.tensors)

    @cached_property
    def num_values(self) -> int:
        """All values together."""
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of values of each tensor."""
        return [tensor.num_values for tensor in self.tensors]

    @property
    def dtype(self) -> DTypeName:
        """The one dtype; float32 for an empty layout."""
        return self.tensors[0].dtype if self.tensors else "float32"

    @property
    def num_bytes(self) -> int:
        """The packed size in bytes."""
        return self.num_values * ITEM_BYTES[self.dtype]

    def slices(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Each tensor with its range of values in the packed array."""
        start = 0
        for tensor in self.tensors:
            stop = start + tensor.num_values
            yield tensor, slice(start, stop)
            start = stop

    def to_json(self) -> list[list[object]]:
        """``[[name, dtype, [sizes]], ...]``, as manifests carry it."""
        return [[t.name, t.dtype, list(t.shape)] for t in self.tensors]


def layout_of(tensors: "Mapping[str, torch.Tensor]", dtype: DTypeName = "float32") -> Layout:
    """The layout of named tensors in their order, stored as ``dtype``."""
    return Layout(
        tuple(TensorSpec(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    )


def empty(layout: Layout) -> Packed:
    """A packed array for ``layout`` with undefined values."""
    return np.empty(layout.num_values, dtype=np.dtype(layout.dtype))


def pack(layout: Layout, tensors: "Mapping[str, torch.Tensor]") -> Packed:
    """Copy named tensors into one packed array: one pass, one allocation.

    Args:
        layout: what to pack, in order.
        tensors: at least the layout's names, with its shapes, any float dtype, any device.

    Returns:
        1-D array of the layout's dtype, ``layout.num_values`` long.

    Raises:
        WireError: a tensor is missing or has another shape.
    """
    import torch

    packed = empty(layout)
    target = torch.from_numpy(packed)
    for spec, where in layout.slices():
        tensor = tensors.get(spec.name)
        if tensor is None or tuple(tensor.shape) != spec.shape:
            raise WireError(f"{spec.name}: missing or not {spec.shape}", code="layout_mismatch")
        target[where].view(spec.shape).copy_(tensor.detach())
    return packed


def unpack(layout: Layout, packed: Packed) -> "dict[str, torch.Tensor]":
    """Name the tensors in a packed array, without copying.

    Args:
        layout: the promised content.
        packed: 1-D array of the layout's dtype and length.

    Returns:
        Views; writing to them writes to ``packed``.

    Raises:
        WireError: dtype or length differ from the layout.
    """
    if packed.dtype.name != layout.dtype or packed.shape != (layout.num_values,):
        raise WireError("the array is not of the promised size and dtype", code="layout_mismatch")
    parts = flat_tensor(packed).split(layout.sizes)  # type: ignore[no-untyped-call]
    specs = zip(layout.tensors, parts, strict=True)
    return {spec.name: part.view(spec.shape) for spec, part in specs}


def flat_tensor(packed: Packed) -> "torch.Tensor":
    """A packed array as a tensor, without copying; received arrays are read-only by custom."""
    import torch

    if packed.flags.writeable:
        return torch.from_numpy(packed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(packed)


def from_buffer(layout: Layout, data: Buffer) -> Packed:
    """View received bytes as the packed array of ``layout``, without copying.

    Args:
        layout: the promised content.
        data: bytes from elsewhere.

    Raises:
        WireError: the byte count is not exactly the promised one; nothing was allocated.
    """
    if memoryview(data).nbytes != layout.num_bytes:
        raise WireError(
            f"{memoryview(data).nbytes} bytes, {layout.num_bytes} promised", code="update_bytes"
        )
    return np.frombuffer(data, dtype=np.dtype(layout.dtype).newbyteorder("<"))


def as_bytes(packed: Packed) -> memoryview:
    """The bytes of a packed array, without copying."""
    return packed.data.cast("B") if packed.size else memoryview(b"")
