"""Batches on their device before they are needed.

The examples are in memory. On the processor a batch is taken when its turn comes. For a GPU the
next one is copied from pinned memory on a stream of its own while the current one is computed.
"""

from collections.abc import Iterator, Sequence

import torch

from wardround_client.training.batches import Batch, TrainingSet


def batches_on(
    data: TrainingSet, steps: Sequence[Sequence[torch.Tensor]], device: torch.device
) -> Iterator[list[Batch]]:
    """The batches of each step.

    Args:
        data: the examples.
        steps: for each step the rows of its parts, int64; one part is a whole batch.
        device: where the batches go.

    Yields:
        The parts of one step, in order.
    """
    if device.type != "cuda":
        for parts in steps:
            yield [data.batch(rows, device) for rows in parts]
        return
    yield from _ahead(data, steps, device)


def _ahead(
    data: TrainingSet, steps: Sequence[Sequence[torch.Tensor]], device: torch.device
) -> Iterator[list[Batch]]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    host = torch.device("cpu")

    def sent(parts: Sequence[torch.Tensor]) -> list[Batch]:
        with torch.cuda.stream(side):
            return [_copied(data.batch(rows, host), device) for rows in parts]

    upcoming = sent(steps[0]) if steps else []
    for place in range(len(steps)):
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        ready = upcoming
        for inputs, targets in ready:
            # Its memory may be given to the next copy only when this stream is done with it.
            for tensor in (*inputs.values(), targets):
                tensor.record_stream(current)
        if place + 1 < len(steps):
            upcoming = sent(steps[place + 1])
        yield ready


def _copied(batch: Batch, device: torch.device) -> Batch:
    inputs, targets = batch
    return (
        {name: one.pin_memory().to(device, non_blocking=True) for name, one in inputs.items()},
        targets.pin_memory().to(device, non_blocking=True),
    )
