"""Try many random cases in one test, and report their number."""

from __future__ import annotations

from collections.abc import Callable

#: The fixture ``record_testsuite_property`` of pytest.
Record = Callable[[str, object], None]


def each_seed(count: int, try_seed: Callable[[int], None], record_testsuite_property: Record) -> None:
    """Try the seeds 0 to ``count - 1``, and report their number as ``cases``. Raises AssertionError naming the first seed that fails."""
    for seed in range(count):
        try:
            try_seed(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed} of {count}: {error}") from error
    record_testsuite_property("cases", count)
