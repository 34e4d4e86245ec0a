"""The choice between ways of computing a forward pass."""

from pathlib import Path

import pytest
import torch

from wardround_client.training import modes
from wardround_client.training.modes import PLAIN, ForwardMode, candidates, choose, fastest

CPU = torch.device("cpu")
LAST = ForwardMode(channels_last=True)
KEY = {"work": "train", "batch_size": 4}


def timed(monkeypatch: pytest.MonkeyPatch, cost: dict[str, float]):
    """Work whose clock is the table ``cost``, and the calls it got."""
    now, calls = [0.0], []
    monkeypatch.setattr(modes, "_clock", lambda device: now[0])

    def work(mode: ForwardMode) -> None:
        calls.append(mode.code)
        now[0] += cost[mode.code]

    return work, calls


def test_takes_another_mode_only_where_it_is_clearly_faster():
    assert fastest((PLAIN, LAST), {"fp32": 1.0, "fp32.channels_last": 0.5}) == LAST
    assert fastest((PLAIN, LAST), {"fp32": 1.0, "fp32.channels_last": 0.95}) == PLAIN


def test_records_its_choice_and_does_not_measure_again(tmp_path: Path, monkeypatch):
    work, calls = timed(monkeypatch, {"fp32": 2.0, "fp32.channels_last": 1.0})
    first = choose((PLAIN, LAST), work, device=CPU, folder=tmp_path, key=KEY)
    work, calls = timed(monkeypatch, {"fp32": 1.0, "fp32.channels_last": 2.0})
    again = choose((PLAIN, LAST), work, device=CPU, folder=tmp_path, key=KEY)
    assert (first.mode, first.why) == (LAST, "measured")
    assert (again.mode, again.why, calls) == (LAST, "recorded", [])


def test_measures_anew_for_another_key(tmp_path: Path, monkeypatch):
    work, _ = timed(monkeypatch, {"fp32": 2.0, "fp32.channels_last": 1.0})
    choose((PLAIN, LAST), work, device=CPU, folder=tmp_path, key=KEY)
    other = {**KEY, "batch_size": 8}
    assert choose((PLAIN, LAST), work, device=CPU, folder=tmp_path, key=other).why == "measured"


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"seconds": {}}', b'{"seconds": {"fp32": 0, "fp32.channels_last": 1}}'],
)
def test_measures_anew_where_the_record_is_damaged(tmp_path: Path, monkeypatch, damage: bytes):
    work, calls = timed(monkeypatch, {"fp32": 2.0, "fp32.channels_last": 1.0})
    choose((PLAIN, LAST), work, device=CPU, folder=tmp_path, key=KEY)
    (record,) = tmp_path.iterdir()
    record.write_bytes(damage)
    calls.clear()
    assert choose((PLAIN, LAST), work, device=CPU, folder=tmp_path, key=KEY).why == "measured"
    assert calls
    assert choose((PLAIN, LAST), work, device=CPU, folder=tmp_path, key=KEY).why == "recorded"


def test_does_not_try_bfloat16_without_the_hardware(monkeypatch):
    monkeypatch.setattr(modes, "processor", lambda: ("", frozenset({"avx2"})))
    assert candidates("auto", CPU, images=True) == (PLAIN, LAST)
    assert candidates("bf16", CPU, images=True) == (PLAIN,)


def test_tries_bfloat16_with_the_hardware(monkeypatch):
    monkeypatch.setattr(modes, "processor", lambda: ("", frozenset({"amx_bf16"})))
    assert ForwardMode("bf16") in candidates("auto", CPU, images=False)
    assert candidates("bf16", CPU, images=True) == (ForwardMode("bf16"),)


def test_measures_nothing_where_float32_is_asked_for(tmp_path: Path):
    def never(mode: ForwardMode) -> None:
        raise AssertionError(mode)

    asked = candidates("fp32", CPU, images=True)
    assert choose(asked, never, device=CPU, folder=tmp_path, key=KEY).mode == PLAIN
    assert not list(tmp_path.iterdir())


def test_lays_out_images_and_nothing_else():
    inputs = {"pixels": torch.zeros(2, 3, 4, 4), "tokens": torch.zeros(2, 5)}
    arranged = LAST.arranged(inputs)
    assert arranged["pixels"].is_contiguous(memory_format=torch.channels_last)
    assert arranged["tokens"] is inputs["tokens"]
    assert PLAIN.arranged(inputs) is inputs
