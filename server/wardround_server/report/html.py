"""``report.html``: one file that opens offline, needs no script and prints well.

Jinja2 escapes everything that comes from the report; the page may load nothing, and says so to the
browser in its content security policy.
"""

from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wardround_common.evaluation.scores import ModelScore
from wardround_server.report import wording
from wardround_server.report.charts.curves import learning_curves
from wardround_server.report.charts.intervals import Block, Row, interval_charts
from wardround_server.report.charts.reliability import MOST, Panel, reliability_charts
from wardround_server.report.charts.svg import (
    EXACT_HEAD,
    FEDERATED,
    LOCAL,
    PERSONALISED,
    POOLED,
    Style,
)
from wardround_server.report.model import Report, SiteReport
from wardround_server.report.participation import participation

_TEMPLATES: Final = Path(__file__).parent / "templates"
ALL_SITES: Final = "All hospitals together"


def render_html(report: Report) -> str:
    """The page of a report.

    Args:
        report: of a finished run.

    Returns:
        A whole HTML document; the same report gives the same text.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        words=wording,
        unit=wording.unit_of(report),
        metric=wording.metric_name(report.setup.metric),
        participation=participation(report),
        references=_references(report),
        details=_details(report),
        intervals=interval_charts(
            _blocks(report), wording.capital(wording.metric_name(report.setup.metric))
        ),
        curves=learning_curves(report.rounds, wording.metric_name(report.setup.metric)),
        reliability=_reliability(report),
        reliability_most=MOST,
    )


def _models(report: Report, name: str, site: SiteReport) -> list[tuple[Style, ModelScore | None]]:
    """The models that were scored at one hospital, in the order of the report."""
    pooled = None if report.pooled is None else report.pooled.sites.get(name)
    models = (
        (LOCAL, site.local),
        (FEDERATED, site.federated),
        (PERSONALISED, site.personalised),
        (EXACT_HEAD, site.exact_head),
        (POOLED, pooled),
    )
    return [(style, score) for style, score in models if score is not None]


def _all_sites(report: Report) -> list[tuple[Style, ModelScore | None]]:
    if report.all_sites is None:
        return []
    pooled = None if report.pooled is None else report.pooled.all_sites
    models = (
        (FEDERATED, report.all_sites.federated),
        (EXACT_HEAD, report.all_sites.exact_head),
        (POOLED, pooled),
    )
    return [(style, score) for style, score in models if score is not None]


def _blocks(report: Report) -> list[Block]:
    metric, unit = report.setup.metric, wording.unit_of(report)

    def rows(models: list[tuple[Style, ModelScore | None]]) -> tuple[Row, ...]:
        return tuple(Row(style, wording.metric_of(score, metric)) for style, score in models)

    blocks = [
        Block(
            name,
            f"{site.num_test_subjects:,} held-out {unit}",
            f"{wording.SIGNS[site.verdict]} {site.verdict}",
            rows(_models(report, name, site)),
        )
        for name, site in report.sites.items()
    ]
    if report.all_sites is not None:
        held_out = f"{report.all_sites.federated.num_subjects:,} held-out {unit}"
        blocks.append(Block(ALL_SITES, held_out, "", rows(_all_sites(report))))
    return blocks


def _references(report: Report) -> list[dict[str, object]]:
    """Federated, pooled and exact head, by hospital and on all together."""
    metric = report.setup.metric
    rows: list[dict[str, object]] = []
    for name, site in report.sites.items():
        found = {style.label: score for style, score in _models(report, name, site)}
        rows.append({"name": name, "total": False, **_reference_cells(found, metric)})
    if report.all_sites is not None:
        found = {style.label: score for style, score in _all_sites(report)}
        rows.append({"name": ALL_SITES, "total": True, **_reference_cells(found, metric)})
    return rows


def _reference_cells(found: dict[str, ModelScore | None], metric: str) -> dict[str, object]:
    return {
        key: wording.metric_of(found.get(style.label), metric)
        for key, style in (("federated", FEDERATED), ("exact", EXACT_HEAD), ("pooled", POOLED))
    }


def _details(report: Report) -> list[dict[str, object]]:
    """Every metric of every model at every hospital, for the annex."""
    groups = [
        *((name, _models(report, name, site)) for name, site in report.sites.items()),
        *(((ALL_SITES, _all_sites(report)),) if report.all_sites is not None else ()),
    ]
    return [
        {"name": name, "models": [(style.label, score) for style, score in models]}
        for name, models in groups
    ]


def _reliability(report: Report) -> list[object]:
    labels = report.setup.labels
    binary = len(labels) == 2
    panels = [Panel(name, site.federated) for name, site in report.sites.items()]
    return list(
        reliability_charts(
            panels,
            "predicted probability" if binary else "confidence",
            "observed frequency" if binary else "share correct",
        )
    )
