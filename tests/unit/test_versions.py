"""All sites run the aggregator's version, or are refused by name before anything is computed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import (
    Arrival,
    FakeCarrier,
    fake_sites,
    federation,
    in_kind,
    run_engine,
)
from wardround_common import __version__
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import RoundError


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def other_version(honest: Arrival, past: list[Arrival]) -> list[Arrival]:
    """The site describes itself honestly, and is of another version."""
    assert honest.receipt is not None
    receipt = json.loads(honest.receipt)
    assert receipt["body"]["version"] == __version__
    receipt["body"]["version"] = "9.9.9"
    return [replace(honest, receipt=canonical_bytes(receipt))]


def test_a_site_of_another_version_is_asked_nothing_more(tmp_path: Path) -> None:
    spec = federation(rounds={"count": 2, "quorum_sites": 2})
    carrier = FakeCarrier(fake_sites(spec), {"b": in_kind("describe", other_version)})
    outcome = run_engine(spec, carrier, tmp_path)
    assert [question.kind for question in carrier.sites["b"].asked] == ["describe"]
    for step in outcome.steps:
        assert ("b", "other_version") in step.refused
        assert set(step.contributions) == {"a", "c"}


def test_without_a_quorum_of_one_version_the_run_says_what_to_install_where(
    tmp_path: Path,
) -> None:
    spec = federation()
    faults = {site: in_kind("describe", other_version) for site in "bc"}
    with pytest.raises(RoundError) as caught:
        run_engine(spec, FakeCarrier(fake_sites(spec), faults), tmp_path)
    assert caught.value.code == "quorum_not_met"
    assert f"bring b, c to it (pip install wardround=={__version__})" in str(caught.value)
