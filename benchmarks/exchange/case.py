"""One way or one codec, measured in a process of its own; prints one JSON object.

Memory is the largest resident set (``VmHWM``, reset through ``clear_refs``) above what was resident
before, less one copy: the update itself, which any way has to make.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.exchange.models import bert_state
from benchmarks.exchange.ways import WAYS, State, Way
from wardround_common.spec.exchange import (
    Bf16Update,
    Int8Update,
    PowerSgdUpdate,
    TopKUpdate,
    UpdateCoding,
)
from wardround_common.types import TensorSpec
from wardround_common.wire.codecs.registry import codec_for
from wardround_common.wire.layout import Layout, as_bytes, layout_of, pack

CODINGS: dict[str, UpdateCoding] = {
    "bf16": Bf16Update(coding="bf16"),
    "int8": Int8Update(coding="int8"),
    "top-k 1 %": TopKUpdate(coding="top-k", fraction=0.01),
    "powersgd 4": PowerSgdUpdate(coding="powersgd", rank=4),
}
_REPEATS = 3


def measure_way(name: str) -> dict[str, Any]:
    """Memory of the first exchange of BERT-base's state, processor time of the ones after it."""
    state, way = bert_state(), WAYS[name]
    num_bytes = sum(tensor.nbytes for tensor in state.values())
    small = {"warm": torch.zeros(8)}
    way.decode(small, way.encode(small))  # imports what is imported late
    before = _reset_peak()
    times, extra = [_exchange(way, state)], _status("VmHWM") - before
    times += [_exchange(way, state) for _ in range(_REPEATS)]
    encode_s, decode_s = (float(np.median(column)) for column in zip(*times[1:], strict=True))
    return {
        "encode_s": encode_s,
        "decode_s": decode_s,
        "cpu_s": encode_s + decode_s,
        "first_cpu_s": sum(times[0]),
        "extra_models": extra / num_bytes - 1.0,
        "num_bytes": num_bytes,
        "sha256": _digest(way.decode(state, way.encode(state))),
    }


def _exchange(way: Way, state: State) -> tuple[float, float]:
    """Processor time of sender and receiver, in seconds."""
    started = time.process_time()
    sent = way.encode(state)
    between = time.process_time()
    received = way.decode(state, sent)
    ended = time.process_time()
    if len(received) != len(state):
        raise RuntimeError("tensors are missing")
    return between - started, ended - between


def measure_codec(name: str, folder: Path) -> dict[str, Any]:
    """Speed, ratio and error of one codec on a trained update."""
    values = np.load(folder / "update.npy")
    shapes = json.loads((folder / "layout.json").read_text())
    layout = Layout(tuple(TensorSpec(n, d, tuple(s)) for n, d, s in shapes))
    codec = codec_for(CODINGS[name], layout)
    assert codec is not None
    came = np.empty_like(values)
    encode_s, decode_s = [], []
    for _ in range(_REPEATS + 1):
        started = time.process_time()
        encoded = codec.encode(values)
        between = time.process_time()
        codec.decode(encoded, came)
        encode_s.append(between - started)
        decode_s.append(time.process_time() - between)
    apart = came.astype(np.float64) - values
    return {
        "encode_mb_s": values.nbytes / 1e6 / float(np.median(encode_s[1:])),
        "decode_mb_s": values.nbytes / 1e6 / float(np.median(decode_s[1:])),
        "ratio": values.nbytes / codec.num_bytes,
        "relative_error": float(np.linalg.norm(apart) / np.linalg.norm(values)),
        "num_values": values.size,
    }


def _digest(state: State) -> str:
    layout = layout_of(state)
    return hashlib.sha256(as_bytes(pack(layout, state))).hexdigest()


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(field)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*WAYS, *CODINGS])
    parser.add_argument("--folder", type=Path, help="of the trained update, for codecs")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    found = (
        measure_way(wanted.name)
        if wanted.name in WAYS
        else measure_codec(wanted.name, wanted.folder)
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
