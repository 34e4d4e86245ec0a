"""Decoding what sites sent, one update after the other into the same memory."""

import numpy as np

from wardround_common.spec.exchange import UpdateCoding
from wardround_common.types import TensorSpec
from wardround_common.wire.codecs.base import Codec
from wardround_common.wire.codecs.registry import codec_for
from wardround_common.wire.layout import Layout, Packed, empty


class Decoder:
    """Decodes one update after the other into the same memory.

    Args:
        codec: of the updates.
        layout: of the updates.

    Attributes:
        coded: the layout of the array that travels: one tensor of bytes.
    """

    def __init__(self, codec: Codec, layout: Layout) -> None:
        self.coded = Layout((TensorSpec("coded", "uint8", (codec.num_bytes,)),))
        self._codec = codec
        self._values = empty(layout)

    def decode(self, coded: Packed) -> Packed:
        """The update behind an array of the coded layout; valid until the next call.

        Raises:
            WireError: see :meth:`Codec.decode`.
        """
        assert coded.dtype == np.uint8
        self._codec.decode(coded.astype(np.uint8, copy=False), self._values)
        return self._values


class Decoders:
    """The decoders of one step, one for each layout that its sites send.

    Args:
        coding: how updates are coded; None where they never are.
    """

    def __init__(self, coding: UpdateCoding | None) -> None:
        self._coding = coding
        self._of: dict[Layout, Decoder | None] = {}

    def of(self, layout: Layout) -> Decoder | None:
        """The decoder of updates of a layout; None where they are not coded."""
        if self._coding is None or self._coding.coding == "fp32":
            return None
        if layout not in self._of:
            codec = codec_for(self._coding, layout)
            self._of[layout] = None if codec is None else Decoder(codec, layout)
        return self._of[layout]

    def carried(self, layout: Layout) -> Layout:
        """The layout of the array that travels for updates of a layout."""
        decoder = self.of(layout)
        return layout if decoder is None else decoder.coded
