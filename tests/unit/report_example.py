"""A report as four hospitals with heart disease data would get it, made by the real machinery."""

import numpy as np
import torch

from wardround_common.evaluation.bootstrap import distinct_subjects
from wardround_common.evaluation.compare import (
    Measure,
    compare_models,
    difference_of,
    evaluate_model,
)
from wardround_common.tasks.classification import METRICS, ClassificationTask, ClassPredictions
from wardround_server.report.model import (
    AllSitesReport,
    BackboneReport,
    BytesReport,
    ExactHeadReport,
    PooledReport,
    Refusal,
    Report,
    RoundReport,
    SecondsReport,
    SetupReport,
    SiteReport,
    Traffic,
)

SITES = {"cleveland": (199, 104), "hungarian": (172, 89), "switzerland": (30, 8), "va": (85, 45)}
TASK = ClassificationTask(("healthy", "heart disease"))
LOCAL_SKILL = (1.0, 0.55, 0.2, 0.3)
SKILL = {"local": 0.55, "federated": 1.0, "personalised": 1.02, "exact": 0.95, "pooled": 1.05}


def example_report(resamples: int = 100, labels: tuple[str, str] = TASK.labels) -> Report:
    """Four hospitals: enough of everything that a page can show."""
    measure = Measure(METRICS, "accuracy", resamples, 0.95, 0)
    scored = {name: _models(index, size) for index, (name, (_, size)) in enumerate(SITES.items())}
    sites = {}
    for name, models in scored.items():
        comparison = compare_models(
            models["federated"],
            measure,
            local=models["local"],
            personalised=models["personalised"],
            exact_head=models["exact"],
            notes=("rows_as_subjects",),
        )
        train, test = SITES[name]
        sites[name] = SiteReport(
            **dict(comparison), num_train_subjects=train, num_test_subjects=test
        )
    union = {kind: _union([models[kind] for models in scored.values()]) for kind in SKILL}
    return Report(
        name="heart",
        created="2026-03-14",
        simulated=True,
        seed=0,
        model_sha256="ab" * 32,
        spec_sha256="cd" * 32,
        backbone=BackboneReport(ref="none", sha256=None),
        setup=SetupReport(
            task="classification",
            labels=list(labels),
            modality="tabular",
            tuning="head",
            aggregation="fedavg",
            num_parameters=28,
            metric="accuracy",
            confidence=0.95,
            resamples=resamples,
            row_is_subject=True,
        ),
        sites=sites,
        all_sites=AllSitesReport(
            federated=evaluate_model(union["federated"], measure),
            exact_head=evaluate_model(union["exact"], measure),
            difference_pooled=difference_of(union["federated"], union["pooled"], measure),
        ),
        pooled=PooledReport(
            sites={
                name: evaluate_model(models["pooled"], measure) for name, models in scored.items()
            },
            all_sites=evaluate_model(union["pooled"], measure),
        ),
        exact_head=ExactHeadReport(ridge=3.1623, num_values=225),
        rounds=[_round(number) for number in range(1, 11)],
        bytes=BytesReport(
            up=31_960,
            down=48_220,
            phases={
                "training": Traffic(up=12_400, down=28_800),
                "exact head": Traffic(up=9_400, down=3_100),
                "comparison": Traffic(up=10_160, down=16_320),
            },
        ),
        seconds=SecondsReport(
            total=14.2,
            phases={"training": 6.1, "exact head": 0.4, "comparison": 7.3, "pooled reference": 0.4},
        ),
        versions={"wardround": "0.1.0", "torch": "2.10.0", "flwr": "1.41.0"},
    )


def _models(seed: int, size: int) -> dict[str, ClassPredictions]:
    generator = np.random.Generator(np.random.PCG64(seed))
    targets = generator.integers(0, 2, size)
    common = generator.normal(size=size)
    models = {}
    for kind, usual in SKILL.items():
        skill = LOCAL_SKILL[seed] if kind == "local" else usual
        noise = 0.6 * common + 0.8 * generator.normal(size=size)
        margin = 1.6 * (skill * (targets - 0.5) * 2 + noise)
        logits = np.stack([np.zeros(size), margin], axis=1)
        models[kind] = TASK.predictions(
            torch.from_numpy(logits), torch.from_numpy(targets), torch.arange(size)
        )
    return models


def _union(parts: list[ClassPredictions]) -> ClassPredictions:
    return TASK.predictions(
        torch.from_numpy(np.log(np.concatenate([part.probabilities for part in parts]))),
        torch.from_numpy(np.concatenate([part.targets for part in parts])),
        torch.from_numpy(distinct_subjects([part.subjects for part in parts])),
    )


def _round(number: int) -> RoundReport:
    missing = ["switzerland", "va"] if number == 4 else ["va"] if number == 7 else []
    refused = [Refusal(site="hungarian", code="norm_too_large")] if number == 2 else []
    absent = {*missing, *(refusal.site for refusal in refused)}
    abandoned = number == 4
    return RoundReport(
        round=number,
        status="abandoned" if abandoned else "completed",
        sites=[] if abandoned else [name for name in SITES if name not in absent],
        missing=missing,
        refused=refused,
        late=["va"] if number == 7 else [],
        loss=None if abandoned else round(0.38 + 0.31 * 0.72**number, 4),
        metric=None if abandoned else round(0.815 - 0.2 * 0.6**number, 4),
        bytes_up=1_240,
        bytes_down=2_880,
        seconds=0.61,
    )
