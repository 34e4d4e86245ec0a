"""Does coded exchange cost accuracy? fp32 against int8 with error feedback, seed by seed.

    python -m benchmarks.coding_study --data DIR [--federation FILE ...] [--seeds 42 43 ...]

Runs every federation file under both codings and every seed (without local-only, personalised and
pooled models, one thread) and compares the federated model's metric on the pooled held-out part: the
mean difference beside the spread that the seed alone makes. Runs that ``results/coding.json`` holds
already are not repeated.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, papers
from wardround_common.cache import cache_folder
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.load import load_federation
from wardround_server.progress import QuietObserver
from wardround_server.simulation.simulate import SimulationPlan, simulate_federation

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coding.json"
FEDERATIONS = (ROOT / "examples" / "reports.toml", ROOT / "examples" / "ultrasound.toml")
CODINGS: dict[str, dict[str, Any]] = {"fp32": {"coding": "fp32"}, "int8": {"coding": "int8"}}


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with local copies of public data")
    parser.add_argument("--federation", type=Path, nargs="+", default=FEDERATIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44, 45, 46])
    chosen = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    for federation in chosen.federation:
        for seed in chosen.seeds:
            for coding in CODINGS:
                key = f"{federation.stem} {coding} {seed}"
                if key not in found["runs"]:
                    found["runs"][key] = run(federation, coding, seed, chosen.data)
                    found["machine"] = machine.describe()
                    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
                print(key, found["runs"][key], flush=True)
    command = "`python -m benchmarks.coding_study --data DIR`"
    papers.put(papers.MEASUREMENTS, "coding", f"{command}\n\n{table(found['runs'])}")


def run(federation: Path, coding: str, seed: int, data: Path | None) -> dict[str, float]:
    """One simulation: the federated metric, and bytes up for each site and round."""
    raw = load_federation(federation).model_dump(mode="json")
    raw["federation"]["seed"] = seed
    raw["exchange"]["update"] = CODINGS[coding]
    raw["evaluation"] |= {"compare": False, "bootstrap": 100}
    raw["simulation"] |= {"pooled": False, "threads": 1}
    spec = FederationSpec.model_validate_json(json.dumps(raw))
    with tempfile.TemporaryDirectory() as folder:
        plan = SimulationPlan(
            spec,
            base=federation.resolve().parent,
            raw=data,
            out=Path(folder) / "run",
            cache=cache_folder() / "features",
            resume=False,
            on_failure=print,
        )
        report = simulate_federation(plan, QuietObserver())
    assert report.all_sites is not None
    metric = report.all_sites.federated.metrics[spec.metric]
    assert metric is not None
    bytes_up = [round_.bytes_up for round_ in report.rounds]
    return {
        "metric": metric.value,
        "bytes_up": float(np.median(bytes_up)) / len(spec.federation.sites),
    }


def table(runs: dict[str, dict[str, float]]) -> str:
    """One row a federation."""
    rows = ["federation", "seeds", "fp32", "int8", "difference", "seeds apart (fp32)", "kB up"]
    lines = [rows, ["---"] * len(rows)]
    for name in sorted({key.split()[0] for key in runs}):
        seeds = sorted({int(k.split()[2]) for k in runs if k.split()[:2] == [name, "int8"]})
        of = {c: [runs[f"{name} {c} {seed}"] for seed in seeds] for c in CODINGS}
        plain, coded = (np.array([r["metric"] for r in of[c]]) for c in CODINGS)
        apart = coded - plain
        lines.append(
            [
                name,
                " ".join(map(str, seeds)),
                f"{plain.mean():.4f} ({plain.min():.4f} to {plain.max():.4f})",
                f"{coded.mean():.4f} ({coded.min():.4f} to {coded.max():.4f})",
                f"{apart.mean():+.4f} ({apart.min():+.4f} to {apart.max():+.4f})",
                f"standard deviation {plain.std(ddof=1):.4f}" if len(seeds) > 1 else "",
                " / ".join(f"{np.mean([r['bytes_up'] for r in of[c]]) / 1e3:.1f}" for c in CODINGS),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
