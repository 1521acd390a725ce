"""A view never grants more rights than its releases, and grants the same if the layer can carry the ACLs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.layers.test_erofs import builder, disk
from ansible_collections.renderfarm.overlay.tests.kernel.nfs4_files import Node, mounted
from ansible_collections.renderfarm.overlay.tests.kernel.support import (
    GROUP,
    MASK,
    OTHER,
    OWNER,
    OWNING_GROUP,
    USER,
    acl,
)
from ansible_collections.renderfarm.overlay.tests.unit.releases.test_nfs4_acl import (
    ALLOW,
    DENY,
    Ace,
    R,
    X,
    of_linux_server,
    xdr,
)

__all__ = ["disk"]

#: The program that builds an image; None for a directory layer.
FORMATS = (None, "mkcomposefs", "mkfs.erofs")

ALICE, BOB, CAROL, DAVE = 5001, 5002, 5003, 5004
STAFF, ARTISTS, GUESTS = 6001, 6002, 6003

#: Users, each with a set of groups.
PEOPLE = [
    (ALICE, [STAFF]),
    (ALICE, [GUESTS]),
    (BOB, [STAFF]),
    (BOB, [ARTISTS]),
    (BOB, [GUESTS]),
    (CAROL, [STAFF]),
    (CAROL, [ARTISTS]),
    (CAROL, [STAFF, ARTISTS]),
    (CAROL, [ARTISTS, GUESTS]),
    (CAROL, [GUESTS]),
    (DAVE, [DAVE]),
    (DAVE, [STAFF]),
]

Entries = Sequence["tuple[int, int] | tuple[int, int, int]"]

#: Access ACLs of files and directories that belong to ALICE and STAFF.
ACLS: dict[str, Entries] = {
    "a user is denied": [(OWNER, 7), (USER, 0, BOB), (OWNING_GROUP, 5), (MASK, 5), (OTHER, 5)],
    "the owning group is denied": [(OWNER, 7), (USER, 5, BOB), (OWNING_GROUP, 0), (MASK, 5), (OTHER, 0)],
    "a group is denied": [(OWNER, 7), (OWNING_GROUP, 5), (GROUP, 0, ARTISTS), (MASK, 7), (OTHER, 5)],
    "a group alone is admitted": [(OWNER, 6), (OWNING_GROUP, 0), (GROUP, 5, ARTISTS), (MASK, 5), (OTHER, 0)],
    "the mask takes from all": [
        (OWNER, 7),
        (USER, 7, BOB),
        (OWNING_GROUP, 7),
        (GROUP, 7, ARTISTS),
        (MASK, 0),
        (OTHER, 4),
    ],
    "the mask takes reading": [(OWNER, 7), (USER, 7, BOB), (OWNING_GROUP, 7), (MASK, 1), (OTHER, 5)],
    "others have more": [(OWNER, 0), (USER, 4, BOB), (OWNING_GROUP, 1), (GROUP, 4, ARTISTS), (MASK, 7), (OTHER, 7)],
    "the owner is named": [(OWNER, 4), (USER, 0, ALICE), (OWNING_GROUP, 5), (GROUP, 0, STAFF), (MASK, 5), (OTHER, 1)],
    "two groups": [(OWNER, 7), (OWNING_GROUP, 1), (GROUP, 4, ARTISTS), (GROUP, 1, GUESTS), (MASK, 7), (OTHER, 0)],
    "only a mask": [(OWNER, 7), (OWNING_GROUP, 7), (MASK, 4), (OTHER, 0)],
}


@pytest.fixture
def release(area: Path) -> Placement:
    """Return a scanned release with a file and a directory for each of the ACLs."""
    make(area)
    return support.scanned(area / "store", area / "root", "pkg/1")


def make(area: Path, more: Entries = ()) -> None:
    """Make the release. ``more`` are entries to add to each ACL."""
    top = area / "root" / "pkg" / "1"
    top.mkdir(parents=True)
    for number, rules in enumerate(ACLS.values()):
        file, inside = top / f"file{number}", top / f"directory{number}"
        support.write(file, b"content", 0o700)
        inside.mkdir()
        support.write(inside / "file", b"content", 0o755)
        for path in (file, inside):
            os.chown(path, ALICE, STAFF)
            os.setxattr(path, "system.posix_acl_access", acl(*sorted([*rules, *more], key=lambda entry: entry[0])))


Access = dict[tuple[int, str, str], bool]


def access(top: Path) -> Access:
    """Return whether each user, given by the index in PEOPLE, may read, run, list and enter each file and directory."""

    def tried(uid: int, groups: list[int]) -> dict[tuple[str, str], bool]:
        os.setgroups(groups[1:])
        os.setresgid(groups[0], groups[0], groups[0])
        os.setresuid(uid, uid, uid)
        found = {}
        for number in range(len(ACLS)):
            file, inside = f"{top}/file{number}", f"{top}/directory{number}"
            found[(f"file{number}", "read")] = _succeeds(lambda path=file: os.close(os.open(path, os.O_RDONLY)))
            found[(f"file{number}", "run")] = os.access(file, os.X_OK)
            found[(f"directory{number}", "list")] = _succeeds(lambda path=inside: os.listdir(path))
            found[(f"directory{number}", "enter")] = _succeeds(
                lambda path=f"{inside}/file": os.close(os.open(path, os.O_RDONLY))
            )
        return found

    found: Access = {}
    for number, (uid, groups) in enumerate(PEOPLE):
        one = deadline.run(lambda _progress, uid=uid, groups=groups: tried(uid, groups), 60)  # type: ignore[misc]
        found.update({(number, name, what): may for (name, what), may in one.items()})
    return found


def _succeeds(call: object) -> bool:
    assert callable(call)
    try:
        call()
    except PermissionError:
        return False
    return True


def build(place: Path, placements: list[Placement], name: str | None, **more: Any) -> tuple[Path, Generation]:
    made: Builder | None = builder(name) if name else None
    layer, generation, _report = support.build(place, placements, builder=made, **more)
    return layer, generation


@pytest.mark.parametrize("name", FORMATS)
def test_every_user_has_the_same_rights_in_a_view_as_in_the_release(
    area: Path, disk: Path, release: Placement, name: str | None
) -> None:
    layer, generation = build(disk, [release], name)
    assert generation.rights.narrowed.count == 0
    root = area / "root"
    with support.mounted(support.declared(area / "view", [layer], [root])) as view:
        assert support.compare_trees(view / "pkg/1", root / "pkg/1") == []
        expected = access(root / "pkg/1")
        assert access(view / "pkg/1") == expected
    # The cases must include both granted and denied access.
    assert 0.2 < sum(expected.values()) / len(expected) < 0.8


#: ACL entries for groups without members, more than fit into a block of 1 KiB.
PADDING = [(GROUP, 7, 700_000 + number) for number in range(200)]


@contextmanager
def small_blocks(area: Path) -> Iterator[Path]:
    """Mount a file system that cannot hold long ACLs, and give its path."""
    image = area / "small.image"
    with image.open("wb") as stream:
        stream.truncate(64 << 20)
    support.command("mkfs.ext4", "-q", "-I", "512", "-b", "1024", image)
    place = area / "small"
    place.mkdir()
    support.command("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        support.command("umount", "--lazy", place)


@pytest.fixture
def padded(area: Path) -> Placement:
    """Return the release of ``release`` with ACLs that a file system with small blocks cannot hold."""
    make(area, PADDING)
    return support.scanned(area / "store", area / "root", "pkg/1")


def test_no_user_gains_rights_if_the_layer_cannot_hold_the_acls(area: Path, padded: Placement) -> None:
    root = area / "root"
    with small_blocks(area) as place:
        layer, generation = build(place / "state", [padded], None)
        assert generation.rights.narrowed.count == 2 * len(ACLS)
        assert generation.rights.narrowed.first[:2] == ["/pkg/1/directory0", "/pkg/1/directory1"]
        with support.mounted(support.declared(area / "view", [layer], [root])) as view:
            real, in_view = access(root / "pkg/1"), access(view / "pkg/1")
    assert [key for key, may in in_view.items() if may and not real[key]] == []
    # Most rights are kept.
    assert sum(real.values()) - sum(in_view.values()) < sum(real.values()) / 2


def test_a_narrowed_layer_is_reported_by_the_module(area: Path, padded: Placement) -> None:
    with small_blocks(area) as place:

        def layer() -> dict[str, Any]:
            releases = [{"manifest": padded.manifest}]
            return support.module(
                "metadata_layer", name="v", state_dir=str(place / "state"), releases=releases, format="directory"
            ).ok

        built, again = layer(), layer()
    assert built["narrowed"] == again["narrowed"] == 2 * len(ACLS)
    assert len(again["narrowed_paths"]) == 10
    assert "nobody may do more with them" in str(built["warnings"])
    assert "warnings" not in again


def test_a_layer_does_not_inherit_acls_of_the_state_directory(area: Path, release: Placement) -> None:
    state = area / "state"
    state.mkdir(mode=0o700)
    os.setxattr(state, "system.posix_acl_default", acl(*ACLS["a user is denied"]))
    layer, _generation = build(state, [release], None)
    with support.mounted(support.declared(area / "view", [layer], [area / "root"])) as view:
        assert support.compare_trees(view / "pkg/1", area / "root/pkg/1") == []


def test_an_acl_that_is_too_long_narrows_the_mode(area: Path) -> None:
    top = area / "root" / "pkg" / "1"
    top.mkdir(parents=True)
    support.write(top / "file", b"x", 0o755)
    many: Entries = [(USER, 5, 10_000 + number) for number in range(600)]
    os.setxattr(
        top / "file",
        "system.posix_acl_access",
        acl((OWNER, 7), *many, (USER, 0, 20_000), (OWNING_GROUP, 5), (MASK, 5), (OTHER, 5)),
    )
    (area / "store").mkdir(exist_ok=True)
    ran = support.module("release_manifest", root=str(area / "root"), release="pkg/1", store=str(area / "store")).ok
    assert (ran["narrowed"], ran["narrowed_count"]) == (["/file"], 1)
    assert ran["unreadable"] == ["/file"]
    assert "a layer cannot hold the ACLs of 1 files and directories" in str(ran["warnings"])
    placement = support.scanned(area / "store", area / "root", "pkg/1")
    layer, _generation = build(area / "state", [placement], None)
    assert stat.S_IMODE((layer / "pkg/1/file").stat().st_mode) == 0o700


# ---- NFSv4 ACLs


def nfs4(mode: int, aces: Sequence[Ace], *children: tuple[str, Node]) -> Node:
    return Node(mode, xdr(*aces), ALICE, STAFF, dict(children))


def test_no_user_gains_rights_from_an_nfsv4_acl(area: Path) -> None:
    denied = [(DENY, 0, R, "bob@studio"), *of_linux_server(0o644)]
    named = [*of_linux_server(0o640)[:-1], (ALLOW, 0, R, "bob@studio"), *of_linux_server(0o640)[-1:]]
    closed = [(DENY, 0, X, "artists@studio"), *of_linux_server(0o755)]
    file, directory = stat.S_IFREG, stat.S_IFDIR
    release = nfs4(
        directory | 0o755,
        of_linux_server(0o755),
        ("plain", nfs4(file | 0o755, of_linux_server(0o755))),
        ("denied", nfs4(file | 0o644, denied)),
        ("named", nfs4(file | 0o640, named)),
        ("closed", nfs4(directory | 0o755, closed, ("inside", nfs4(file | 0o644, of_linux_server(0o644))))),
        ("damaged", Node(file | 0o4755, b"damaged")),
        ("hidden", Node(file | 0o755, None)),
    )
    package = nfs4(directory | 0o755, of_linux_server(0o755), ("1", release))
    software = area / "root"
    software.mkdir()
    (area / "store").mkdir(exist_ok=True)
    with mounted(software, nfs4(directory | 0o755, of_linux_server(0o755), ("pkg", package))):
        ran = support.module("release_manifest", root=str(software), release="pkg/1", store=str(area / "store")).ok
        assert ran["narrowed"] == ["/closed", "/damaged", "/denied", "/hidden", "/named"]
        assert ran["unreadable"] == ["/closed/", "/damaged", "/denied", "/hidden", "/named"]
        placement = support.scanned(area / "store", software, "pkg/1")
    modes = {entry.path.decode(): stat.S_IMODE(entry.mode) for entry in manifest_store.entries(placement)}
    assert modes == {
        "/": 0o755,
        "/closed": 0o644,
        "/closed/inside": 0o644,
        "/damaged": 0o4000,
        "/denied": 0o200,
        "/hidden": 0,
        "/named": 0o640,
        "/plain": 0o755,
    }


@pytest.mark.parametrize("name", FORMATS)
def test_the_root_of_a_view_has_the_acls_of_a_release_placed_there(area: Path, disk: Path, name: str | None) -> None:
    make(area)
    top = area / "root" / "pkg" / "1"
    os.setxattr(
        top, "system.posix_acl_access", acl((OWNER, 7), (USER, 0, BOB), (OWNING_GROUP, 5), (MASK, 5), (OTHER, 5))
    )
    os.setxattr(top, "system.posix_acl_default", acl((OWNER, 7), (OWNING_GROUP, 0), (OTHER, 0)))
    placement = replace(support.scanned(area / "store", area / "root", "pkg/1"), at=b"")
    layer, _generation = build(disk, [placement], name)
    with support.mounted(support.declared(area / "view", [layer], [area / "root"])) as view:
        assert support.compare_trees(view, top) == []


# ---- mapping owners, and modes


@pytest.mark.parametrize("name", FORMATS)
def test_mode_rules_change_acls_as_chmod_does(area: Path, disk: Path, release: Placement, name: str | None) -> None:
    layer, _generation = build(disk, [release], name, mode="g-w,o=g,u+x")
    root, copy = area / "root", area / "copy" / "pkg"
    copy.mkdir(parents=True)
    support.command("cp", "-a", root / "pkg" / "1", copy / "1")
    support.command("chmod", "-R", "g-w,o=g,u+x", copy / "1")
    with support.mounted(support.declared(area / "view", [layer], [root])) as view:
        assert support.compare_trees(view / "pkg/1", copy / "1") == []


@pytest.mark.parametrize("name", FORMATS)
def test_named_users_and_groups_of_acls_are_mapped_and_gain_no_rights(area: Path, disk: Path, name: str | None) -> None:
    top = area / "root" / "pkg" / "1"
    top.mkdir(parents=True)
    support.write(top / "file", b"x", 0o755)
    rules: Entries = [
        (OWNER, 7),
        (USER, 6, BOB),
        (USER, 5, CAROL),
        (OWNING_GROUP, 5),
        (GROUP, 4, ARTISTS),
        (MASK, 7),
        (OTHER, 0),
    ]
    os.setxattr(top / "file", "system.posix_acl_access", acl(*rules))
    placement = support.scanned(area / "store", area / "root", "pkg/1")
    # Two users are mapped to one. 'owner' does not apply to named users.
    layer, _generation = build(disk, [placement], name, owner=7, owner_map=((BOB, CAROL),), group_map=((ARTISTS, 8),))
    expected: Entries = [(OWNER, 7), (USER, 4, CAROL), (OWNING_GROUP, 5), (GROUP, 4, 8), (MASK, 7), (OTHER, 0)]
    with support.mounted(support.declared(area / "view", [layer], [area / "root"])) as view:
        file = view / "pkg/1/file"
        assert support.attribute(os.fsencode(file), "system.posix_acl_access") == acl(*expected)
        assert file.stat().st_uid == 7


@pytest.fixture
def programs(area: Path) -> Placement:
    """Return a scanned release of programs with set-ID bits and capabilities."""
    top = area / "root" / "pkg" / "1"
    top.mkdir(parents=True)
    for name, mode in (("plain", 0o755), ("setuid", 0o4755), ("setgid", 0o2755), ("both", 0o6711), ("locking", 0o2644)):
        support.write(top / name, name.encode(), mode)
        os.chown(top / name, ALICE, STAFF)
        os.chmod(top / name, mode)
    support.write(top / "capable", b"x", 0o755)
    os.chown(top / "capable", ALICE, STAFF)
    os.setxattr(top / "capable", "security.capability", support.CAPABILITY)
    os.link(top / "setuid", top / "setuid-too")
    (top / "directory").mkdir()
    os.chown(top / "directory", ALICE, STAFF)
    (top / "directory").chmod(0o2775)
    return support.scanned(area / "store", area / "root", "pkg/1")


PRIVILEGED = {"both", "capable", "locking", "setgid", "setuid"}


def privileged_files(top: Path) -> set[str]:
    """Return the names of the files in a directory that have set-ID bits or capabilities."""
    return {
        path.name
        for path in top.iterdir()
        if path.is_file()
        and (path.stat().st_mode & 0o6000 or support.capability_of(os.fsencode(path)))
        and path.name != "setuid-too"
    }


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, PRIVILEGED),
        ({"owner": 0}, set()),
        ({"group": 0}, set()),
        ({"owner_map": ((ALICE, 0),)}, set()),
        ({"group_map": ((STAFF, 0),)}, set()),
        ({"owner": 0, "mode": "a+x"}, set()),
        ({"owner": 0, "mode": "u+s"}, {"plain", "both", "capable", "locking", "setgid", "setuid"}),
        ({"owner": 0, "keep_setid": True}, PRIVILEGED),
        ({"owner": ALICE}, PRIVILEGED),
        ({"owner_map": ((BOB, 0),)}, PRIVILEGED),
        ({"mode": "go-w"}, PRIVILEGED),
    ],
    ids=str,
)
def test_a_program_whose_owner_changes_loses_set_id_bits_and_capabilities(
    area: Path, disk: Path, programs: Placement, name: str | None, options: dict[str, object], kept: set[str]
) -> None:
    merged = replace(programs, exclude=(b"nothing",))
    for number, placement in enumerate((programs, merged)):
        layer, generation = build(disk / str(number), [placement], name, **options)
        with support.mounted(support.declared(area / "view", [layer], [area / "root"])) as view:
            assert privileged_files(view / "pkg/1") == kept
            assert (view / "pkg/1/setuid-too").stat().st_ino == (view / "pkg/1/setuid").stat().st_ino
            assert stat.S_IMODE((view / "pkg/1/directory").stat().st_mode) & 0o2000
        assert generation.rights.privileged.count == len(kept)
        gone = PRIVILEGED if not kept or options.get("mode") == "u+s" else set()
        assert set(generation.rights.stripped.first) == {f"/pkg/1/{one}" for one in gone}
        assert generation.rights.stripped.count == len(gone)


def test_files_that_lose_privileges_are_returned_with_a_warning(area: Path, programs: Placement) -> None:
    releases = [{"manifest": programs.manifest}]
    arguments: dict[str, Any] = {"name": "v", "state_dir": str(area / "state"), "releases": releases}
    plain = support.module("metadata_layer", **arguments).ok
    assert (plain["privileged"], plain["stripped"]) == (5, 0)
    assert plain["privileged_paths"] == [f"/pkg/1/{name}" for name in sorted(PRIVILEGED)]
    mapped = support.module("metadata_layer", owner="root", **arguments).ok
    assert (mapped["privileged"], mapped["stripped"]) == (0, 5)
    assert "5 files lose their set-ID bits or capabilities" in str(mapped["warnings"])
    kept = support.module("metadata_layer", owner="root", keep_setid=True, **arguments).ok
    assert (kept["privileged"], kept["stripped"]) == (5, 0)
    # Without a change of owners keep_setid has no effect, so the generation is the same.
    assert support.module("metadata_layer", keep_setid=True, **arguments).ok["generation"] == plain["generation"]
    assert len({plain["generation"], mapped["generation"], kept["generation"]}) == 3


def test_images_have_acls_on_this_kernel() -> None:
    assert erofs_layer.mount_obstacle() is None
