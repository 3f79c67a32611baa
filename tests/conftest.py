"""How tests get a universe, and how they say what they cannot do without.

`@pytest.mark.universe` (or `pytestmark = pytest.mark.universe`): the test, its fixtures and their teardown
run inside a universe of their own, in a forked process (testbed.pytest_plugin.universes). With
`@pytest.mark.universe(preload=("numpy",))` the fork server imports these modules first.

`require(feature, probe)`: skips the test where the machine lacks the feature. TESTBED_REQUIRE in the
environment turns such skips into failures: `all`, or features separated by commas; `all,-netem` excepts one.

An example of a property has no deadline: it would measure the machine, which may take a processor away.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from testbed.pytest_plugin.needs import demanded, require
from testbed.pytest_plugin.universes import run_in_universe

__all__ = ["demanded", "require"]

settings.register_profile("testbed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("testbed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "universe(preload=()): the test runs in a universe of its own")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test as pytest would, but in a universe."""
    marker = item.get_closest_marker("universe")
    if marker is None:
        return None
    run_in_universe(item, nextitem, tuple(marker.kwargs.get("preload", ())))
    return True
