"""One measured mean in a process of its own; prints JSON.

``time``: all sides in turn on the same buffers, processor seconds of each. ``memory``: one side,
the growth of the largest resident size over the start, with updates made one by one as they would
arrive (Flower's strategy holds all replies until the last; ours lets go of each).
"""

import argparse
import gc
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.aggregation.models import DISTINCT, MODELS, layout, values, weight
from wardround_common.types import SiteId
from wardround_server.admission import quick_norm
from wardround_server.aggregation.fedavg import FedAvg

SIDES = ("ours", "ours_checked", "flower")


def fold_all(
    model: str, count: int, state: np.ndarray, source: Callable[[int], np.ndarray], *, check: bool
) -> np.ndarray:
    """Our rule, with or without the pass over the values that admission makes."""
    rule = FedAvg(layout(model).num_values)
    for place in range(count):
        update = source(place)
        if check and not quick_norm(update) < np.inf:
            raise ValueError("not finite")
        rule.fold(SiteId(f"s{place}"), update, weight(place))
    return rule.finish(state, np.zeros(0, dtype=np.float32))[0]


def replies(model: str, count: int, source: Callable[[int], np.ndarray]) -> list[Any]:
    """What Flower's strategy has in hand: a RecordDict a site, an Array a tensor."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    made, records = [], {}
    for place in range(count):
        flat = source(place)
        if id(flat) not in records:
            arrays = OrderedDict(
                (spec.name, Array(flat[where].reshape(spec.shape)))
                for spec, where in layout(model).slices()
            )
            records[id(flat)] = flat, ArrayRecord(arrays)  # the array is kept: its id stays taken
        metrics = MetricRecord({"num-examples": weight(place)})
        made.append(RecordDict({"arrays": records[id(flat)][1], "metrics": metrics}))
    return made


def flower_mean(held: list[Any]) -> np.ndarray:
    """Flower's weighted mean, packed."""
    return np.concatenate([array.numpy().ravel() for array in flower_record(held).values()])


def flower_record(held: list[Any]) -> Any:
    """Flower's weighted mean, as it returns it."""
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    return aggregate_arrayrecords(held, "num-examples")


def measure_time(model: str, count: int, repetitions: int) -> dict[str, Any]:
    """Processor seconds of every side, and how far the results are apart."""
    buffers = [values(model, place) for place in range(min(count, DISTINCT[model]))]
    zero = np.zeros(layout(model).num_values, dtype=np.float32)

    def source(place: int) -> np.ndarray:
        return buffers[place % len(buffers)]

    theirs = replies(model, count, source)
    run: dict[str, Callable[[], Any]] = {
        "ours": lambda: fold_all(model, count, zero, source, check=False),
        "ours_checked": lambda: fold_all(model, count, zero, source, check=True),
        "flower": lambda: flower_record(theirs),
    }
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    seconds["copy"] = []
    for repetition in range(repetitions + 1):
        for side in SIDES:
            spent = processor_seconds(run[side])
            if repetition:
                seconds[side].append(spent)
        if repetition:
            seconds["copy"].append(copy_seconds(buffers[0], zero))
    mean, reference = run["ours"](), flower_mean(theirs)
    apart = float(np.abs(mean - reference).max() / np.abs(reference).max())
    return {
        "seconds": seconds,
        "difference": apart,
        "bytes_in": count * buffers[0].nbytes,
        "bytes_copied": 2 * buffers[0].nbytes,
        "distinct_buffers": len(buffers),
    }


def copy_seconds(source: np.ndarray, target: np.ndarray) -> float:
    """The fastest of three copies of a model between buffers that exist already."""
    to, of = torch.empty(target.size), torch.from_numpy(source)
    to.copy_(of)
    return min(processor_seconds(lambda: to.copy_(of)) for _ in range(3))


def processor_seconds(work: Callable[[], Any]) -> float:
    """Processor time of this process for one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure_memory(model: str, count: int, side: str) -> dict[str, Any]:
    """Growth of the largest resident size, in models; the global state is part of it."""
    size = layout(model).num_values
    _import_all(side)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    state = np.ones(size, dtype=np.float32)
    if side == "flower":
        held: list[Any] = []
        for place in range(count):
            held += replies(model, 1, lambda _, own=place: np.full(size, own, dtype=np.float32))
        flower_record(held)
        arriving = 0
    else:
        buffer = np.ones(size, dtype=np.float32)
        fold_all(model, count, state, lambda _: buffer, check=True)
        arriving = 1
    grown = (_status("VmHWM") - before) * 1024 / (4 * size)
    return {"models": grown, "arriving": arriving}


def _import_all(side: str) -> None:
    tiny = np.ones(8, dtype=np.float32)
    FedAvg(8).fold(SiteId("s"), tiny, 1)
    if side == "flower":
        import flwr.serverapp.strategy.strategy_utils  # noqa: F401


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise KeyError(key)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("count", type=int)
    parser.add_argument("--side", choices=("ours", "flower"), default="ours")
    parser.add_argument("--repetitions", type=int, default=3)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    if wanted.what == "time":
        found = measure_time(wanted.model, wanted.count, wanted.repetitions)
    else:
        found = measure_memory(wanted.model, wanted.count, wanted.side)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
