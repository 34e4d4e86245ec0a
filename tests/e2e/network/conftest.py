"""One consortium between hosts for all tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

from tests.e2e.network import hosts
from tests.e2e.network.hospitals import Laboratory
from tests.e2e.test_quickstart import table_is_there


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    if not table_is_there():
        pytest.skip("needs the demo packages (make demo)")
    with Laboratory() as made:
        yield made
