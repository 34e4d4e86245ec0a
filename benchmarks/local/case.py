"""One measured training in a process of its own: writes ``case.json`` and ``parameters.npy``.

The first epoch warms up. The second starts from the same weights and is measured: processor time on
a processor, wall time on a GPU.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.local.workloads import MOMENTUM, NAMES, Workload
from wardround_client.training.batches import EncodedSet, shuffled
from wardround_client.training.execution import Execution
from wardround_client.training.local import train, trial_of
from wardround_client.training.modes import ForwardMode, candidates, choose
from wardround_client.training.seeds import derive_seed
from wardround_common.shared_model import SharedModel

IMPLEMENTATIONS = ("plain", "ours", "auto")
PRECISIONS = ("fp32", "bf16")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("implementation", choices=IMPLEMENTATIONS)
    parser.add_argument("workload", choices=NAMES)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("out", type=Path, help="folder that receives the two files")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    return parser.parse_args(words)


def plain(
    shared: SharedModel,
    data: EncodedSet,
    batches: list[torch.Tensor],
    mode: ForwardMode,
    rate: float,
) -> None:
    """An epoch of SGD as one writes it in a notebook."""
    device = next(shared.model.parameters()).device
    parameters = shared.train_mode(1)
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM)
    for rows in batches:
        inputs, targets = data.batch(rows, device)
        optimizer.zero_grad()
        with mode.context(device):
            loss = functional.cross_entropy(shared.model(**inputs), targets)
        torch.autograd.backward(loss)
        optimizer.step()


def main() -> None:
    """Train and write what was measured."""
    wanted = arguments()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workload = Workload(wanted.workload, wanted.quick)
    shared, data, course = workload.shared(), workload.data(), workload.course()
    shared.move_to(device)
    case: dict[str, object] = {}
    if wanted.implementation == "auto":
        case = _decision(workload, shared, data, device)
    else:
        mode = ForwardMode(wanted.precision)
        batches = shuffled(data, workload.size.batch, derive_seed(course.seed, "shuffle", 1, 0))
        for _ in range(2):
            shared.reset()
            before = _clock(device)
            if wanted.implementation == "ours":
                train(shared, data, course, device, how=Execution(mode=mode))
            else:
                plain(shared, data, batches, mode, workload.rate)
            case["seconds"] = _clock(device) - before
        case["memory_mib"] = _peak_mib(device)
        state = shared.tensors(shared.names(1)).values()
        np.save(
            wanted.out / "parameters.npy", torch.cat([t.cpu().flatten() for t in state]).numpy()
        )
    (wanted.out / "case.json").write_text(json.dumps(case))


def _decision(
    workload: Workload, shared: SharedModel, data: EncodedSet, device: torch.device
) -> dict[str, object]:
    """What ``training.precision = "auto"`` comes to on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        trial = trial_of(shared, data, 1, device)
        choice = choose(
            candidates("auto", device, images=workload.images),
            lambda mode: trial(Execution(mode=mode)),
            device=device,
            folder=Path(folder),
            key={"work": "benchmark"},
        )
    return {"mode": choice.mode.code, "why": choice.why, "mode_seconds": dict(choice.seconds)}


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
