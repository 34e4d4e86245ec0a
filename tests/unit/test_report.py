import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from tests.unit.report_example import SITES, example_report
from wardround_common.errors import DataError
from wardround_server.report.charts.svg import Axis, round_ticks
from wardround_server.report.html import render_html
from wardround_server.report.model import Report, read_report, report_bytes
from wardround_server.report.participation import participation
from wardround_server.report.schema import schema_text
from wardround_server.report.terminal import print_table
from wardround_server.report.wording import bytes_text, headline, seconds_text, signed

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
OUTSIDE = re.compile(r"https?://|//[a-z]|<script|<link|<iframe|\bsrc=|@import|url\(", re.IGNORECASE)
VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def report() -> Report:
    return example_report()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_html(report)


class Nesting(HTMLParser):
    """Insists that every element is closed, in order, and that no id occurs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs).get("id")
        assert found is None or found not in self.ids
        self.ids.add(found or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_published_schema_is_the_one_of_the_models():
    assert SCHEMA.read_text() == schema_text(), (
        "run: python -m wardround_server.report.schema > docs/report.schema.json"
    )


def test_a_report_fits_the_published_schema_and_a_changed_one_does_not(report):
    found = json.loads(report_bytes(report))
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(found, schema)
    found["sites"]["va"]["verdict"] = "improved"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema)


def test_a_report_survives_its_file(report, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(report_bytes(report))
    assert read_report(path) == report
    assert report_bytes(read_report(path)) == report_bytes(report)


def test_a_file_that_is_no_report_is_refused_with_file_and_key(report, tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(DataError, match=r"report\.json: cannot be read"):
        read_report(path)
    found = json.loads(report_bytes(report))
    found["seed"] = -1
    path.write_text(json.dumps(found))
    with pytest.raises(DataError, match=r"report\.json: .*seed"):
        read_report(path)


def test_the_page_is_the_same_for_the_same_report(report, page):
    assert render_html(report) == page


def test_the_page_is_well_formed_and_loads_nothing(page):
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []
    assert OUTSIDE.search(page) is None
    assert OUTSIDE.search(page.replace("<style>", "<link rel=stylesheet href=x><style>"))
    assert "default-src 'none'" in page


def test_every_chart_has_a_title_and_a_description(page):
    charts = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(charts) >= len(SITES) + 3
    for chart in charts:
        keys = re.search(r'aria-labelledby="(\S+) (\S+)"', chart)
        assert keys
        assert f'<title id="{keys[1]}">' in chart
        assert f'<desc id="{keys[2]}">' in chart


def test_text_from_the_federation_is_escaped_in_the_page(report):
    hostile = "</title><script>alert(1)</script>\"'&"
    changed = report.model_copy(
        update={
            "name": hostile,
            "sites": {hostile: report.sites["va"], **report.sites},
            "setup": report.setup.model_copy(update={"labels": ["no", hostile]}),
            "versions": {hostile: hostile},
        }
    )
    found = render_html(changed)
    assert "<script" not in found
    assert found.count("&lt;script&gt;") >= 6
    Nesting().feed(found)


def test_the_answer_comes_first_in_plain_words(report, page):
    verdicts = [site.verdict for site in report.sites.values()]
    helped = verdicts.count("helped")
    assert helped == 2
    assert headline(report).startswith(f"Training together helped {helped} of 4 hospitals")
    assert page.index(headline(report)) < page.index("<table")


def test_harm_is_said_in_the_first_sentence(report):
    harmed = report.sites["va"].model_copy(update={"verdict": "harmed"})
    changed = report.model_copy(update={"sites": {**report.sites, "va": harmed}})
    assert "harmed 1" in headline(changed)
    assert "harmed" not in headline(report)
    assert "▼ harmed</td>" in render_html(changed)


def test_no_help_anywhere_is_not_hidden(report):
    sites = {
        name: site.model_copy(update={"verdict": "no difference"})
        for name, site in report.sites.items()
    }
    assert "helped none of 4 hospitals" in headline(report.model_copy(update={"sites": sites}))
    unknown = {
        name: site.model_copy(update={"verdict": "not measurable"}) for name, site in sites.items()
    }
    told = headline(report.model_copy(update={"sites": unknown}))
    assert told == "Whether training together helped could not be measured at any hospital."


def test_the_page_says_that_rows_were_counted_as_patients_only_where_they_were(report, page):
    said = "each row was counted as one patient"
    assert said in page
    setup = report.setup.model_copy(update={"row_is_subject": False})
    found = render_html(report.model_copy(update={"setup": setup}))
    assert said not in found
    assert "held-out patients" in found


def test_a_deployed_run_has_no_pooled_reference_and_no_simulation(report):
    deployed = report.model_copy(
        update={
            "simulated": False,
            "pooled": None,
            "all_sites": None,
            "exact_head": None,
            "seconds": report.seconds.model_copy(update={"phases": {"training": 6.1}}),
        }
    )
    found = render_html(deployed)
    assert "simulation" not in found.lower()
    assert "pooled" not in found.lower()
    assert "Each hospital kept its data" in found


def test_a_run_without_rounds_or_comparisons_still_has_a_page(report):
    empty = report.model_copy(update={"sites": {}, "rounds": [], "pooled": None, "all_sites": None})
    found = render_html(empty)
    Nesting().feed(found)
    assert "No hospital sent a comparison" in found
    assert "no training rounds" in found


def test_entities_have_a_page_without_probabilities(report):
    bare = {"reliability": None, "calibration": None}
    f1 = {"metrics": {"entity_f1": report.sites["va"].federated.metrics["accuracy"]}}
    site = report.sites["va"]
    score = site.federated.model_copy(update={**bare, **f1})
    site = site.model_copy(
        update={"local": score, "federated": score, "personalised": None, "exact_head": None}
    )
    setup = report.setup.model_copy(
        update={"task": "entities", "labels": ["Chemical", "Disease"], "metric": "entity_f1"}
    )
    found = render_html(
        report.model_copy(
            update={"sites": {"va": site}, "setup": setup, "pooled": None, "all_sites": None}
        )
    )
    Nesting().feed(found)
    assert "finds Chemical and Disease in text" in found
    assert "Entity F1" in found
    assert "Brier" not in found
    assert "probabilities be believed" not in found


def test_a_single_round_and_equal_losses_can_be_drawn(report):
    one = report.model_copy(update={"rounds": report.rounds[:1]})
    assert "Mean training loss" in render_html(one)


@pytest.mark.parametrize("value", [0.0, 0.0625, 0.1, 1.0, 1e-30, -3.0])
def test_equal_figures_have_an_axis_of_some_width(value):
    for high in (value, value + 1e-13):
        ticks = round_ticks(value, high, 7)
        assert ticks[0] < ticks[-1]
        assert ticks[0] <= value + 1e-9
        assert high <= ticks[-1] + 1e-9
        Axis(ticks[0], ticks[-1], 0.0, 100.0).at(value)


def test_participation_counts_each_hospital_by_round(report):
    counts = {
        part.site: (part.used, part.missing, part.late, part.refused)
        for part in participation(report)
    }
    assert counts == {
        "cleveland": (9, 0, 0, 0),
        "hungarian": (8, 0, 0, 1),
        "switzerland": (9, 1, 0, 0),
        "va": (8, 2, 1, 0),
    }


def test_the_terminal_table_names_every_hospital_with_verdict_and_no_markup_is_obeyed(report):
    console = Console(width=110)
    with console.capture() as capture:
        print_table(report.model_copy(update={"name": "[red]heart"}), console)
    text = capture.get()
    for name, site in report.sites.items():
        assert name in text
        assert site.verdict in text
    assert "[red]heart" in text
    assert headline(report).split(".")[0] in " ".join(text.split())


def test_the_terminal_table_fits_eighty_columns_without_cutting_a_word(report):
    console = Console(width=80)
    with console.capture() as capture:
        print_table(report, console)
    for word in ("switzerland", "personalised", "difference", "measurable", "helped"):
        assert word in capture.get()


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (bytes_text(999), "999 B"),
        (bytes_text(1_000), "1 kB"),
        (bytes_text(999_600), "1 MB"),
        (bytes_text(90_412_332), "90.4 MB"),
        (seconds_text(0.0), "0 s"),
        (seconds_text(9.94), "9.9 s"),
        (seconds_text(119.6), "2 min 00 s"),
        (seconds_text(7260.0), "2 h 01 min"),
        (signed(-0.0004), "0.000"),
        (signed(-0.25, 2), "\N{MINUS SIGN}0.25"),
        (signed(0.25, 2), "+0.25"),
    ],
)
def test_numbers_are_written_for_people(found, text):
    assert found == text
