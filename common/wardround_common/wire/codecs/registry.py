"""The coding that a federation file names."""

from typing import assert_never

from wardround_common.spec.exchange import (
    Bf16Update,
    Fp32Update,
    Int8Update,
    PowerSgdUpdate,
    TopKUpdate,
    UpdateCoding,
)
from wardround_common.wire.codecs.base import Codec
from wardround_common.wire.codecs.bf16 import Bf16Codec
from wardround_common.wire.codecs.int8 import Int8Codec
from wardround_common.wire.codecs.powersgd import PowerSgdCodec
from wardround_common.wire.codecs.top_k import TopKCodec
from wardround_common.wire.layout import Layout


def codec_for(coding: UpdateCoding, layout: Layout) -> Codec | None:
    """How updates of a layout are coded; None for plain float32."""
    match coding:
        case Fp32Update():
            return None
        case Bf16Update():
            return Bf16Codec(layout)
        case Int8Update():
            return Int8Codec(layout, coding)
        case TopKUpdate():
            return TopKCodec(layout, coding)
        case PowerSgdUpdate():
            return PowerSgdCodec(layout, coding)
        case _:
            assert_never(coding)
