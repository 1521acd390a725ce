"""The fleet of hosts that `make bench` measures on."""

from __future__ import annotations

import time
from pathlib import Path

from ansible_collections.renderfarm.overlay.tests.bench import fleet
from ansible_collections.renderfarm.overlay.tests.kernel import support

_KILLED = """
import sys, time
from pathlib import Path
from ansible_collections.renderfarm.overlay.tests.bench import fleet
hosts = fleet.Fleet(Path(sys.argv[1], "fleet"))
hosts.grow(2)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_deployment_without_changes_has_few_tasks_and_events_for_each_host(area: Path) -> None:
    with fleet.Fleet(area / "fleet").running() as hosts:
        hosts.grow(2)
        first = hosts.deploy(fleet.current(), 2, 2)
        assert first.changed == 2
        assert [len(shown) for shown in hosts.generations(2, 2)] == [1, 1]
        again = fleet.unchanged(hosts, fleet.current(), 2, 2)
        assert again.tasks <= 6
        assert again.events <= 15
        # Each host has mounts of its own, and none is seen here.
        assert support.live(area / "fleet" / "host" / "views" / "view_00") is None


def test_the_hosts_end_with_the_benchmark_however_it_ends(area: Path) -> None:
    with support.background(_KILLED, area) as process:
        keepers = _children(process.pid)
        processes = [*keepers, *(child for keeper in keepers for child in _children(keeper))]
        assert len(processes) == 4
        process.kill()
        deadline = time.monotonic() + 20
        while any(map(_is_running, processes)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(_is_running, processes))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_running(pid: int) -> bool:
    # A process that has ended and that nobody waits for has no program.
    return Path(f"/proc/{pid}/exe").exists()
