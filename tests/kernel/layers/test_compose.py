"""A merged and filtered view, when mounted, equals copies of its releases made one over the other."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.test_modules import everything, four_runs

OWNERS = {0: 1234, 1: 4321}
MODE = "go-w,a+rX"
LINK = ("tool/current", "2.0")


def copy_over(release: Path, top: Path, without: Sequence[str]) -> None:
    """Copy a release over ``top``, as if it were unpacked there, except for the paths ``without``."""
    top.mkdir(parents=True, exist_ok=True)
    aside = top.parent / f"{top.name}.aside"
    support.command("cp", "-a", release, aside)
    for name in without:
        times = (aside / name).parent.stat()
        support.command("rm", "-rf", aside / name)
        os.utime((aside / name).parent, ns=(times.st_mtime_ns, times.st_mtime_ns))
    for path in [one for one in aside.rglob("*") if not one.is_dir() or one.is_symlink()]:
        there = top / path.relative_to(aside)
        if there.is_dir() and not there.is_symlink():
            support.command("rm", "-rf", there)
    support.command("cp", "-a", "--remove-destination", "-T", aside, top)
    support.command("rm", "-rf", aside)


def change_owners_and_modes(top: Path) -> None:
    """Change owners and modes of a tree by the rules OWNERS and MODE."""
    for path in support.listing(top):
        full = os.fsencode(top) + path
        status = os.lstat(full)
        owner = OWNERS.get(status.st_uid, status.st_uid)
        capability = None if stat.S_ISLNK(status.st_mode) else support.capability_of(full)
        os.chown(full, owner, -1, follow_symlinks=False)
        # chown(2) clears set-ID bits and capabilities even if the owner stays the same.
        if not stat.S_ISLNK(status.st_mode) and owner == status.st_uid:
            os.chmod(full, stat.S_IMODE(status.st_mode))
            if capability is not None:
                os.setxattr(full, "security.capability", capability)
    support.command("chmod", "-R", MODE, top)


def count_subdirectories(top: Path) -> list[str]:
    """Return the directories whose link count does not match their subdirectories, as find(1) expects it to."""
    found = []
    for directory, directories, _files in os.walk(os.fsencode(top)):
        inside = [name for name in directories if not os.path.islink(os.path.join(directory, name))]
        # The kernel reports a link count of 1 for a directory that is merged from several layers.
        if os.lstat(directory).st_nlink not in (1, 2 + len(inside)):
            found.append(f"{directory!r}: {os.lstat(directory).st_nlink} links")
    return found


@pytest.mark.parametrize("on_conflict", ["first", "last"])
def test_a_merged_view_equals_copies_of_the_releases(
    area: Path, root: Path, odd: Placement, tools: Sequence[Placement], on_conflict: str
) -> None:
    everything_odd = replace(
        odd, at=b"tool/1.0", exclude=(b"bulk/lib/**/package_0*", b"special/linked", b"names/**/.w?*")
    )
    binaries = replace(tools[0], at=b"", include=(b"bin",), exclude=(b"bin/no-such",))
    declared = [
        replace(tools[0], at=b"tool/1.0"),
        everything_odd,
        replace(tools[1], at=b"tool/1.0"),
        tools[1],
        binaries,
    ]
    layer, generation, _report = support.build(
        area / "state",
        declared,
        on_conflict=on_conflict,
        links=declared_links([(LINK[0].encode(), LINK[1].encode())]),
        owner_map=tuple(OWNERS.items()),
        mode=MODE,
    )
    assert {conflict["path"] for conflict in generation.conflicts} == {"/tool/1.0/bin/tool", "/tool/1.0/version"} | {
        "/tool/1.0/version-again"
    }
    expected = area / "expected"
    bulk = [f"bulk/lib/python3.13/site-packages/package_{number:03d}" for number in range(100)]
    hidden = [f"names/{kind}/.wh.whiteout" for kind in ("files", "empty", "directories", "links")]
    copies: list[tuple[str, str, list[str]]] = [
        ("tool/1.0", "tool/1.0", []),
        ("odd/1", "tool/1.0", [*bulk, "special/linked", *hidden]),
        ("tool/2.0", "tool/1.0", []),
        ("tool/2.0", "tool/2.0", []),
        ("tool/1.0", "", ["version", "version-again", "latest"]),
    ]
    for release, at, without in reversed(copies) if on_conflict == "first" else copies:
        copy_over(root / release, expected / at, without)
    (expected / LINK[0]).symlink_to(LINK[1])
    newest = max((root / release).stat().st_mtime_ns for release, _at, _without in copies)
    os.utime(expected / LINK[0], ns=(newest, newest), follow_symlinks=False)
    os.utime(expected / "tool", ns=(newest, newest))
    os.chmod(expected / "tool", 0o755)
    # The root has the mtime of the only release placed there, which the copies have changed.
    os.utime(expected, ns=(0, (root / "tool/1.0").stat().st_mtime_ns))
    change_owners_and_modes(expected)
    with support.mounted(support.declared(area / "view", [layer], [root])) as view:
        assert support.compare_trees(view, expected) == []
        assert count_subdirectories(view) == count_subdirectories(layer) == []
        assert os.readlink(view / LINK[0]) == LINK[1]
        assert (view / LINK[0] / "version").read_text() == "two"


def test_conflicts_are_the_same_in_check_mode_and_after_the_build(area: Path, tools: Sequence[Placement]) -> None:
    releases = [{"manifest": one.manifest, "at": "/"} for one in tools]
    arguments: dict[str, Any] = {"name": "v", "state_dir": str(area / "state"), "releases": releases}
    before = everything(area)
    refused = support.module("metadata_layer", **arguments).message
    assert "3 conflicts: '/bin/tool' of tool/1.0 and of tool/2.0; '/version' of" in refused
    assert support.module("metadata_layer", check=True, **arguments).message == refused
    assert everything(area) == before
    checked = support.module("metadata_layer", check=True, on_conflict="last", **arguments).ok
    done = four_runs("metadata_layer", on_conflict="last", **arguments)
    again = support.module("metadata_layer", on_conflict="last", **arguments).ok
    assert checked["conflicts"] == done["conflicts"] == again["conflicts"]
    assert done["conflicts"][0] == {"path": "/bin/tool", "kept": "tool/2.0", "hidden": "tool/1.0"}
    assert (checked["conflict_count"], done["conflict_count"], again["conflict_count"]) == (3, 3, 3)
    # The reverse order with "first" is the same view.
    arguments["releases"] = releases[::-1]
    assert not support.module("metadata_layer", on_conflict="first", **arguments).ok["changed"]
    # Conflicts are still refused by default although a generation of the same releases exists.
    assert "3 conflicts" in support.module("metadata_layer", **arguments).message


def test_releases_with_equal_checksums_are_merged_without_a_conflict(area: Path) -> None:
    for number in ("1", "2"):
        support.make_small_release(area / "root" / "same" / number, "same")
        (area / "root" / "same" / number / "empty").touch()
    placements = [support.scanned(area / "store", area / "root", f"same/{one}", checksum=True) for one in "12"]
    merged = [replace(one, at=b"same") for one in placements]
    layer, generation, _report = support.build(area / "state", merged)
    assert generation.conflict_count == 0
    with support.mounted(support.declared(area / "view", [layer], [area / "root"])) as view:
        assert support.compare_trees(view / "same", area / "root" / "same" / "1") == []


def test_a_thousand_releases_are_merged_at_one_place(area: Path) -> None:
    releases = []
    for number in range(1_100):
        top = area / "root" / "package" / str(number)
        (top / "lib" / f"package{number}").mkdir(parents=True)
        support.write(top / "lib" / f"package{number}" / "module.py", b"x" * number)
        releases.append(support.scanned(area / "store", area / "root", f"package/{number}"))
    arguments: dict[str, Any] = {"name": "v", "state_dir": str(area / "state")}
    built = support.module(
        "metadata_layer", releases=[{"manifest": one.manifest, "at": "/"} for one in releases], **arguments
    )
    assert built.ok["entries"] == {"directories": 1_102, "files": 1_100, "hardlinks": 0, "symlinks": 0}


def test_a_damaged_manifest_is_refused_before_anything_is_built(area: Path, tools: Sequence[Placement]) -> None:
    store = area / "damaged"
    store.mkdir()
    support.command("cp", "-a", Path(tools[0].manifest).parent, store)
    manifest = store / "tool" / Path(tools[0].manifest).name
    size = manifest.stat().st_size
    manifest.write_bytes(manifest.read_bytes()[: size // 2] + b"\0" * (size - size // 2))
    before = everything(area)
    for patterns in ({"exclude": ["bin"]}, {"exclude": ["**"]}, {"include": ["no-such"]}):
        ran = support.module(
            "metadata_layer",
            name="v",
            state_dir=str(area / "state"),
            releases=[{"manifest": str(manifest), **patterns}],
        )
        assert str(manifest) in ran.message
        assert everything(area) == before
    with contextlib.suppress(FileNotFoundError):
        assert not os.listdir(area / "state" / "views")
