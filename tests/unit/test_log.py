"""The operations log takes short codes and numbers under known keys, and nothing else."""

import io
import json
from collections.abc import Iterator

import pytest

from wardround_common.log import log_event, set_log_stream


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    target = io.StringIO()
    set_log_stream(target)
    yield target
    set_log_stream(None)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_LOG_STRICT", "1")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARDROUND_LOG_STRICT", raising=False)


BAD_FIELDS: dict[str, dict[str, object]] = {
    "unknown key": {"patient": 3},
    "free text": {"code": "column Müller is missing"},
    "path": {"site": "/data/mueller.csv"},
    "long text": {"code": "a" * 65},
    "exception": {"code": ValueError("secret")},
    "list": {"value": [1, 2]},
    "nothing": {"value": None},
    "not a number": {"loss": float("nan")},
    "infinite": {"loss": float("inf")},
    "enormous": {"seed": 10**400},
    "newline": {"site": "north\n"},
}


@pytest.mark.usefixtures("strict")
def test_an_event_is_one_json_line_with_its_time(stream: io.StringIO) -> None:
    log_event("round_completed", round=3, loss=0.25, site="north", resumed=False)
    log_event("update_refused", code="norm_too_large")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "event": "round_completed",
        "round": 3,
        "loss": 0.25,
        "site": "north",
        "resumed": False,
    }
    assert second["code"] == "norm_too_large"


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", sorted(BAD_FIELDS))
def test_strict_logging_raises_on_what_is_not_allowed(name: str, stream: io.StringIO) -> None:
    with pytest.raises(ValueError, match="not allowed in the log"):
        log_event("round_completed", round=1, **BAD_FIELDS[name])  # type: ignore[arg-type]
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("name", sorted(BAD_FIELDS))
def test_lenient_logging_leaves_it_out_and_counts_it(name: str, stream: io.StringIO) -> None:
    log_event("round_completed", round=1, **BAD_FIELDS[name])  # type: ignore[arg-type]
    record = json.loads(stream.getvalue())
    assert set(record) == {"time", "event", "round", "num_dropped"}
    assert record["num_dropped"] == 1


@pytest.mark.parametrize("event", ["round", "Round completed", "round_completed: 3 sites", ""])
def test_an_event_name_with_anything_but_words_is_refused(
    event: str, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WARDROUND_LOG_STRICT", raising=False)
    log_event(event)
    assert json.loads(stream.getvalue())["event"] == "event_unnamed"
    monkeypatch.setenv("WARDROUND_LOG_STRICT", "1")
    with pytest.raises(ValueError, match="lower-case words"):
        log_event(event)


@pytest.mark.usefixtures("strict")
def test_nothing_is_written_without_a_stream_but_the_rules_hold() -> None:
    log_event("round_completed", round=3)
    with pytest.raises(ValueError, match="not allowed"):
        log_event("round_completed", patient=3)


@pytest.mark.usefixtures("strict")
def test_a_closed_stream_does_not_stop_a_round() -> None:
    target = io.StringIO()
    target.close()
    set_log_stream(target)
    try:
        log_event("round_completed", round=3)
    finally:
        set_log_stream(None)
