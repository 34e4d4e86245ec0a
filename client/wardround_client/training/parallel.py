"""Several devices of one site train on parts of each batch.

Each process holds the whole model and all examples, computes the gradient of its part of a batch,
and all add theirs up in one message before each takes the same step. Parts are weighted by their
labelled positions, so a step is that of the whole batch to float rounding.

Limits: the processes are started anew for each call, which costs the seconds that it takes to
import PyTorch and load the backbone; gradients are exchanged after the backward pass, not during
it; the model must fit on each device; the processes share one machine.
"""

import os
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # has no __all__
from torch.multiprocessing.spawn import spawn

from wardround_client.training.batches import TrainingSet
from wardround_client.training.execution import Execution
from wardround_client.training.local import Course, Trained, train
from wardround_client.training.stopping import raise_if_stopped
from wardround_common.errors import ConfigError, RoundError
from wardround_common.shared_model import SharedModel, shared_model
from wardround_common.spec.federation import FederationSpec

_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """What every process gets.

    Attributes:
        federation: the federation file as JSON; each process builds the model from it.
        data: the site's examples.
        course: what to train through.
        how: how steps are computed.
        device: ``cpu`` or ``cuda``; process i takes the i-th GPU.
        threads: processor threads of each process.
        meeting: a file through which the processes find each other.
        state: name -> values to start from, in shared memory; the first process writes the trained
            ones there.
        outcome: float64 [2] in shared memory: mean loss and number of steps.
    """

    federation: str
    data: TrainingSet
    course: Course
    how: Execution
    device: str
    threads: int
    meeting: str
    state: dict[str, torch.Tensor]
    outcome: torch.Tensor


class AcceleratePeers:
    """The processes of one job, through accelerate; see ``training.local.Peers``."""

    def __init__(self, rank: int, num_processes: int) -> None:
        self.rank = rank
        self._num_processes = num_processes

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """Contiguous parts of sizes that differ by one at most."""
        return rows.tensor_split(self._num_processes)[self.rank]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes."""
        from accelerate.utils import reduce

        return cast("torch.Tensor", reduce(values, reduction="sum"))


def train_together(
    shared: SharedModel, data: TrainingSet, course: Course, device: torch.device, how: Execution
) -> Trained:
    """``training.local.train`` with ``how.devices`` processes.

    Raises:
        ConfigError: accelerate is not installed.
        RoundError: the run was stopped.
        torch.multiprocessing.ProcessRaisedException: a process failed; the others are ended.
    """
    if find_spec("accelerate") is None:
        raise ConfigError(
            "compute.devices above 1 needs accelerate: install wardround[multi-gpu], or lend one",
            code="no_accelerate",
        )
    state = {name: _common(tensor) for name, tensor in shared.tensors(shared.initial).items()}
    outcome = _common(torch.zeros(2, dtype=torch.float64))
    anchor = course.anchor and {name: value.cpu() for name, value in course.anchor.items()}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            federation=shared.federation.model_dump_json(),
            data=data,
            course=replace(course, anchor=anchor),
            how=how,
            device=device.type,
            threads=max(torch.get_num_threads() // how.devices, 1),
            meeting=str(Path(folder) / "meeting"),
            state=state,
            outcome=outcome,
        )
        _join(spawn(_work, args=(job,), nprocs=how.devices, join=False))  # type: ignore[no-untyped-call]
    shared.load(state)
    loss, steps = outcome.tolist()
    return Trained(loss, int(steps))


def _join(processes: Any) -> None:
    """Wait for all processes; end them if nobody wants what they compute any more.

    Raises:
        RoundError: they were stopped.
        torch.multiprocessing.ProcessRaisedException: one failed.
    """
    try:
        while not processes.join(timeout=_LOOK_S):
            raise_if_stopped()
    except RoundError:
        for process in processes.processes:
            process.kill()
            process.join()
        raise


def _common(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory that all processes share."""
    copied: torch.Tensor = tensor.cpu().clone().share_memory_()  # type: ignore[no-untyped-call]
    return copied


def _work(rank: int, job: Job) -> None:
    """One process, from its start to its end."""
    torch.set_num_threads(job.threads)
    on_gpu = job.device == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    # They meet in a file and talk over the loopback: no port is opened to the network.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place, number = str(rank), str(job.how.devices)
    os.environ.update(LOCAL_RANK=place, RANK=place, WORLD_SIZE=number, LOCAL_WORLD_SIZE=number)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=FileStore(job.meeting, job.how.devices),
        rank=rank,
        world_size=job.how.devices,
    )
    try:
        from accelerate import PartialState

        known: Any = PartialState(cpu=not on_gpu)
        assert known.num_processes == job.how.devices
        _train(job, device, AcceleratePeers(rank, job.how.devices))
    finally:
        dist.destroy_process_group()


def _train(job: Job, device: torch.device, peers: AcceleratePeers) -> None:
    shared = shared_model(FederationSpec.model_validate_json(job.federation))
    shared.move_to(device)
    shared.load(job.state)
    anchor = job.course.anchor and {n: value.to(device) for n, value in job.course.anchor.items()}
    course = replace(job.course, anchor=anchor)
    trained = train(shared, job.data, course, device, how=job.how, peers=peers)
    if peers.rank == 0:
        job.outcome.copy_(torch.tensor([trained.loss, trained.num_steps], dtype=torch.float64))
        for name, tensor in shared.tensors(job.state).items():
            job.state[name].copy_(tensor)
