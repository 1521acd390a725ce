"""Works that run together end together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


def test_results_come_in_the_order_of_the_works() -> None:
    # The first one ends last.
    receiver, sender = os.pipe()
    calls: list[None] = []

    def first(progress: Progress) -> bytes:
        os.close(sender)
        os.read(receiver, 1)
        progress()
        return b"x" * 3_000_000

    def second(_progress: Progress) -> int:
        return os.getpid()

    def end_of_second() -> None:
        calls.append(None)
        if len(calls) == 1:
            os.close(sender)

    large, pid = deadline.run_together([first, second], end_of_second)
    assert large == b"x" * 3_000_000
    assert pid != os.getpid()
    assert calls
    os.close(receiver)
    assert deadline.run_together([]) == []


def _fails_with_errno(_progress: Progress) -> None:
    raise OSError(28, "No space left on device", "/some/file")


def _is_killed(_progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [(_fails_with_errno, OSError, "No space left on device"), (_is_killed, OverlayError, "was killed .wait status 9.")],
)
def test_when_one_fails_the_others_are_killed(
    tmp_path: Path, bad: Callable[[Progress], None], error: type[Exception], words: str
) -> None:
    noted = tmp_path / "pid"

    def endless(_progress: Progress) -> None:
        (tmp_path / "new").write_text(f"{os.getpid()}")
        (tmp_path / "new").rename(noted)
        signal.pause()

    def failing(progress: Progress) -> None:
        while not noted.exists():
            time.sleep(0.001)
        bad(progress)

    with pytest.raises(error, match=words):
        deadline.run_together([endless, failing])
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)
