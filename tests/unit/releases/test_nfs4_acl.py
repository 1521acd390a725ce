"""NFSv4 ACLs: a mode that gives nobody more, and no change where the ACL is only another form of the mode."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.nfs4_acl import Verdict, judge

ALLOW, DENY, AUDIT = 0, 1, 2
INHERIT_ONLY, IS_GROUP = 0x08, 0x40
R, W, X = 0x01, 0x02 | 0x04, 0x20
#: Reading attributes and the ACL, and the like, which every entry has.
ALWAYS = 0x00120088

Ace = tuple[int, int, int, str]


def xdr(*aces: Ace) -> bytes:
    """Return the value of system.nfs4_acl."""
    value = struct.pack(">I", len(aces))
    for kind, flags, mask, who in aces:
        name = who.encode()
        value += struct.pack(">IIII", kind, flags, mask, len(name)) + name + bytes(-len(name) % 4)
    return value


def bits(permissions: int) -> int:
    return (R if permissions & 4 else 0) | (W if permissions & 2 else 0) | (X if permissions & 1 else 0)


def of_linux_server(mode: int) -> list[Ace]:
    """Return the ACL of a file without one, as knfsd makes it of the mode (fs/nfsd/nfs4acl.c, _posix_to_nfsv4_one)."""
    owner, group, other = mode >> 6, mode >> 3 & 7, mode & 7
    aces = [(DENY, 0, bits(~owner & (group | other)), "OWNER@")] if ~owner & (group | other) else []
    aces.append((ALLOW, 0, bits(owner) | ALWAYS, "OWNER@"))
    aces.append((ALLOW, IS_GROUP, bits(group) | ALWAYS, "GROUP@"))
    if ~group & other:
        aces.append((DENY, IS_GROUP, bits(~group & other), "GROUP@"))
    aces.append((ALLOW, 0, bits(other) | ALWAYS, "EVERYONE@"))
    return aces


def of_other_servers(mode: int) -> list[Ace]:
    """Return a trivial ACL as ZFS and storage systems have them: what each class lacks is denied to it."""
    return [
        ace
        for who, shift in (("OWNER@", 6), ("GROUP@", 3), ("EVERYONE@", 0))
        for ace in (
            (ALLOW, 0, bits(mode >> shift & 7) | ALWAYS, who),
            (DENY, 0, bits(~(mode >> shift) & 7), who),
        )
    ]


@pytest.mark.parametrize("server", [of_linux_server, of_other_servers])
def test_an_acl_that_is_a_mode_changes_nothing(server: object) -> None:
    assert callable(server)
    assert all(judge(xdr(*server(mode))) == Verdict(mode, False) for mode in range(0o1000))


@pytest.mark.parametrize(
    ("aces", "permissions", "named"),
    [
        # What knfsd makes of user:5001:r--, group::---, mask::r--: the mode that it sends is 0644.
        (
            [
                (ALLOW, 0, R | W | ALWAYS, "OWNER@"),
                (DENY, 0, W | X, "5001@studio"),
                (ALLOW, 0, R | ALWAYS, "5001@studio"),
                (ALLOW, IS_GROUP, ALWAYS, "GROUP@"),
                (DENY, IS_GROUP, R, "GROUP@"),
                (ALLOW, 0, R | ALWAYS, "EVERYONE@"),
            ],
            0o604,
            True,
        ),
        ([(DENY, 0, R, "bob@studio"), (ALLOW, 0, R | X, "EVERYONE@")], 0o111, True),
        ([(ALLOW, 0, R | X, "EVERYONE@"), (DENY, 0, R, "bob@studio")], 0o555, True),
        ([(ALLOW, 0, R, "OWNER@"), (DENY, IS_GROUP, R, "artists@studio"), (ALLOW, 0, R, "EVERYONE@")], 0o400, True),
        ([(ALLOW, 0, R, "bob@studio"), (ALLOW, 0, R, "OWNER@")], 0o400, True),
        ([(DENY, INHERIT_ONLY, R, "bob@studio"), (ALLOW, 0, R, "EVERYONE@")], 0o444, False),
        ([(AUDIT, 0, R, "bob@studio"), (ALLOW, 0, R, "EVERYONE@")], 0o444, False),
        ([(ALLOW, 0, R, "AUTHENTICATED@")], 0, True),
        ([(ALLOW, 0, 0x02, "EVERYONE@")], 0, False),
        ([], 0, False),
    ],
)
def test_nobody_is_given_more_than_the_acl_gives(aces: Sequence[Ace], permissions: int, named: bool) -> None:
    assert judge(xdr(*aces)) == Verdict(permissions, named)


WHO = ("OWNER@", "GROUP@", "EVERYONE@", "bob@studio", "artists@studio")
ACES = st.lists(
    st.tuples(st.sampled_from((ALLOW, DENY)), st.just(0), st.integers(0, 7).map(bits), st.sampled_from(WHO)), max_size=6
)


@settings(deadline=None, max_examples=200)
@given(ACES)
def test_whoever_somebody_is_the_server_would_let_him(aces: list[Ace]) -> None:
    mode = judge(xdr(*aces)).permissions
    for is_owner, in_group, *named in itertools.product((True, False), repeat=4):
        whom = {"EVERYONE@", *(["OWNER@"] if is_owner else []), *(["GROUP@"] if in_group else [])}
        whom |= {who for who, is_it in zip(WHO[3:], named) if is_it}
        shift = 6 if is_owner else 3 if in_group else 0
        allowed = decided = 0
        for kind, _flags, mask, who in aces:
            if who in whom:
                allowed |= mask & ~decided if kind == ALLOW else 0
                decided |= mask
        assert bits(mode >> shift & 7) & ~allowed == 0


@pytest.mark.parametrize(
    "value", [b"", b"\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", xdr((0, 0, 1, "OWNER@"))[:-4], xdr((0, 0, 1, "x"))[:-4]]
)
def test_what_is_no_acl_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        judge(value)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_acl_or_refused(value: bytes) -> None:
    try:
        judge(value)
    except ValueError:
        return
