"""What the first trained block is given: computed once, kept on the site's disk.

Where a round trains only the last blocks, all before them is frozen and in evaluation mode, so its
output for an example never changes. It is computed once, in batches of one fixed make-up, and
training, validation and comparison run only the rest of the network.

Numbers: for one batch the two halves give the whole forward to the bit. A kept example was computed
in another batch than the one it is trained in, and processors round matrix products of different
shapes differently, so a run with kept inputs differs from one without in last bits. Which of the
two happens therefore depends on the federation file, the site's ``compute.cache_gib`` and the data,
never on what is on disk; and what is computed afresh is what is read back, to the bit.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from wardround_client.training.batches import Batch, Source, TrainingSet, class_counts, in_order
from wardround_client.training.rows import RowWriter, read_rows
from wardround_client.training.stopping import raise_if_stopped
from wardround_common.backbones.split import HIDDEN, MASK, SplitBackbone
from wardround_common.modalities.base import IntArray
from wardround_common.model import FineTunedModel
from wardround_common.shared_model import SharedModel

_BATCH = 32
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class BlockInputSet:
    """Kept inputs of a block.

    Attributes:
        split: the cut through the backbone.
        hidden: float32 [n, ...], or [tokens, d] for texts, example after example.
        targets: int64 [n] or [n, T].
        subjects: int64 [n].
        lengths: int64 [n], positions of each text; None for images.
    """

    split: SplitBackbone
    hidden: torch.Tensor
    targets: torch.Tensor
    subjects: torch.Tensor
    lengths: torch.Tensor | None = None
    missed: IntArray | None = None

    def __len__(self) -> int:
        return len(self.subjects)

    def batch(self, rows: torch.Tensor, device: torch.device) -> Batch:
        """Hidden states and targets of the examples at ``rows``; texts are padded."""
        targets = self.targets[rows]
        if self.lengths is None:
            return {HIDDEN: self.hidden[rows].to(device)}, targets.to(device)
        lengths = self.lengths[rows]
        stops = self.lengths.cumsum(0)[rows]
        texts = [
            self.hidden[stop - length : stop]
            for stop, length in zip(stops.tolist(), lengths.tolist(), strict=True)
        ]
        hidden = pad_sequence(texts, batch_first=True)
        mask = (torch.arange(hidden.shape[1]) < lengths[:, None]).long()
        targets = targets[:, : hidden.shape[1]] if targets.dim() == 2 else targets
        return {HIDDEN: hidden.to(device), MASK: mask.to(device)}, targets.to(device)

    def logits(self, model: FineTunedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits through the rest of the backbone and the head."""
        output: torch.Tensor = model.head(self.split.suffix(inputs))
        return output

    def class_counts(self, num_outputs: int) -> torch.Tensor:
        """int64 [num_outputs]."""
        return class_counts(self.targets, num_outputs)

    def lengths_hint(self) -> torch.Tensor | None:
        """Tokens of each example."""
        return self.lengths

    def view(self, epoch: int) -> TrainingSet:  # noqa: ARG002
        """The same in every epoch."""
        return self


def num_bytes(split: SplitBackbone, data: Source) -> int:
    """Bytes that the inputs of a block take for all examples."""
    positions = len(data) if split.shape is not None else int(_lengths(data.made()).sum())
    return _FLOAT32 * split.width * positions


def block_inputs(
    shared: SharedModel,
    split: SplitBackbone,
    data: Source,
    device: torch.device,
    path: Path,
) -> BlockInputSet:
    """Block inputs from the cache, or computed and kept.

    Args:
        shared: the model in its initial state.
        split: where it is cut.
        data: the examples, at least one; images are decoded only if they have to be computed.
        device: where the model is.
        path: the cache file; its folder is made if absent.
    """
    lengths = None if split.shape is not None else _lengths(data.made())
    num_rows = len(data) if lengths is None else int(lengths.sum())
    shape = (num_rows, *(split.shape or (split.width,)))
    rows = read_rows(path, HIDDEN, shape)
    if rows is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with RowWriter(path, HIDDEN, shape) as writer:
            _compute(shared, split, data.made(), device, writer)
        rows = read_rows(path, HIDDEN, shape)
        assert rows is not None
    return BlockInputSet(split, rows, data.targets, data.subjects, lengths, data.missed)


def _compute(
    shared: SharedModel,
    split: SplitBackbone,
    data: TrainingSet,
    device: torch.device,
    writer: RowWriter,
) -> None:
    shared.model.eval()
    lengths = None if split.shape is not None else _lengths(data)
    stops = None if lengths is None else lengths.cumsum(0)
    for batch in in_order(data, _BATCH):
        raise_if_stopped()
        hidden = split.prefix(data.batch(batch, device)[0])[HIDDEN].cpu()
        if lengths is None or stops is None:
            writer.put(batch.tolist(), hidden)
            continue
        for row, values in zip(batch.tolist(), hidden, strict=True):
            length, stop = int(lengths[row]), int(stops[row])
            writer.put(slice(stop - length, stop), values[:length])


def _lengths(data: TrainingSet) -> torch.Tensor:
    lengths = data.lengths_hint()
    assert lengths is not None, "only texts have hidden states of different lengths"
    return lengths
