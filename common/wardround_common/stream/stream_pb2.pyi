from wardround_common.rpc import frames_pb2 as _frames_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Offer(_message.Message):
    __slots__ = ("manifest_sha256", "head", "seconds", "again")
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    manifest_sha256: str
    head: _frames_pb2.Head
    seconds: float
    again: bool
    def __init__(self, manifest_sha256: _Optional[str] = ..., head: _Optional[_Union[_frames_pb2.Head, _Mapping]] = ..., seconds: _Optional[float] = ..., again: _Optional[bool] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("manifest_sha256", "offset")
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    manifest_sha256: str
    offset: int
    def __init__(self, manifest_sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Over(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Part(_message.Message):
    __slots__ = ("offer", "want", "chunk", "over")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    offer: Offer
    want: Want
    chunk: Chunk
    over: Over
    def __init__(self, offer: _Optional[_Union[Offer, _Mapping]] = ..., want: _Optional[_Union[Want, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., over: _Optional[_Union[Over, _Mapping]] = ...) -> None: ...
