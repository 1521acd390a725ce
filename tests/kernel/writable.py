"""Writable overlays for tests: mount them, finalize them, and read what they show."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, Writable
from ansible_collections.renderfarm.overlay.tests.kernel import support

OPAQUE = "trusted.overlay.opaque"
REDIRECT = "trusted.overlay.redirect"
METACOPY = "trusted.overlay.metacopy"
SEALED = "trusted.renderfarm-overlay.sealed"


def attribute(path: Path | str, name: str) -> bytes | None:
    """Return the value of an xattr; None if it cannot be read."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


@dataclass
class Overlay:
    """A writable overlay with its upper directory, work directory and mountpoint in one directory."""

    area: Path
    lowers: tuple[Path, ...]
    data: tuple[Path, ...] = ()
    options: tuple[tuple[str, str | None], ...] = (("metacopy", "on"), ("redirect_dir", "on"), ("index", "on"))

    def __post_init__(self) -> None:
        for place in (self.upper, self.work, self.path):
            place.mkdir(parents=True, exist_ok=True)

    @property
    def upper(self) -> Path:
        return self.area / "upper"

    @property
    def work(self) -> Path:
        return self.area / "work"

    @property
    def path(self) -> Path:
        return self.area / "view"

    def mount(self) -> None:
        """Mount the overlay."""
        settings = tuple((name.encode(), None if value is None else value.encode()) for name, value in self.options)
        lowers, data = (tuple(map(os.fsencode, layers)) for layers in (self.lowers, self.data))
        writable = Writable(os.fsencode(self.upper), os.fsencode(self.work))
        spec = MountSpec(os.fsencode(self.path), lowers, data, settings, frozenset(("nodev",)), (), writable)
        mount = creating.create_overlay(spec)
        creating.attach(mount, os.fsencode(self.path))
        os.close(mount)

    def unmount(self) -> None:
        """Unmount the overlay."""
        subprocess.run(["umount", self.path], check=True)

    def finalize(self, **arguments: Any) -> dict[str, Any]:
        """Run overlay_finalize and return its result."""
        with support.forked_module("overlay_finalize", {"path": str(self.path), **arguments}) as child:
            child.go()
            return child.finish().ok

    def finalized(self, **arguments: Any) -> dict[str, Any]:
        """Finalize the overlay, check that a second run changes nothing, and return the first result."""
        result = self.finalize(allow_unmount=True, **arguments)
        assert result["finalized"], result["pending"]
        again = self.finalize(allow_unmount=True, **arguments)
        assert not again["changed"], again
        assert again["finalized"]
        assert not again["unmounted"]
        return result


def overlay_at(area: Path, *lowers: Path, **more: Any) -> Overlay:
    """Make and mount a writable overlay."""
    overlay = Overlay(area, lowers, **more)
    # The root directory of the upper layer exists from the beginning, so it is never copied up.
    shutil.copystat(lowers[0], overlay.upper)
    overlay.mount()
    return overlay


def copied(overlay: Overlay, path: str) -> bool:
    """Return whether the upper layer has a path."""
    return os.path.lexists(overlay.upper / path)


def sealed(overlay: Overlay, path: str) -> bool:
    """Return whether a directory is opaque and has the mark of a seal."""
    return attribute(overlay.upper / path, OPAQUE) == b"y" and attribute(overlay.upper / path, SEALED) is not None


def shown(view: Path) -> dict[bytes, tuple[Any, ...]]:
    """Map each path of a tree to its mode, uid, gid, mtime and content."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for path, status in support.listing(view).items():
        full = os.fsencode(view) + path
        content: object = None
        if os.path.islink(full):
            content = os.readlink(full)
        elif os.path.isfile(full):
            with open(full, "rb") as stream:
                content = stream.read()
        found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return found
