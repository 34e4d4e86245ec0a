"""The report at the end of a run in a terminal."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wardround_common.evaluation.scores import MetricValue, Verdict
from wardround_server.report.model import Report, SiteReport
from wardround_server.report.wording import (
    NOTHING,
    SIGNS,
    headline,
    metric_name,
    metric_of,
    signed,
    unit_of,
)

_COLOURS: dict[Verdict, str] = {
    "helped": "green",
    "no difference": "default",
    "harmed": "red",
    "not measurable": "dim",
}


def print_table(report: Report, console: Console) -> None:
    """Print each hospital's models with intervals and verdict, and the references below.

    Args:
        report: of a finished run.
        console: where to print.
    """
    setup = report.setup
    table = Table(
        title=f"{escape(report.name)}: {metric_name(setup.metric)} on held-out {unit_of(report)}",
        caption=f"{setup.confidence:.0%} bootstrap intervals over {unit_of(report)}; gain: federated minus local",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("hospital", min_width=12)
    for heading in ("local", "federated", "personalised", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", min_width=12)
    for name, site in report.sites.items():
        table.add_row(*_row(name, site, setup.metric))
    console.print(table)
    console.print(escape(headline(report)))
    for line in _references(report):
        console.print(line)


def _row(name: str, site: SiteReport, metric: str) -> tuple[str, ...]:
    colour = _COLOURS[site.verdict]
    return (
        f"{escape(name)}\n[dim]{site.num_test_subjects} held out[/dim]",
        _cell(metric_of(site.local, metric)),
        _cell(metric_of(site.federated, metric)),
        _cell(metric_of(site.personalised, metric)),
        _difference(site.difference),
        f"[{colour}]{SIGNS[site.verdict]} {site.verdict}[/{colour}]",
    )


def _cell(value: MetricValue | None) -> str:
    if value is None:
        return NOTHING
    return f"{value.value:.3f}\n[dim]{value.low:.2f}-{value.high:.2f}[/dim]"


def _difference(value: MetricValue | None) -> str:
    if value is None:
        return NOTHING
    return f"{signed(value.value)}\n[dim]{signed(value.low, 2)} to {signed(value.high, 2)}[/dim]"


def _references(report: Report) -> list[str]:
    """One line: federated, pooled and exact head on all hospitals together."""
    if report.all_sites is None:
        return []
    scores = {
        "federated": report.all_sites.federated,
        "pooled": None if report.pooled is None else report.pooled.all_sites,
        "exact head": report.all_sites.exact_head,
    }
    values = [
        f"{name} {value.value:.3f} ({value.low:.3f} to {value.high:.3f})"
        for name, score in scores.items()
        if (value := metric_of(score, report.setup.metric)) is not None
    ]
    name = metric_name(report.setup.metric)
    return [f"All hospitals together, {name}: {'; '.join(values)}."] if values else []
