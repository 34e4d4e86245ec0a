"""One measurement in a process of its own: writes ``case.json`` and ``parameters.npy``."""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import timm
import torch
import torchvision
from safetensors.numpy import load_file

# Imported before the clock starts, as the product's process has them when its work begins.
import wardround_client.app
import wardround_server.app
from benchmarks.frozen import plain
from benchmarks.frozen.spec import BATCH, NUM_ROUNDS, RATE, epoch, study
from wardround_client.simulated import InProcessSites
from wardround_client.training.batches import EncodedSet, FeatureSet, shuffled
from wardround_client.training.features import extract
from wardround_client.training.local import Course, predict, train
from wardround_client.training.seeds import derive_seed
from wardround_client.worker.datasets import SiteDatasets
from wardround_common.backbones.architectures import build_bare
from wardround_common.backbones.base import LoadedBackbone
from wardround_common.backbones.blocks import find_blocks
from wardround_common.backbones.image import ImageBackbone
from wardround_common.backbones.registry import load_backbone
from wardround_common.modalities.base import Encoded
from wardround_common.modalities.image import ImageEncoder
from wardround_common.shared_model import SharedModel
from wardround_common.spec.federation import FederationSpec
from wardround_common.types import Digest
from wardround_server.folder import MODEL
from wardround_server.progress import QuietObserver
from wardround_server.simulation.simulate import SimulationPlan, simulate_federation

CASES = ("epoch-plain", "epoch-ours", "study-plain", "study-ours", "large-plain", "large-ours")
CASES += ("blocks-whole", "blocks-kept")
CPU = torch.device("cpu")
_IMAGES = 128
_EPOCHS = 50
assert timm
assert torchvision
assert wardround_client.app
assert wardround_server.app


class Clock:
    """Processor and wall time of what is measured."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time of the body is added."""
        cpu, wall = time.process_time(), time.monotonic()
        yield
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.monotonic() - wall


def resnet(_: FederationSpec) -> LoadedBackbone:
    """A ResNet-18 with random weights."""
    torch.manual_seed(0)
    bare = build_bare("torchvision", "resnet18")
    module = ImageBackbone(bare.net, bare.scale).eval().requires_grad_(False)
    encoder = ImageEncoder(224, bare.scale)
    return LoadedBackbone(module, 512, find_blocks(bare.net, "net."), Digest("0" * 64), encoder)


def one_epoch(name: str, clock: Clock) -> tuple[np.ndarray, float | None]:
    """An epoch of a head; ours in the mean over many, since one is too short to time."""
    with patch("wardround_common.shared_model.load_backbone", resnet):
        shared = SharedModel(epoch())
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (_IMAGES, 3, 224, 224), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 2, (_IMAGES,), generator=generator)
    encoded = EncodedSet(Encoded({"pixels": pixels}, targets, torch.arange(_IMAGES)))
    course = Course(range(1, 2), 1, 1, 1, seed=0)
    head = shared.model.head
    if name == "epoch-plain":
        batches = shuffled(encoded, BATCH, derive_seed(0, "shuffle", 1, 0))
        last = head[-1]  # type: ignore[index]
        last.requires_grad_(True)
        with clock.running():
            plain.train_epoch(shared.model.backbone, last, pixels, targets, batches, RATE)
    else:
        features = FeatureSet(extract(shared, encoded, CPU), targets, torch.arange(_IMAGES))
        train(shared, features, course, CPU)
        for _ in range(_EPOCHS):
            shared.reset()
            with clock.running():
                train(shared, features, course, CPU)
        clock.cpu_s /= _EPOCHS
        clock.wall_s /= _EPOCHS
    return _flat(head), None


def study_ours(spec: FederationSpec, cache: Path, clock: Clock, out: Path) -> np.ndarray:
    """The product's simulation from the federation file to the report."""
    plan = SimulationPlan(
        spec, base=Path(), raw=None, out=out, cache=cache, resume=False, on_failure=_stop
    )
    with clock.running():
        simulate_federation(plan, QuietObserver())
    tensors = load_file(out / MODEL)
    return np.concatenate([tensors[n].ravel() for n in ("head.0.weight", "head.0.bias")])


