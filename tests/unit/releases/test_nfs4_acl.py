"""The permissions computed from an NFSv4 ACL grant no more than the ACL, and equal the mode if the ACL is equivalent to one."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.nfs4_acl import AclSummary, summarize

ALLOW, DENY, AUDIT = 0, 1, 2
INHERIT_ONLY, IS_GROUP = 0x08, 0x40
R, W, X = 0x01, 0x02 | 0x04, 0x20
#: Rights that every allow entry has, such as reading attributes and the ACL.
ALWAYS = 0x00120088

Ace = tuple[int, int, int, str]


def xdr(*aces: Ace) -> bytes:
    """Return the value of the xattr system.nfs4_acl."""
    value = struct.pack(">I", len(aces))
    for kind, flags, mask, who in aces:
        name = who.encode()
        value += struct.pack(">IIII", kind, flags, mask, len(name)) + name + bytes(-len(name) % 4)
    return value


def bits(permissions: int) -> int:
    """Return the NFSv4 access mask for permission bits."""
    return (R if permissions & 4 else 0) | (W if permissions & 2 else 0) | (X if permissions & 1 else 0)


def of_linux_server(mode: int) -> list[Ace]:
    """Return the ACL that knfsd derives from the mode of a file without an ACL (fs/nfsd/nfs4acl.c, _posix_to_nfsv4_one)."""
    owner, group, other = mode >> 6, mode >> 3 & 7, mode & 7
    aces = [(DENY, 0, bits(~owner & (group | other)), "OWNER@")] if ~owner & (group | other) else []
    aces.append((ALLOW, 0, bits(owner) | ALWAYS, "OWNER@"))
    aces.append((ALLOW, IS_GROUP, bits(group) | ALWAYS, "GROUP@"))
    if ~group & other:
        aces.append((DENY, IS_GROUP, bits(~group & other), "GROUP@"))
    aces.append((ALLOW, 0, bits(other) | ALWAYS, "EVERYONE@"))
    return aces


def of_other_servers(mode: int) -> list[Ace]:
    """Return a trivial ACL as ZFS and storage appliances send: each class is denied the permissions that it lacks."""
    return [
        ace
        for who, shift in (("OWNER@", 6), ("GROUP@", 3), ("EVERYONE@", 0))
        for ace in (
            (ALLOW, 0, bits(mode >> shift & 7) | ALWAYS, who),
            (DENY, 0, bits(~(mode >> shift) & 7), who),
        )
    ]


@pytest.mark.parametrize("server", [of_linux_server, of_other_servers])
def test_an_acl_that_is_equivalent_to_a_mode_gives_that_mode(server: object) -> None:
    assert callable(server)
    assert all(summarize(xdr(*server(mode))) == AclSummary(mode, False) for mode in range(0o1000))


@pytest.mark.parametrize(
    ("aces", "permissions", "named"),
    [
        # The ACL that knfsd derives from user:5001:r--, group::---, mask::r--. It sends mode 0644 with it.
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
def test_only_permissions_that_the_acl_certainly_grants_are_returned(
    aces: Sequence[Ace], permissions: int, named: bool
) -> None:
    assert summarize(xdr(*aces)) == AclSummary(permissions, named)


WHO = ("OWNER@", "GROUP@", "EVERYONE@", "bob@studio", "artists@studio")
ACES = st.lists(
    st.tuples(st.sampled_from((ALLOW, DENY)), st.just(0), st.integers(0, 7).map(bits), st.sampled_from(WHO)), max_size=6
)


@settings(deadline=None, max_examples=200)
@given(ACES)
def test_no_user_gets_a_permission_that_the_server_would_deny(aces: list[Ace]) -> None:
    mode = summarize(xdr(*aces)).permissions
    for is_owner, in_group, *named in itertools.product((True, False), repeat=4):
        principals = {"EVERYONE@", *(["OWNER@"] if is_owner else []), *(["GROUP@"] if in_group else [])}
        principals |= {who for who, is_it in zip(WHO[3:], named) if is_it}
        shift = 6 if is_owner else 3 if in_group else 0
        allowed = decided = 0
        for kind, _flags, mask, who in aces:
            if who in principals:
                allowed |= mask & ~decided if kind == ALLOW else 0
                decided |= mask
        assert bits(mode >> shift & 7) & ~allowed == 0


@pytest.mark.parametrize(
    "value", [b"", b"\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", xdr((0, 0, 1, "OWNER@"))[:-4], xdr((0, 0, 1, "x"))[:-4]]
)
def test_a_malformed_acl_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        summarize(value)


@given(st.binary(max_size=80))
def test_any_bytes_are_summarized_or_refused_with_a_value_error(value: bytes) -> None:
    try:
        summarize(value)
    except ValueError:
        return
