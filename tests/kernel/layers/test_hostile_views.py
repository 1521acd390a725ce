"""Views of releases whose manifests somebody has altered: a named error, or a layer that has changed nothing outside of its directory."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.directory_layer import DirectoryLayer
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import CARRIED_XATTRS
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.layers.test_damaged_manifests import damaged
from ansible_collections.renderfarm.overlay.tests.unit.hostile_readers import BETWEEN, composed, composition_input
from ansible_collections.renderfarm.overlay.tests.unit.random_cases import Record

SEEDS = 400
METACOPY, REDIRECT = "trusted.overlay.metacopy", "trusted.overlay.redirect"
XATTRS = {METACOPY, REDIRECT, *map(os.fsdecode, CARRIED_XATTRS)}


def altered(seed: int) -> bytes:
    """Return a random view, one of whose manifests is damaged."""
    text = composition_input(seed)
    manifests = text[5:].split(BETWEEN)
    chosen = seed % len(manifests)
    manifests[chosen] = damaged(manifests[chosen].splitlines(), seed)
    return text[:5] + BETWEEN.join(manifests)


def state_of(top: Path) -> dict[bytes, tuple[object, ...]]:
    return {
        path: (
            status.st_ino,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            status.st_size,
            status.st_ctime_ns,
        )
        for path, status in support.listing(top).items()
    }


def test_a_hostile_view_changes_nothing_outside_of_its_layer(area: Path, record_testsuite_property: Record) -> None:
    # Names that lead up from a layer, or that links in it lead to, are those of files that exist.
    outside = area / "outside"
    for name in ("a", "b", "bin/a", "tool/0/a", "layers/a"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        support.write(outside / name, b"untouched", 0o600)
    layers = outside / "layers" / "of" / "views"
    layers.mkdir(parents=True)
    built = 0

    def around() -> dict[bytes, tuple[object, ...]]:
        return {path: state for path, state in state_of(outside).items() if not path.startswith(b"/layers/of/views")}

    before = around()
    for seed in range(SEEDS):
        view = composed(altered(seed))
        if not view:
            continue
        layer = layers / str(seed)
        layer.mkdir()
        DirectoryLayer(os.fsencode(layer), "trusted").build(view.composition.entries())
        built += 1
        _check_layer(layer)
        shutil.rmtree(layer)
        assert around() == before, seed
    assert built > SEEDS // 4
    record_testsuite_property("cases", SEEDS)


def _check_layer(layer: Path) -> None:
    """Check that a layer has no devices, and that its files lead only to files of the releases."""
    for path, status in support.listing(layer).items():
        full = os.fsencode(layer) + path
        assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode), path
        names = set(os.listxattr(full, follow_symlinks=False))
        assert names <= XATTRS, path
        assert (METACOPY in names) == (REDIRECT in names)
        if REDIRECT in names:
            redirect = os.getxattr(full, REDIRECT, follow_symlinks=False)
            assert redirect.startswith(b"/tool/"), path
            assert not {b"", b".", b".."} & {*redirect[1:].split(b"/")}, path
