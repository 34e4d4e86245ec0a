"""Our messages as Flower messages: the edge to ``flwr.app``, used by both sides.

A packed array travels as one Flower ``Array`` of our own ``stype``: Flower's cost is per tensor,
and its numpy format lets a header claim any size. Inside one process the array object is handed
over as it is and its bytes are never made.
"""

import re
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from wardround_common.errors import WireError
from wardround_common.types import ITEM_BYTES
from wardround_common.wire.layout import Layout, Packed, as_bytes, from_buffer
from wardround_common.wire.step import Receipt, StepKind

STYPE: Final = "wardround.packed.v1"
FAILURE_CODE: Final = r"[a-z][a-z0-9_]{0,39}"
_MESSAGE, _ARRAYS, _PACKED = "wardround", "arrays", "packed"

MESSAGE_TYPES: Final[dict[StepKind, str]] = {
    "describe": "query.describe",
    "moments": "query.moments",
    "gram": "query.gram",
    "train": "train",
    "evaluate": "evaluate",
    "compare": "query.compare",
}


class PackedArray(Array):
    """A Flower array over a packed buffer; serialised only if it leaves the process."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        self.dtype = packed.dtype.name
        self.shape = packed.shape
        self.stype = STYPE

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes, made when Flower asks for them."""
        return bytes(as_bytes(self.packed))

    def __reduce__(self) -> tuple[object, ...]:
        """Between processes, as a plain array: only what never left the process is handed over."""
        return Array, (self.dtype, self.shape, self.stype, self.data)

    def deflate(self) -> bytes:
        """As a plain array: Flower writes the class's name, and a receiver knows only its own."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()


class HandedOver(RecordDict):
    """A receipt and its array for a reader in the same process: as records it is empty.

    Attributes:
        receipt: the receipt itself; its bytes were never made.
        array: the array; None where there is none.
    """

    def __init__(self, receipt: Receipt, array: Packed | None) -> None:
        super().__init__()
        self.receipt = receipt
        self.array = array


def to_content(json_bytes: bytes, packed: Packed | None) -> RecordDict:
    """A manifest or receipt and its array as the content of a message."""
    content = RecordDict({_MESSAGE: ConfigRecord({"bytes": json_bytes})})
    if packed is not None and len(packed):
        arrays = ArrayRecord()  # its constructor would copy the array's bytes
        arrays[_PACKED] = PackedArray(packed)
        content[_ARRAYS] = arrays
    return content


def to_content_bytes(json_bytes: bytes, array: memoryview | None) -> RecordDict:
    """The same for an array that is not looked into: bytes, whatever they hold."""
    content = to_content(json_bytes, None)
    if array is not None and array.nbytes:
        arrays = ArrayRecord()
        arrays[_PACKED] = Array("uint8", (array.nbytes,), STYPE, bytes(array))
        content[_ARRAYS] = arrays
    return content


def bytes_of(content: RecordDict) -> memoryview | None:
    """The bytes of the array in a message, unread; None where the message has none.

    Raises:
        WireError: the message has not the form of ours.
    """
    record = content.get(_ARRAYS)
    if record is None:
        return None
    array = record.get(_PACKED) if isinstance(record, ArrayRecord) and len(record) == 1 else None
    if array is None or array.stype != STYPE:
        raise WireError("one packed array is expected", code="message_form")
    return memoryview(array.data)


def failure_content(code: str) -> RecordDict:
    """A site's answer that it could not do a step: a code and nothing else."""
    return RecordDict({_MESSAGE: ConfigRecord({"failure": code})})


def failure_of(content: RecordDict) -> str | None:
    """The failure code in a reply, if it is one.

    Raises:
        WireError: the reply has not the form of ours.
    """
    code = _message(content).get("failure")
    if code is None:
        return None
    if not isinstance(code, str) or re.fullmatch(FAILURE_CODE, code) is None:
        raise WireError("the failure code is malformed", code="message_form")
    return code


def json_of(content: RecordDict) -> bytes:
    """The manifest or receipt bytes in a message.

    Raises:
        WireError: the message has not the form of ours.
    """
    data = _message(content).get("bytes")
    if not isinstance(data, bytes):
        raise WireError("the message carries no manifest or receipt", code="message_form")
    return data


def packed_of(content: RecordDict, layout: Layout) -> Packed | None:
    """The array in a message, viewed as ``layout``; None where the message has none.

    Raises:
        WireError: another number of arrays, another encoding, or another size or dtype than the
            layout; decided before anything is allocated.
    """
    record = content.get(_ARRAYS)
    if record is None:
        return None
    array = record.get(_PACKED) if isinstance(record, ArrayRecord) and len(record) == 1 else None
    if array is None or array.stype != STYPE:
        raise WireError("one packed array is expected", code="message_form")
    if isinstance(array, PackedArray):
        if array.dtype != layout.dtype or array.packed.size != layout.num_values:
            promised = layout.num_values * ITEM_BYTES[layout.dtype]
            raise WireError(f"{promised} bytes were promised", code="update_bytes")
        return array.packed
    return from_buffer(layout, array.data)


def array_of(content: RecordDict) -> Packed | None:
    """The array of a message of this process; None where it has none."""
    record = content.get(_ARRAYS)
    array = record.get(_PACKED) if isinstance(record, ArrayRecord) else None
    return array.packed if isinstance(array, PackedArray) else None


def handed_over(content: RecordDict) -> bool:
    """Whether the array in a message is one of this process's memory that never was bytes.

    Such an array cannot have changed on the way, and is not hashed.
    """
    record = content.get(_ARRAYS)
    return record is not None and all(isinstance(array, PackedArray) for array in record.values())


def _message(content: RecordDict) -> ConfigRecord:
    record = content.get(_MESSAGE)
    if not isinstance(record, ConfigRecord) or not content.keys() <= {_MESSAGE, _ARRAYS}:
        raise WireError("the message has not the expected records", code="message_form")
    return record


def make_reply(message: Message, content: RecordDict) -> Message:
    """A reply to ``message``."""
    return Message(content, reply_to=message)
