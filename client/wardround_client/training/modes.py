"""How a forward pass is computed, and the measured choice between ways of computing it.

The rules:

1. A mode changes how a model is computed, never its parameters: they stay float32 and contiguous,
   and so do gradients and updates. bfloat16 is autocast, ``channels_last`` is a layout of inputs.
2. bfloat16 is tried only where the hardware multiplies it (AMX or AVX512 on a processor, Ampere or
   later on a GPU). Emulated it is an order of magnitude slower than float32.
3. A mode other than the plain one is taken where it was measured at least ``GAIN`` times as fast.
   The choice is recorded once and read afterwards, so that equal runs on one machine stay equal. A
   record that does not read back as expected is measured again.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import torch

from wardround_common.canonical import canonical_bytes
from wardround_common.durable import write_file
from wardround_common.log import log_event
from wardround_common.types import sha256_hex

Precision = Literal["fp32", "bf16"]
Why = Literal["asked", "only_one", "measured", "recorded"]

GAIN: Final = 1.1
"""How much faster than the plain mode another one must have been."""
_FORMAT = 1
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class ForwardMode:
    """One way to compute a forward pass.

    Attributes:
        precision: ``bf16`` computes matrix products and convolutions in bfloat16 by autocast;
            parameters, losses and gradients of parameters stay float32.
        channels_last: whether images [B, C, H, W] are laid out with their channels last.
        compiled: whether the model runs through ``torch.compile``.
    """

    precision: Precision = "fp32"
    channels_last: bool = False
    compiled: bool = False

    @property
    def code(self) -> str:
        """A short name for logs and records, such as ``bf16.channels_last``."""
        words: list[str] = [self.precision]
        words += ["channels_last"] if self.channels_last else []
        words += ["compiled"] if self.compiled else []
        return ".".join(words)

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """What the forward pass and the loss run in."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def arranged(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs of a batch in this mode's layout; only tensors of four axes change."""
        if not self.channels_last:
            return inputs
        return {
            name: one.contiguous(memory_format=torch.channels_last) if one.dim() == 4 else one
            for name, one in inputs.items()
        }


PLAIN: Final = ForwardMode()
"""float32, contiguous: what every machine computes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The mode that was chosen.

    Attributes:
        mode: the mode.
        why: ``asked`` for by a file; the ``only_one`` this machine has; ``measured`` now; read
            from what was ``recorded``.
        seconds: code of a mode -> seconds of one measured piece of work; empty if none was.
    """

    mode: ForwardMode
    why: Why
    seconds: Mapping[str, float]


def candidates(
    precision: Literal["fp32", "bf16", "auto"], device: torch.device, *, images: bool
) -> tuple[ForwardMode, ...]:
    """The modes among which to choose, the plain or asked one first.

    Args:
        precision: what the files ask for. ``fp32`` allows nothing but the plain mode, so that
            results never depend on a measurement; ``bf16`` falls back to it without the hardware.
        device: where to compute.
        images: whether the inputs are images, which have a layout to choose.

    Returns:
        One mode where there is nothing to measure.
    """
    if precision == "fp32":
        return (PLAIN,)
    has_bfloat16 = supports_bfloat16(device)
    if precision == "bf16":
        return (ForwardMode("bf16" if has_bfloat16 else "fp32"),)
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if has_bfloat16 else ("fp32",)
    layouts = (False, True) if images else (False,)
    return tuple(ForwardMode(each, layout) for each in precisions for layout in layouts)


def choose(
    modes: Sequence[ForwardMode],
    work: Callable[[ForwardMode], None],
    *,
    device: torch.device,
    folder: Path,
    key: Mapping[str, str | int],
) -> Choice:
    """The fastest of some modes, measured once on this machine and recorded.

    Args:
        modes: the plain one first. One alone is taken without measuring.
        work: does one piece of the actual work in a mode, such as a training step; it must leave
            no trace. It is called once to warm up and three times to measure, the modes in turn.
        device: where ``work`` computes.
        folder: the site's cache; made if absent.
        key: what the work depends on beside the machine: the kind of work, the backbone's digest,
            the model, the batch size.

    Returns:
        The choice; it is also said in the operations log.
    """
    if len(modes) == 1:
        return Choice(modes[0], "only_one", {})
    codes = [mode.code for mode in modes]
    bound = {**machine_key(device), **key, "modes": ",".join(codes), "format": _FORMAT}
    path = folder / f"mode-{sha256_hex(canonical_bytes(bound))}.json"
    seconds, why = _read(path, codes), "recorded"
    if seconds is None:
        seconds, why = _measure(modes, work, device), "measured"
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"key": bound, "seconds": seconds}, indent=1).encode())
    mode = fastest(modes, seconds)
    choice = Choice(mode, "recorded" if why == "recorded" else "measured", seconds)
    log_event(
        "mode_chosen", mode=mode.code, code=why, speedup=seconds[codes[0]] / seconds[mode.code]
    )
    return choice


def fastest(modes: Sequence[ForwardMode], seconds: Mapping[str, float]) -> ForwardMode:
    """The mode of the fewest seconds, if it beats the first of ``modes`` by ``GAIN``."""
    best = min(modes, key=lambda mode: seconds[mode.code])
    return best if seconds[modes[0].code] >= GAIN * seconds[best.code] else modes[0]


def _measure(
    modes: Sequence[ForwardMode], work: Callable[[ForwardMode], None], device: torch.device
) -> dict[str, float]:
    """The least of some repetitions each, in turn; processor time on a processor, wall on a GPU."""
    best = dict.fromkeys((mode.code for mode in modes), float("inf"))
    for repeat in range(_REPEATS + 1):
        for mode in modes:
            before = _clock(device)
            work(mode)
            took = _clock(device) - before
            if repeat:
                best[mode.code] = min(best[mode.code], max(took, 1e-9))
    return best


def _clock(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _read(path: Path, codes: Sequence[str]) -> dict[str, float] | None:
    """The recorded seconds of the modes; None if they are not all there as positive numbers."""
    try:
        found = json.loads(path.read_bytes())["seconds"]
        seconds = {code: float(found[code]) for code in codes}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return seconds if all(0.0 < value < float("inf") for value in seconds.values()) else None


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return bool({"amx_bf16", "avx512_bf16"} & processor()[1])


@cache
def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and its instruction sets, as the kernel says; empty where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "", frozenset()
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    return facts.get("model name", ""), frozenset(facts.get("flags", "").split())


def machine_key(device: torch.device) -> dict[str, str | int]:
    """What timings and rounding of this machine depend on."""
    name, flags = processor()
    if device.type == "cuda":
        name, flags = torch.cuda.get_device_name(device), frozenset[str]()
    return {
        "device": device.type,
        "name": name,
        "flags": sha256_hex(" ".join(sorted(flags)).encode()),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }
