"""Several releases are composed into one tree."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Iterator

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Rules, compose, in_order
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import OwnershipRules
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    CHECKSUM_XATTR,
    Entry,
    EntryCounts,
    ManifestRecord,
    Placement,
    relative_path,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import sibling_key


def placement(release: str, at: bytes | None = None, source: bytes | None = None) -> Placement:
    place = release.encode()
    record = ManifestRecord(release, "sha256:" + release, 1, EntryCounts(), 0, False)
    return Placement(
        f"/store/{release}.dump.gz", record, place if at is None else at, place if source is None else source
    )


MTIMES = {"a/1": 100, "a/2": 300, "b/1": 200, "deep/er/1": 50}


def read(one: Placement) -> Iterator[Entry]:
    """Yield a release with a directory, a file that has two names and xattrs, an empty file and a symbolic link."""
    place = one.record.release.encode()
    capability = (CAPABILITY_XATTR, b"cap")
    mtime = MTIMES.get(one.record.release, 1)
    yield Entry(b"/", stat.S_IFDIR | 0o2750, 0, 3, 7, 8, mtime, None, False, ())
    yield Entry(b"/d", stat.S_IFDIR | 0o700, 0, 2, 7, 8, 1, None, False, ())
    checksum = (CHECKSUM_XATTR, b"sum")
    yield Entry(b"/d/f", stat.S_IFREG | 0o4755, 5, 2, 7, 8, 2, place + b"/d/f", False, (capability, checksum))
    yield Entry(b"/d-", stat.S_IFREG | 0o644, 0, 1, 7, 8, 3, None, False, ())
    yield Entry(b"/h", stat.S_IFREG | 0o4755, 5, 2, 7, 8, 2, b"/d/f", True, ())
    yield Entry(b"/l", stat.S_IFLNK | 0o777, 3, 1, 7, 8, 4, b"d/f", False, ())


def view(*placements: Placement, owner: int | None = None, group: int | None = None) -> dict[bytes, Entry]:
    entries = list(compose(placements, read, Rules(OwnershipRules(owner, group))))
    paths = [entry.path for entry in entries]
    assert paths == sorted(paths, key=sibling_key)
    assert len(set(paths)) == len(paths)
    return {entry.path: entry for entry in entries}


def test_entries_are_below_the_place_of_their_release() -> None:
    found = view(placement("a/1"))
    assert list(found) == [b"/", b"/a", b"/a/1", b"/a/1/d", b"/a/1/d/f", b"/a/1/d-", b"/a/1/h", b"/a/1/l"]


def test_content_is_at_the_path_of_the_release_wherever_the_view_shows_it() -> None:
    found = view(placement("a/1", at=b"x/current"))
    assert found[b"/x/current/d/f"].target == b"a/1/d/f"
    assert found[b"/x/current/h"].target == b"/x/current/d/f"
    assert found[b"/x/current/l"].target == b"d/f"
    assert found[b"/x/current/d-"].target is None


@pytest.mark.parametrize(("source", "target"), [(b"old/place", b"old/place/d/f"), (b"", b"d/f")])
def test_source_is_the_path_of_the_content_in_the_data_layer(source: bytes, target: bytes) -> None:
    found = view(placement("a/1", source=source))
    assert found[b"/a/1/d/f"].target == target
    assert found[b"/a/1/h"].target == b"/a/1/d/f"


def test_a_release_can_be_the_root_of_the_view() -> None:
    found = view(placement("a/1", at=b""))
    assert list(found) == [b"/", b"/d", b"/d/f", b"/d-", b"/h", b"/l"]
    assert found[b"/"].mode == stat.S_IFDIR | 0o2750
    assert found[b"/h"].target == b"/d/f"
    assert found[b"/d/f"].target == b"a/1/d/f"


def test_implied_directories_belong_to_root_and_have_the_latest_mtime_below_them() -> None:
    found = view(placement("b/1"), placement("a/2"), placement("deep/er/1"), placement("a/1"))
    implied = {path: found[path] for path in (b"/", b"/a", b"/b", b"/deep", b"/deep/er")}
    assert {entry.mode for entry in implied.values()} == {stat.S_IFDIR | 0o755}
    assert {(entry.uid, entry.gid, entry.size) for entry in implied.values()} == {(0, 0, 0)}
    assert {path: entry.mtime_ns for path, entry in implied.items()} == {
        b"/": 300,
        b"/a": 300,
        b"/b": 200,
        b"/deep": 50,
        b"/deep/er": 50,
    }
    assert {path: entry.nlink for path, entry in implied.items()} == {
        b"/": 5,
        b"/a": 4,
        b"/b": 3,
        b"/deep": 3,
        b"/deep/er": 3,
    }


def test_an_empty_view_is_an_empty_directory() -> None:
    assert list(view().values()) == [Entry(b"/", stat.S_IFDIR | 0o755, 0, 2, 0, 0, 0, None, False, ())]


def test_the_order_of_the_declaration_does_not_change_the_view() -> None:
    placements = [placement("a/1"), placement("a/2"), placement("b/1")]
    views = [list(compose(order, read)) for order in itertools.permutations(placements)]
    assert all(found == views[0] for found in views)


def test_owner_and_group_apply_to_every_entry() -> None:
    assert {(entry.uid, entry.gid) for entry in view(placement("a/1"), owner=5, group=6).values()} == {(5, 6)}
    alone = view(placement("a/1"), owner=5)
    assert {(entry.uid, entry.gid) for path, entry in alone.items() if len(path) > 2} == {(5, 8)}
    assert (alone[b"/a"].uid, alone[b"/a"].gid) == (5, 0)


def test_owner_0_is_not_taken_for_no_owner() -> None:
    assert {entry.uid for entry in view(placement("a/1"), owner=0).values()} == {0}


def test_views_carry_capabilities_and_no_checksums() -> None:
    assert view(placement("a/1"))[b"/a/1/d/f"].xattrs == ((CAPABILITY_XATTR, b"cap"),)


def test_placements_are_sorted_by_place() -> None:
    ordered = in_order([placement("b", at=b"x-y"), placement("a", at=b"x"), placement("c", at=b"xx")])
    assert [one.at for one in ordered] == [b"x", b"x-y", b"xx"]


@pytest.mark.parametrize(
    ("given", "normalised"),
    [
        (b"", b""),
        (b"/", b""),
        (b".", b""),
        (b"a/b", b"a/b"),
        (b"/a//b/", b"a/b"),
        (b"./a/./b", b"a/b"),
        (b"..a/b..", b"..a/b.."),
        (b"...", b"..."),
    ],
)
def test_places_are_normalised(given: bytes, normalised: bytes) -> None:
    assert relative_path(given, "at") == normalised


@pytest.mark.parametrize("given", [b"..", b"a/..", b"../a", b"a/../b", b"a\0b"])
def test_a_place_that_leads_out_of_the_root_is_refused_by_name(given: bytes) -> None:
    with pytest.raises(OverlayError, match=r"^'at' of release a "):
        relative_path(given, "'at' of release a")


def test_a_place_with_a_component_longer_than_255_bytes_is_refused() -> None:
    assert relative_path(b"a/" + b"n" * 255, "at") == b"a/" + b"n" * 255
    with pytest.raises(OverlayError, match=r"^'at' of release a .* has a component of more than 255 bytes$"):
        relative_path(b"a/" + b"n" * 256, "'at' of release a")
