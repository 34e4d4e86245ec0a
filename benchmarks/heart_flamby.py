"""Fed-Heart-Disease against FLamby: its filter, features, split and five seeds.

``python -m benchmarks.heart_flamby`` runs the file beside this one under seeds 42 to 46 and prints
accuracy on the pooled test part (254 patients) and per hospital. ``--select`` shows how the
configuration was chosen: federated validation on 30 % of the training patients, never the test part.

FLamby's own figures (its repository, results_benchmark_fed_heart_disease, pooled test, mean of five
seeds): pooled training 0.795, Cyclic 0.785, FedAdam/FedAdagrad/FedYogi 0.779, FedAvg 0.748.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from pathlib import Path

from wardround_common.cache import cache_folder
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.load import load_federation
from wardround_server.cli import with_seed
from wardround_server.progress import QuietObserver
from wardround_server.report.model import Report
from wardround_server.simulation.simulate import SimulationPlan, simulate_federation

FILE = Path(__file__).with_suffix(".toml")
SEEDS = (42, 43, 44, 45, 46)
CLEAN_FEATURES = (
    "age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak",
    "cp_2", "cp_3", "cp_4", "restecg_1", "restecg_2",
)  # fmt: skip


def run(spec: FederationSpec, data: Path | None) -> Report:
    """One run in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        plan = SimulationPlan(
            spec,
            base=FILE.parent,
            raw=data,
            out=Path(folder) / "run",
            cache=cache_folder() / "features",
            resume=False,
            on_failure=lambda site, error: print(site, error, file=sys.stderr),
        )
        return simulate_federation(plan, QuietObserver())


def changed(spec: FederationSpec, **tables: dict[str, object]) -> FederationSpec:
    """The file with some keys of some tables changed, validated again."""
    values = spec.model_dump(mode="json")
    for table, keys in tables.items():
        values[table] |= keys
    return FederationSpec.model_validate(values, strict=False)


def accuracy(report: Report, model: str) -> float:
    """Accuracy on the pooled test part."""
    assert report.all_sites is not None
    assert report.pooled is not None
    scores = {
        "fedavg": report.all_sites.federated,
        "exact head": report.all_sites.exact_head,
        "pooled": report.pooled.all_sites,
    }
    score = scores[model]
    assert score is not None
    found = score.metrics["accuracy"]
    assert found is not None
    return found.value


def compare(data: Path | None) -> None:
    """The table of docs/measurements.md."""
    spec = load_federation(FILE)
    clean = changed(spec, data={"numeric": list(CLEAN_FEATURES)})
    for title, file in (("FLamby's 16 features", spec), ("13 features", clean)):
        reports = [run(with_seed(file, seed), data) for seed in SEEDS]
        for model in ("exact head", "fedavg", "pooled"):
            values = [accuracy(report, model) for report in reports]
            listed = " ".join(f"{value:.4f}" for value in values)
            print(f"{title}: {model}: mean {statistics.mean(values):.4f}  seeds {listed}")
        for site in spec.federation.sites:
            parts = [reports[0].sites[site].exact_head, reports[0].sites[site].federated]
            shown = [part.metrics["accuracy"] for part in parts if part is not None]
            print(f"  {site}: exact head, fedavg (seed 42):", *(m.value for m in shown if m))


def select(data: Path | None) -> None:
    """Federated validation accuracy of each candidate, mean of three seeds."""
    spec = changed(
        load_federation(FILE),
        data={"validation_fraction": 0.3},
        evaluation={"compare": False},
        simulation={"pooled": False},
    )
    for warm, rate in itertools.product((False, True), (0.001, 0.003, 0.01)):
        optimizer = {**spec.training.optimizer.model_dump(), "learning_rate": rate}
        file = changed(spec, head={"warm_start": warm}, training={"optimizer": optimizer})
        values = [run(with_seed(file, seed), data).rounds[-1].metric or 0.0 for seed in SEEDS[:3]]
        print(f"warm_start {warm}  learning_rate {rate}: {statistics.mean(values):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the four UCI files")
    parser.add_argument("--select", action="store_true", help="show the choice of configuration")
    arguments = parser.parse_args()
    (select if arguments.select else compare)(arguments.data)
