"""Measure how long a function takes, wherever it is called."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """Call a function and keep the seconds that it took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds = 0.0
        self.ended = 0.0

    def __call__(self, *given: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._function(*given)
        finally:
            self.ended = time.perf_counter()
            self.seconds = self.ended - started
