"""The same run on Flower's runtime on Ray: the same model, and errors that say what happened."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.support import simulated, write_dataset
from wardround_common.errors import ConfigError, RoundError
from wardround_server.progress import QuietObserver
from wardround_server.report.model import Report
from wardround_server.simulation.simulate import SimulationPlan, simulate_federation

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra 'ray')"
)


def _run(base: Path, out: str, **plan: Any) -> Report:
    write_dataset(base / "data", ("a", "b", "c"))
    spec = simulated(
        ("a", "b", "c"),
        rounds={"count": 2, "max_abandoned": 0},
        evaluation={"bootstrap": 100},
        simulation={"threads": 1},
    )
    settings = {"raw": None, "cache": base / "cache", "resume": False, **plan}
    settings["on_failure"] = lambda site, error: None
    return simulate_federation(
        SimulationPlan(spec, base=base, out=base / out, **settings), QuietObserver()
    )


@needs_ray
def test_actors_end_in_the_model_of_one_process(tmp_path: Path) -> None:
    one = _run(tmp_path, "one")
    on_ray = _run(tmp_path, "ray", engine="ray", workers=2)
    assert on_ray.model_sha256 == one.model_sha256
    assert on_ray.sites == one.sites


@needs_ray
def test_an_error_of_the_run_is_not_replaced_by_flowers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **how: Any) -> None:
        raise RoundError("too few", code="quorum_not_met")

    monkeypatch.setattr("wardround_server.simulation.simulate.RoundEngine.run", fail)
    with pytest.raises(RoundError, match="too few"):
        _run(tmp_path, "out", engine="ray", workers=2)


def test_without_ray_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else found(name)
    )
    with pytest.raises(ConfigError, match=r"pip install 'wardround\[ray\]'"):
        _run(tmp_path, "out", engine="ray")
