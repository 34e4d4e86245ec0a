"""docs/quickstart-consortium.md, pasted as it stands, ends with a model at two hospitals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.real_superlink import free_port
from wardround_client.data import catalogue
from wardround_client.data.entries import ENTRIES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IMPORTS = os.pathsep.join(str(ROOT / part) for part in ("client", "common", "server"))
PAPER = ROOT / "docs" / "quickstart-consortium.md"


def pasted(port: int) -> str:
    """All commands of the paper; what depends on the machine is of this one."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAPER.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    text = "set -eu\n" + "\n".join(blocks)
    for of_the_paper, here in (
        ("$PWD/.venv/bin", str(Path(sys.executable).parent)),
        ("8000", str(port)),
        ("8001", str(free_port())),
    ):
        assert of_the_paper in text
        text = text.replace(of_the_paper, here)
    return text


def table_is_there() -> bool:
    entry = ENTRIES["heart"]
    found = catalogue.source_paths(entry, None).values()
    return catalogue.ready(entry) is not None or all(path is not None for path in found)


@pytest.mark.skipif(not table_is_there(), reason="needs the demo packages (make demo)")
def test_the_quick_start_ends_with_the_model_of_the_simulation(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with subprocess.Popen(
        ["bash", "-c", pasted(free_port())],
        cwd=tmp_path,
        env={**os.environ, "WARDROUND_LOG_STRICT": "1", "PYTHONPATH": IMPORTS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, printed
    models = re.findall(r"^([0-9a-f]{64})  (\S+)$", printed, re.MULTILINE)
    assert [name.split("/")[0] for _, name in models] == ["consortium", "simulated"]
    assert len({digest for digest, _ in models}) == 1, printed
    for site in ("cleveland", "hungary"):
        assert f"{site} is enrolled" in printed
        log = (tmp_path / "trial" / site / "worker.log").read_text()
        assert '"phase":"compare"' in log, "the site saw the trained model"
        assert "worker_ended" in log, "it ended in order"
