"""A deployed ServerApp killed wherever it changes the disk: the run ends with the same bytes.

By both carriers; the aggregator starts it again by itself. All points take about a quarter of an hour a
carrier; ``WARDROUND_POINTS_EVERY=10`` (the default) tries each tenth, 1 all of them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.consortium import Consortium
from tests.contract.real_superlink import free_port
from tests.e2e.test_kills import assert_nothing_left_twice, computed, ways
from tests.fault.deployed_points import BROKEN, VARIABLE, Points
from wardround_server.aggregator.records import RunRecord

pytestmark = pytest.mark.slow

EVERY = int(os.environ.get("WARDROUND_POINTS_EVERY", "10"))
_ROOT = Path(__file__).parents[2]
_WITHIN_S = 180.0


@pytest.fixture(scope="module", params=["messages", "stream"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Points:
    return Points(tmp_path_factory.mktemp("points"))


@pytest.fixture(scope="module")
def consortium(
    carrier: str, points: Points, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Consortium]:
    paths = (str(_ROOT / "tests" / "fault" / "die_at"), str(_ROOT), os.environ.get("PYTHONPATH"))
    options = ["--stream-port", str(free_port())] if carrier == "stream" else []
    with (
        pytest.MonkeyPatch.context() as patch,
        Consortium(
            tmp_path_factory.mktemp("serverapp"), options=options, rounds={"count": 2}
        ) as made,
    ):
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv(VARIABLE, str(points.folder))
        assert made.up is not None
        made.up.end()
        made.start()
        yield made


def test_killed_at_every_point_the_run_ends_with_the_same_bytes(
    consortium: Consortium, carrier: str, points: Points
) -> None:
    expected = consortium.simulated_sha256()
    for _ in range(2):  # only the first run learns the sites' keys
        points.arm(0)
        calm = _run(consortium, expected)
    assert set(ways(consortium, calm)) == {carrier}, consortium.logs()
    total, tried, wrong = points.num_calls, 0, []
    print(f"{carrier}: {total} points")
    for at in range(1, total + 1, EVERY):
        points.arm(at)
        try:
            record = _run(consortium, expected)
            assert points.has_died or points.num_calls < at
            assert set(computed(consortium, record).values()) == {1}
            assert_nothing_left_twice(consortium, record)
        except AssertionError as error:
            wrong.append((at, str(error)[:2000]))
        else:
            tried += points.has_died
    print(f"{carrier}: killed at {tried} of {total} points, every {EVERY}th; wrong: {wrong}")
    assert not wrong
    assert tried >= total // EVERY - 2, "the count varies by a few calls at the end"


def test_a_record_that_is_durable_before_its_array_would_be_noticed(
    consortium: Consortium, points: Points
) -> None:
    points.arm(BROKEN)
    record = consortium.begin()
    assert consortium.finish(record, _WITHIN_S) == "failed"
    assert points.has_died
    assert record.outcome is not None
    assert record.outcome.code == "journal_object"


def _run(consortium: Consortium, expected: str) -> RunRecord:
    record = consortium.begin()
    assert consortium.finish(record, _WITHIN_S) == "done", consortium.logs()
    assert record.outcome is not None
    assert record.outcome.model_sha256 == expected
    return record
