"""The same federation by the tensor stream: the same bytes, and every site by stream."""

from collections.abc import Iterator

import pytest

from tests.e2e.network import hosts
from tests.e2e.network.hospitals import Laboratory
from tests.e2e.test_quickstart import table_is_there

pytestmark = pytest.mark.slow

_PORT = 9443


@pytest.fixture(scope="module")
def streaming() -> Iterator[Laboratory]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    if not table_is_there():
        pytest.skip("needs the demo packages (make demo)")
    with Laboratory(("--stream-port", str(_PORT))) as made:
        yield made


def test_by_the_stream_three_hospitals_make_the_same_model(streaming: Laboratory) -> None:
    record = streaming.begin()
    simulated = streaming.simulated_sha256()
    assert streaming.finish(record) == "done", streaming.logs()
    assert record.outcome is not None
    assert record.outcome.model_sha256 == simulated
    progress = record.progress
    assert progress is not None
    assert progress.ways == dict.fromkeys(streaming.hospitals, "stream"), streaming.logs()
