"""The upper layers of writable overlays are verified: what fsck.overlay checks, and what makes a finalized one show wrong content."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.writable import METACOPY, REDIRECT, Overlay, overlay_at

IMPURE = "trusted.overlay.impure"


def codes(overlay: Overlay, level: str = "open") -> dict[str, int]:
    ran = support.module("overlay_verify", path=str(overlay.path), level=level, fail_on_problems=False)
    return dict(ran.ok["counts"])


def make_lower(area: Path) -> Path:
    lower = area / "lower"
    for name in ("a", "b", "deep/er"):
        (lower / name).mkdir(parents=True)
        for file in ("one", "two"):
            support.write(lower / name / file, b"content of " + file.encode())
    return lower


@pytest.fixture
def finalized(area: Path) -> Overlay:
    overlay = overlay_at(area / "overlay", make_lower(area))
    overlay.finalized()
    assert codes(overlay) == {}
    return overlay


def link_instead(file: Path) -> None:
    file.unlink()
    file.symlink_to("two")


def redirected(value: bytes) -> Callable[[Overlay], object]:
    return lambda overlay: os.setxattr(overlay.upper / "a/one", REDIRECT, value)


#: What is done to a finalized overlay or its lower layer, the code that is found, and whether the lower layer has to be asked for that.
FINALIZED: dict[str, tuple[Callable[[Overlay], object], str, bool]] = {
    "a late name": (lambda one: (one.lowers[0] / "a/late").touch(), "opaque_over_uncovered", True),
    "a whiteout": (lambda one: os.mknod(one.upper / "a/gone", 0o20000), "whiteout_in_opaque", False),
    "no redirect": (lambda one: os.removexattr(one.upper / "a/one", REDIRECT), "metacopy_without_redirect", False),
    "no metacopy": (lambda one: os.removexattr(one.upper / "a/one", METACOPY), "redirect_without_metacopy", False),
    "bad metacopy": (lambda one: os.setxattr(one.upper / "a/one", METACOPY, b"xyz"), "invalid_metacopy", False),
    "relative": (redirected(b"one"), "relative_redirect", False),
    "escaping": (redirected(b"/a/../a/one"), "escaping_redirect", False),
    "double slash": (redirected(b"//a/one"), "double_slash_redirect", False),
    "gone": (lambda one: (one.lowers[0] / "a/one").unlink(), "missing_target", True),
    "size": (lambda one: (one.lowers[0] / "a/one").write_bytes(b"x"), "wrong_size", True),
    "no file": (redirected(b"/b"), "target_not_file", True),
    "a link": (lambda one: link_instead(one.lowers[0] / "a/one"), "redirect_through_symlink", True),
}


@pytest.mark.parametrize("fault", FINALIZED)
def test_a_fault_of_a_finalized_overlay_is_found(finalized: Overlay, fault: str) -> None:
    make, code, asks = FINALIZED[fault]
    make(finalized)
    assert codes(finalized) == {code: 1}
    assert codes(finalized, "metadata") == ({} if asks else {code: 1})


def test_a_mount_inside_the_lower_layer_is_found(finalized: Overlay) -> None:
    support.command("mount", "--bind", finalized.lowers[0] / "b", finalized.lowers[0] / "a")
    assert codes(finalized) == {"redirect_across_mount": 2}


def test_zeros_are_found_where_xattrs_take_blocks(area: Path, disks: dict[str, Path]) -> None:
    overlay = overlay_at(disks["ext4-256"] / "zeros", make_lower(area))
    try:
        overlay.finalized()
        one, two = overlay.upper / "a/one", overlay.upper / "a/two"
        (overlay.path / "a/two").write_bytes(b"content of a user")
        assert os.lstat(one).st_blocks, "the xattrs of this file fit into its inode"
        assert os.getxattr(two, REDIRECT) == b"/a/two"
        assert codes(overlay, "metadata") == {}
        os.removexattr(one, METACOPY)
        assert codes(overlay, "metadata") == {"redirect_without_metacopy": 1}
    finally:
        overlay.unmount()


def test_what_fsck_checks_is_found(area: Path) -> None:
    overlay = overlay_at(area / "overlay", make_lower(area))
    for name in ("a", "b"):
        os.chown(overlay.path / name / "one", 12, 13)
    (overlay.path / "b/two").unlink()
    (overlay.path / "deep").rename(overlay.path / "moved")
    assert codes(overlay) == {}
    os.removexattr(overlay.upper / "a", IMPURE)
    os.mknod(overlay.upper / "never", 0o20000)
    os.setxattr(overlay.upper / "b", REDIRECT, b"/a")
    (overlay.lowers[0] / "deep").rename(overlay.lowers[0] / "away")
    overlay.upper.parent.chmod(0o777)
    assert codes(overlay) == {
        "missing_impure": 1,
        # Of the name that never was, and of the directory that was renamed.
        "orphan_whiteout": 2,
        "duplicate_redirect": 1,
        "missing_target": 1,
        "writable_by_others": 1,
    }
    assert codes(overlay, "metadata") == {"missing_impure": 1, "writable_by_others": 1}
