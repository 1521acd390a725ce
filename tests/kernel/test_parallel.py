"""Work that several processes do."""

from __future__ import annotations

import os
import time

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

Span = tuple[int, float, float]


def worked(turns: parallel.Turns, workers: int) -> list[Span]:
    """Return which process did each of the items, and from when to when it had a turn."""

    def visit(_item: int, _progress: Progress) -> tuple[Span, list[int]]:
        with turns.held():
            started = time.monotonic()
            time.sleep(0.02)
            return (os.getpid(), started, time.monotonic()), []

    return parallel.walk(list(range(40)), visit, workers, no_progress)


def most_at_once(spans: list[Span]) -> int:
    return max(sum(1 for _pid, start, end in spans if start <= moment < end) for _pid, moment, _end in spans)


def test_turns_let_so_many_processes_work_at_a_time() -> None:
    spans = worked(parallel.Turns(2), workers=6)
    assert len(spans) == 40
    assert len({pid for pid, _start, _end in spans}) > 2
    assert most_at_once(spans) == 2


def test_a_turn_that_ends_with_an_error_is_given_back() -> None:
    turns = parallel.Turns(1)
    for _again in range(2):
        try:
            with turns.held():
                raise OSError
        except OSError:
            pass
    assert most_at_once(worked(turns, workers=3)) == 1
