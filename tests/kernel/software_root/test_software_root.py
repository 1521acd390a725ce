"""Read-ahead of a mount and lines of fstab for a software root, on local file systems."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.root_plan import SetReadAhead
from ansible_collections.renderfarm.overlay.tests.kernel import support


def test_read_ahead_is_set_in_the_kernel(area: Path) -> None:
    with support.filesystem(area, "xfs") as place:
        live = support.live(place)
        assert live
        before = nfs_mount.read_ahead(live)
        assert before
        try:
            apply(SetReadAhead(os.fsencode(place), before * 2), nfs_mount.handlers(10))
            assert nfs_mount.read_ahead(live) == before * 2
        finally:
            # The value belongs to the loop device, which the next test may use.
            apply(SetReadAhead(os.fsencode(place), before), nfs_mount.handlers(10))


def test_read_ahead_that_the_kernel_does_not_report_is_an_error(area: Path) -> None:
    (area / "memory").mkdir()
    support.command("mount", "-t", "tmpfs", "memory", area / "memory")
    with pytest.raises(OverlayError, match="memory: the kernel does not report the read-ahead of this mount"):
        apply(SetReadAhead(os.fsencode(area / "memory"), 1024), nfs_mount.handlers(10))


def test_several_roots_are_declared_together_and_each_failure_is_named(area: Path) -> None:
    (area / "full").mkdir()
    support.write(area / "full" / "file")
    roots = [{"path": str(area / name), "source": f"localhost:/export/{name}"} for name in ("one", "full", "two")]
    planned = support.module("software_root", check=True, roots=[roots[0], {**roots[2], "read_ahead": 128}]).ok
    assert planned["actions"] == [
        f"create directory {area / 'one'}",
        f"mount localhost:/export/one at {area / 'one'}",
        f"create directory {area / 'two'}",
        f"mount localhost:/export/two at {area / 'two'}",
        f"read 128 KiB ahead at {area / 'two'}",
    ]
    assert set(planned["diff"]["after"]) == {str(area / "one"), str(area / "two")}
    message = support.module("software_root", roots=roots).message
    assert f"mounting localhost:/export/one at {area / 'one'}" in message
    assert f"mountpoint {area / 'full'} is not empty" in message
    assert f"mounting localhost:/export/two at {area / 'two'}" in message
    assert not (area / "one").exists()
    assert not (area / "two").exists()


MOUNT = """#!/bin/sh
for where; do :; done
echo "$where" > {place}/started
read line < {place}/goes_on
echo "no route to host"
exit 32
"""


def test_several_servers_that_do_not_answer_are_waited_for_together(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount(8) of our own does not end before the others have started."""
    programs = area / "programs"
    programs.mkdir()
    (programs / "mount").write_text(MOUNT.format(place=area))
    (programs / "mount.nfs").touch()
    for name in ("mount", "mount.nfs"):
        (programs / name).chmod(0o755)
    for name in ("started", "goes_on"):
        os.mkfifo(area / name)
    started, goes_on = (os.open(area / name, os.O_RDWR) for name in ("started", "goes_on"))

    def mounting(count: int) -> set[str]:
        """Return the mountpoints of the next mounts that have started."""
        found = b""
        while found.count(b"\n") < count:
            assert select.select([started], [], [], 60)[0], found
            found += os.read(started, 4096)
        return {os.path.relpath(one, area) for one in found.decode().split()}

    # One is inside of another one, and so is mounted after it.
    names = ("net/a", "net/b", "net/c", "net/a/inner")
    roots = [{"path": str(area / name), "source": f"filer:/{name}"} for name in names]
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    with support.forked_module("software_root", {"roots": roots}) as module:
        module.go()
        assert mounting(3) == set(names[:3])
        os.write(goes_on, b"\n" * 3)
        assert mounting(1) == {"net/a/inner"}
        os.write(goes_on, b"\n")
        message = module.finish().message
    os.close(started)
    os.close(goes_on)
    failed = [f"mounting filer:/{name} at {area / name} failed (status 32): no route to host" for name in names]
    assert message == "; ".join(failed)
    assert not (area / "net").exists()


def test_a_root_that_is_not_mounted_has_no_list_of_releases(area: Path) -> None:
    (area / "root" / "1.0").mkdir(parents=True)
    given: dict[str, Any] = {"root": str(area / "root"), "pattern": "{version}", "package": "root", "mounted": True}
    assert "is not mounted, and its releases would seem to be gone" in support.module("release_info", **given).message
    support.command("mount", "--bind", area / "root", area / "root")
    assert [one["path"] for one in support.module("release_info", **given).ok["releases"]] == ["1.0"]
