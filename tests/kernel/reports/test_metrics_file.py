"""Metrics are written for node_exporter: whole or not at all, readable, in the directory that was named, without a look at the view."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import metrics_file
from ansible_collections.renderfarm.overlay.tests.kernel import support

ROW: dict[str, Any] = {"view": "software", "status": "as declared", "generation": "0123456789abcdef"}
NOBODY = 65534


@pytest.fixture
def place(area: Path) -> Path:
    """Provide an empty directory that belongs to another user than root."""
    path = area / "collector"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    return path


def test_the_file_is_replaced_and_readable_for_all(place: Path) -> None:
    path = place / "views.prom"
    previous = os.umask(0o077)
    try:
        metrics_file.write(str(path), [])
        metrics_file.write(str(path), [ROW])
    finally:
        os.umask(previous)
    status = path.stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o644, os.geteuid())
    assert 'renderfarm_overlay_view_info{view="software",' in path.read_text()
    assert os.listdir(place) == ["views.prom"]


def test_a_row_that_is_wrong_leaves_the_file_as_it_is(place: Path) -> None:
    path = place / "views.prom"
    path.write_text("old")
    with pytest.raises(OverlayError, match="status must be one of"):
        metrics_file.write(str(path), [{**ROW, "status": "fine"}])
    assert path.read_text() == "old"
    assert os.listdir(place) == ["views.prom"]


def test_a_full_disk_leaves_the_file_as_it_is_and_names_it(place: Path) -> None:
    support.command("mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", place)
    path = place / "views.prom"
    path.write_text("old")
    support.write(place / "all", bytes(4096))
    with pytest.raises(OSError, match="No space left on device") as raised:
        metrics_file.write(str(path), [ROW])
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert sorted(os.listdir(place)) == ["all", "views.prom"]


@pytest.mark.parametrize("path", ["views.prom", "/views", "/a/.prom", "/a/views.prom.txt"])
def test_a_name_that_the_collector_ignores_is_refused(path: str) -> None:
    with pytest.raises(OverlayError, match=r"must be an absolute path that ends with \.prom"):
        metrics_file.check_path(path)


@pytest.mark.parametrize("middle", ["missing", "file", "file/below"])
def test_a_directory_that_does_not_exist_is_named(place: Path, middle: str) -> None:
    (place / "file").write_text("")
    for function in (metrics_file.check_path, lambda path: metrics_file.write(path, [ROW])):
        with pytest.raises(OverlayError, match=f"directory {place}/{middle} for the metrics file does not exist"):
            function(f"{place}/{middle}/views.prom")
    assert os.listdir(place) == ["file"]


def test_nobody_leads_root_to_another_directory(place: Path, area: Path) -> None:
    other = area / "other"
    other.mkdir()
    (place / "inner").mkdir()
    (place / "inner" / "link").symlink_to(other)
    (place / "link").symlink_to(place / "inner")
    for parent in ("link", "inner/link", "link/link"):
        with pytest.raises(OverlayError, match="has a symbolic link in its path"):
            metrics_file.write(f"{place}/{parent}/views.prom", [ROW])
    assert os.listdir(other) == []


def test_a_link_with_the_name_of_the_file_is_replaced_and_not_followed(place: Path, area: Path) -> None:
    victim = area / "victim"
    victim.write_text("mine")
    path = place / "views.prom"
    path.symlink_to(victim)
    metrics_file.write(str(path), [ROW])
    assert victim.read_text() == "mine"
    assert not path.is_symlink()


def test_a_directory_with_the_name_of_the_file_is_named(place: Path) -> None:
    path = place / "views.prom"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        metrics_file.write(str(path), [ROW])
    assert raised.value.filename == str(path)
    assert os.listdir(place) == ["views.prom"]


def test_no_file_of_a_view_is_looked_at(place: Path, area: Path) -> None:
    view, data, layer = area / "view", area / "data", area / "layer"
    for path in (view, data, layer):
        path.mkdir()
    support.command("mount", "-t", "overlay", "-o", f"ro,lowerdir={layer}:{data}", "overlay", view)
    seen = area / "seen"
    program = (
        "from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import metrics_file\n"
        f"metrics_file.write({str(place / 'views.prom')!r}, [{ {**ROW, 'mountpoint': str(view)}!r}])"
    )
    support.command("strace", "-f", "-e", "trace=%file", "-o", seen, sys.executable, "-c", program)
    calls = seen.read_text()
    assert str(place) in calls
    assert [line for line in calls.splitlines() if any(str(path) in line for path in (view, data, layer))] == []
