"""Set how inputs are tried: without a time limit, and how many in tests/unit/test_hostile.py, which is reported at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from ansible_collections.renderfarm.overlay.tests.unit import tried


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--inputs", type=int, default=150, help="inputs for each test of tests/unit/test_hostile.py")


def pytest_configure(config: pytest.Config) -> None:
    # How long an input takes says nothing on a machine that does other work.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    settings.register_profile("hostile", max_examples=config.getoption("--inputs"), deadline=None)


@pytest.fixture(scope="session", autouse=True)
def _count_inputs(record_testsuite_property: Callable[[str, object], None]) -> Iterator[None]:
    """Report the inputs as cases, which `make test` prints."""
    yield
    for count in tried.GIVEN.values():
        record_testsuite_property("cases", count)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tried.summary():
        terminalreporter.write_line(tried.summary())
