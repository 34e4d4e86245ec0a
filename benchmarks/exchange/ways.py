"""How a state of named tensors gets from one process into another: ours and Flower's.

``encode`` is all that the sender does up to the bytes, digests included; ``decode`` all that the
receiver does up to named tensors.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wardround_common.wire.layout import Packed, as_bytes, empty, from_buffer, layout_of, unpack

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Way:
    """One way.

    Attributes:
        encode: state -> what crosses.
        decode: that -> the tensors by name.
    """

    encode: Callable[[State], Any]
    decode: Callable[[State, Any], State]


_kept: dict[int, Packed] = {}


def _pack(state: State) -> tuple[str, memoryview]:
    """Into memory that the next round uses again, as a worker does with its update."""
    layout = layout_of(state)
    packed = _kept.setdefault(layout.num_values, empty(layout))
    for name, place in unpack(layout, packed).items():
        place.copy_(state[name])
    data = as_bytes(packed)
    return hashlib.sha256(data).hexdigest(), data


def _unpack(state: State, sent: tuple[str, memoryview]) -> State:
    layout = layout_of(state)  # both sides know it from the federation file
    return unpack(layout, from_buffer(layout, sent[1]))


def _unpack_checked(state: State, sent: tuple[str, memoryview]) -> State:
    if hashlib.sha256(sent[1]).hexdigest() != sent[0]:
        raise RuntimeError("digest")
    return _unpack(state, sent)


def _deflate(state: State) -> tuple[str, dict[str, bytes]]:
    """As flwr 1.41 does before it sends: records, object ids, one byte string an object."""
    from flwr.app import ArrayRecord, Message, RecordDict
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.task_identity import TaskIdentity

    identity: Any = TaskIdentity
    identity.run_id = identity.node_id = identity.task_id = 1
    message = Message(
        RecordDict({"arrays": ArrayRecord(dict(state))}), dst_node_id=1, message_type="train"
    )
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = get_all_nested_objects(message)
        get_object_tree(message)
        contents = {name: part.deflate() for name, part in objects.items()}
        return message.object_id, contents


def _inflate(state: State, sent: tuple[str, dict[str, bytes]]) -> State:
    from flwr.app import Message
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    del state
    message = inflate_object_from_contents(*sent)
    if not isinstance(message, Message):
        raise TypeError(type(message))
    return message.content.array_records["arrays"].to_torch_state_dict()


WAYS = {
    "ours": Way(_pack, _unpack),
    "ours-checked": Way(_pack, _unpack_checked),
    "flower": Way(_deflate, _inflate),
}
