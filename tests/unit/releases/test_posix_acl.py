"""POSIX ACLs are parsed as the kernel does, narrowed to a mode without granting more, and changed by chmod and mappings."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import posix_acl
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import (
    GROUP,
    MASK,
    OTHER,
    OWNER,
    OWNING_GROUP,
    USER,
    Acl,
    AclEntry,
)

NO_ID = (1 << 32) - 1
UIDS, GIDS = (1, 2, 3), (11, 12, 13)


def packed(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


PERMISSIONS = st.integers(0, 7)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    users = [AclEntry(USER, draw(PERMISSIONS), uid) for uid in draw(st.sets(st.sampled_from(UIDS)))]
    groups = [AclEntry(GROUP, draw(PERMISSIONS), gid) for gid in draw(st.sets(st.sampled_from(GIDS)))]
    has_mask = bool(users or groups) or draw(st.booleans())
    mask = [AclEntry(MASK, draw(PERMISSIONS))] if has_mask else []
    classes = [AclEntry(tag, draw(PERMISSIONS)) for tag in (OWNER, OWNING_GROUP, OTHER)]
    return tuple(sorted([*users, *groups, *mask, *classes], key=lambda entry: (entry.tag, entry.number)))


def grants(acl: Acl, owner: tuple[int, int], uid: int, gids: set[int], wanted: int) -> bool:
    """Return whether an ACL grants all ``wanted`` permissions, by the algorithm of acl(5). ``owner`` is the uid and gid of the file."""
    of = {(entry.tag, entry.number): entry.permissions for entry in acl}
    mask = of.get((MASK, NO_ID), 7)
    if uid == owner[0]:
        return of[(OWNER, NO_ID)] & wanted == wanted
    if (USER, uid) in of:
        return of[(USER, uid)] & mask & wanted == wanted
    matching = [of[(OWNING_GROUP, NO_ID)]] if owner[1] in gids else []
    matching += [granted for (tag, gid), granted in of.items() if tag == GROUP and gid in gids]
    if matching:
        return any(granted & mask & wanted == wanted for granted in matching)
    return of[(OTHER, NO_ID)] & wanted == wanted


@settings(deadline=None, max_examples=200)
@given(acls(), st.sampled_from((*UIDS, 9)), st.sampled_from((*GIDS, 19)))
def test_a_narrowed_mode_grants_no_user_more_than_the_acl(acl: Acl, uid: int, gid: int) -> None:
    bits = posix_acl.narrowed(acl, uid, gid)
    of_mode = (AclEntry(OWNER, bits >> 6), AclEntry(OWNING_GROUP, bits >> 3 & 7), AclEntry(OTHER, bits & 7))
    for who in (*UIDS, 9, 10):
        for size in range(4):
            for groups in itertools.combinations((*GIDS, 19), size):
                for wanted in range(1, 8):
                    if grants(of_mode, (uid, gid), who, set(groups), wanted):
                        assert grants(acl, (uid, gid), who, set(groups), wanted)


@given(acls())
def test_parsing_a_serialized_acl_returns_it(acl: Acl) -> None:
    assert posix_acl.parse(posix_acl.serialize(acl)) == acl


@given(acls(), st.integers(0, 0o777))
def test_changing_the_mode_of_an_acl_changes_no_named_entries(acl: Acl, mode: int) -> None:
    changed = posix_acl.with_mode(acl, mode)
    assert posix_acl.permissions(changed) == mode
    named = [entry for entry in acl if entry.tag in (USER, GROUP)]
    assert [entry for entry in changed if entry.tag in (USER, GROUP)] == named
    assert posix_acl.permissions(posix_acl.limited(acl, mode)) == posix_acl.permissions(acl) & mode


def test_entries_are_sorted_and_entries_of_one_user_keep_their_order() -> None:
    value = packed((32, 0, 5), (2, 1, 9), (2, 4, 3), (1, 7, 0), (2, 6, 3), (16, 7, NO_ID), (4, 0, NO_ID))
    found = [(entry.tag, entry.permissions, entry.number) for entry in posix_acl.parse(value)]
    assert found == [(1, 7, NO_ID), (2, 4, 3), (2, 6, 3), (2, 1, 9), (4, 0, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID)]


BASE = ((1, 7, NO_ID), (4, 5, NO_ID), (32, 0, NO_ID))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        packed(*BASE)[:-1],
        packed(*BASE) + b"\0",
        struct.pack("<I", 1) + packed(*BASE)[4:],
        packed(*BASE[1:]),
        packed(*BASE, BASE[0]),
        packed(*BASE, (2, 7, 5)),
        packed(*BASE, (8, 7, 5)),
        packed(*BASE, (16, 7, NO_ID), (16, 7, NO_ID)),
        packed(*BASE, (16, 7, NO_ID), (2, 7, NO_ID)),
        packed(*BASE, (64, 7, NO_ID)),
        packed((1, 8, NO_ID), *BASE[1:]),
    ],
)
def test_an_acl_that_the_kernel_refuses_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        posix_acl.parse(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused_with_a_value_error(value: bytes) -> None:
    try:
        posix_acl.parse(value)
    except ValueError:
        return


@given(acls())
def test_users_mapped_to_one_uid_keep_only_their_common_permissions(acl: Acl) -> None:
    mapped = posix_acl.mapped(acl, {1: 3, 2: 4}, {11: 12})
    before = {(entry.tag, entry.number): entry.permissions for entry in acl}
    after = {(entry.tag, entry.number): entry.permissions for entry in mapped}
    both = [before[key] for key in ((USER, 1), (USER, 3)) if key in before]
    assert after.get((USER, 3)) == (None if not both else both[0] & both[-1])
    assert after.get((USER, 4)) == before.get((USER, 2))
    assert (USER, 1) not in after
    assert posix_acl.parse(posix_acl.serialize(mapped)) == mapped