def study_plain(spec: FederationSpec, clock: Clock) -> tuple[np.ndarray, float]:
    """The same study with the backbone in the loop: same sites, same batches, same start."""
    with clock.running():
        sites = InProcessSites(spec, Path(), None, Path(), Path())
        shared = sites.shared
        backbone, head = shared.model.backbone, shared.model.head[-1]  # type: ignore[index]
        head.requires_grad_(True)
        data, held_out, validation = [], [], []
        for name, worker in sites.workers.items():
            train_set = worker.datasets.encoded("train", None)
            test_set = worker.datasets.encoded("test", None)
            seed = derive_seed(spec.federation.seed, "train", name)

            def loader(
                round_: int, own: EncodedSet = train_set, seed: int = seed
            ) -> list[torch.Tensor]:
                return shuffled(own, BATCH, derive_seed(seed, "shuffle", round_, 0))

            data.append((train_set.encoded.tensors["pixels"], train_set.targets, loader))
            held_out.append((test_set.encoded.tensors["pixels"], test_set.targets))
            if worker.datasets.part("validation").num_subjects:
                checked = worker.datasets.encoded("validation", None)
                validation.append((checked.encoded.tensors["pixels"], checked.targets))
        rate = spec.training.optimizer.learning_rate
        plain.federate(backbone, head, data, validation, NUM_ROUNDS, rate)
        right = plain.accuracy(backbone, head, held_out)
    return _flat(head), right


def right_answers(spec: FederationSpec, parameters: np.ndarray, cache: Path) -> float:
    """Accuracy of a head over all sites' test images; outside of the clock."""
    sites = InProcessSites(spec, Path(), None, cache, cache)
    width = sites.shared.feature_dim
    outputs = len(parameters) // (width + 1)
    values = torch.from_numpy(parameters)
    weight, bias = values[: outputs * width].view(outputs, width), values[outputs * width :]
    right = number = 0
    for worker in sites.workers.values():
        features = worker.datasets.features("test", None)
        answers = (features.features @ weight.T + bias).argmax(dim=1)
        right += int((answers == features.targets).sum())
        number += len(features)
    return right / number


def last_blocks(
    name: str, clock: Clock, cache: Path, *, quick: bool
) -> tuple[np.ndarray, float | None]:
    """One round of the first site: training and scoring the last two blocks."""
    spec = study(quick=quick, blocks=2)
    sites = InProcessSites(spec, Path(), None, cache, cache)
    first = next(iter(sites.workers.values()))
    datasets = SiteDatasets(
        sites.shared,
        first.datasets._examples,
        cache,
        CPU,
        cache_gib=0.0 if name == "blocks-whole" else 4.0,
    )
    sets = [datasets.training_set(part, None, 1) for part in ("train", "test")]
    sites.shared.reset()
    with clock.running():
        train(sites.shared, sets[0], Course(range(1, 2), 1, 1, 1, seed=0), CPU)
        predict(sites.shared, sets[1], CPU)
    # The change, not the values: pretrained weights would hide what training did.
    initial, names = sites.shared.initial, sites.shared.names(1)
    moved = [t - initial[name] for name, t in sites.shared.tensors(names).items()]
    return np.concatenate([tensor.ravel() for tensor in moved]), None


def _flat(module: torch.nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


def _stop(site: str, error: Exception) -> None:
    """A site that fails ends the measurement."""
    raise RuntimeError(site) from error


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CASES)
    parser.add_argument("cache", type=Path, help="folder of kept features")
    parser.add_argument("out", type=Path, help="folder that receives the two files")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args(words)


def main() -> None:
    """Measure and write."""
    wanted = arguments()
    torch.set_num_threads(1)
    clock = Clock()
    large = wanted.name.startswith("large")
    spec = study(quick=wanted.quick, large=large)
    if wanted.name.startswith("epoch"):
        parameters, right = one_epoch(wanted.name, clock)
    elif wanted.name.startswith("blocks"):
        parameters, right = last_blocks(wanted.name, clock, wanted.cache, quick=wanted.quick)
    else:
        with patch(
            "wardround_common.shared_model.load_backbone", resnet if large else load_backbone
        ):
            if wanted.name.endswith("plain"):
                parameters, right = study_plain(spec, clock)
            else:
                parameters = study_ours(spec, wanted.cache, clock, wanted.out / "run")
                right = right_answers(spec, parameters, wanted.cache)
    np.save(wanted.out / "parameters.npy", parameters)
    case = {"cpu_s": clock.cpu_s, "wall_s": clock.wall_s, "accuracy": right}
    (wanted.out / "case.json").write_text(json.dumps(case))


if __name__ == "__main__":
    main()
