"""What holds for all playbooks, whatever the configuration of Ansible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"


def plays() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each play of the collection, with the file and the name of the play."""
    for path in sorted(PLAYBOOKS.glob("*.yml")):
        for play in yaml.safe_load(path.read_text(encoding="utf-8")):
            if "hosts" in play:
                yield f"{path.name}: {play['name']}", play


ONCE = [(name, play) for name, play in plays() if "'run_once': True" in str(play.get("tasks"))]


@pytest.mark.parametrize(("name", "play"), ONCE, ids=[name for name, _play in ONCE])
def test_what_runs_once_for_all_hosts_waits_for_them(name: str, play: dict[str, Any]) -> None:
    """With the strategies free and host_pinned, Ansible runs a task with run_once on each host, before others have answered."""
    assert "regex_replace('(free|host_pinned)$', 'linear')" in play.get("strategy", ""), name


REPORTS = [(name, play) for name, play in ONCE if "gathered_report" in str(play) or "verification_report" in str(play)]


@pytest.mark.parametrize(("name", "play"), REPORTS, ids=[name for name, _play in REPORTS])
def test_a_report_is_made_although_hosts_fail(name: str, play: dict[str, Any]) -> None:
    """The configuration of Ansible can make every failure of a host the end of a run."""
    assert play.get("any_errors_fatal") is False, name


def test_plays_with_tasks_that_run_once_are_found() -> None:
    assert len(ONCE) > 8
    assert len(REPORTS) > 4
