"""Patterns select the entries of a release that a view shows."""

from __future__ import annotations

import stat
import time

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import clean_glob, filtered
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import sibling_key

TREE = [
    b"/",
    b"/bin/",
    b"/bin/a",
    b"/bin/b.so",
    b"/bin-x",
    b"/empty/",
    b"/lib/",
    b"/lib/deep/",
    b"/lib/deep/er/",
    b"/lib/deep/er/f.so",
    b"/lib/deep/g.py",
    b"/lib/f.so",
    "/ü".encode(),
    b"/\xff",
]


def entry(path: bytes) -> Entry:
    mode = stat.S_IFDIR | 0o755 if path.endswith(b"/") else stat.S_IFREG | 0o644
    return Entry(path.rstrip(b"/") or b"/", mode, 0, 1, 0, 0, 0, None, False, ())


def chosen(include: list[bytes], exclude: list[bytes]) -> list[bytes]:
    entries = sorted(map(entry, TREE), key=lambda one: sibling_key(one.path))
    return [one.path for one in filtered(iter(entries), include, exclude)]


ALL = [one.path for one in map(entry, TREE)]


@pytest.mark.parametrize(
    ("include", "shown"),
    [
        ([b"bin"], [b"/", b"/bin", b"/bin/a", b"/bin/b.so"]),
        ([b"bin/*"], [b"/", b"/bin", b"/bin/a", b"/bin/b.so"]),
        ([b"bin/**"], [b"/", b"/bin", b"/bin/a", b"/bin/b.so"]),
        ([b"bin/a"], [b"/", b"/bin", b"/bin/a"]),
        ([b"*.so"], []),
        (
            [b"**/*.so"],
            [b"/", b"/bin", b"/bin/b.so", b"/lib", b"/lib/deep", b"/lib/deep/er", b"/lib/deep/er/f.so", b"/lib/f.so"],
        ),
        ([b"lib/**/f.so"], [b"/", b"/lib", b"/lib/deep", b"/lib/deep/er", b"/lib/deep/er/f.so", b"/lib/f.so"]),
        ([b"**/**/er"], [b"/", b"/lib", b"/lib/deep", b"/lib/deep/er", b"/lib/deep/er/f.so"]),
        ([b"lib/*/g.py"], [b"/", b"/lib", b"/lib/deep", b"/lib/deep/g.py"]),
        ([b"lib/*/f.so"], []),
        ([b"empty"], [b"/", b"/empty"]),
        ([b"empty/*"], []),
        ([b"bin?x", b"empty"], [b"/", b"/bin-x", b"/empty"]),
        ([b"[!be]*"], [b"/", *ALL[6:]]),
        ([b"?"], [b"/", "/ü".encode(), b"/\xff"]),
        (["[üx]".encode()], [b"/", "/ü".encode()]),
        ([b"\xff"], [b"/", b"/\xff"]),
        ([b"b[i]n/[ab"], []),
        ([b"**"], ALL),
        ([b"*"], ALL),
        ([], ALL),
        ([b"no/such"], []),
    ],
)
def test_included_entries_are_shown_with_the_directories_above_them(include: list[bytes], shown: list[bytes]) -> None:
    assert chosen(include, []) == shown


@pytest.mark.parametrize(
    ("exclude", "gone"),
    [
        ([b"bin"], [b"/bin", b"/bin/a", b"/bin/b.so"]),
        ([b"bin/**"], [b"/bin", b"/bin/a", b"/bin/b.so"]),
        ([b"bin/*"], [b"/bin/a", b"/bin/b.so"]),
        ([b"**/*.so"], [b"/bin/b.so", b"/lib/deep/er/f.so", b"/lib/f.so"]),
        ([b"**/deep", b"bin-?"], [b"/bin-x", b"/lib/deep", b"/lib/deep/er", b"/lib/deep/er/f.so", b"/lib/deep/g.py"]),
        ([b"*"], ALL[1:]),
        ([b"**"], ALL),
        ([b"no/such"], []),
    ],
)
def test_excluded_entries_are_not_shown_nor_anything_below_them(exclude: list[bytes], gone: list[bytes]) -> None:
    assert chosen([], exclude) == [path for path in ALL if path not in gone]


def test_exclude_takes_precedence_over_include() -> None:
    assert chosen([b"lib", b"bin/a"], [b"**/deep", b"bin"]) == [b"/", b"/lib", b"/lib/f.so"]
    assert chosen([b"bin/a"], [b"bin/a"]) == []


def test_the_manifest_is_read_to_its_end_even_if_nothing_is_shown() -> None:
    # The digest of a manifest is checked only at its end.
    for include, exclude in (([b"x"], []), ([], [b"**"]), ([], [b"bin"])):
        entries = iter([entry(b"/"), entry(b"/bin/"), entry(b"/bin/a")])
        list(filtered(entries, include, exclude))
        assert next(entries, None) is None


def test_a_pattern_with_many_wildcards_is_matched_in_seconds() -> None:
    long = [entry(b"/"), entry(b"/" + b"a" * 255), entry(b"/" + b"b" * 255 + b"/")]
    deep = [entry(b"/" + b"/".join([b"b" * 255, *[b"a"] * depth]) + b"/") for depth in range(1, 200)]
    started = time.monotonic()
    for pattern in (b"*a" * 60 + b"b", b"/".join([b"**", b"*a*"] * 15) + b"/c"):
        assert list(filtered(iter([*long, *deep]), [pattern], [])) == []
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("given", "normalised"),
    [(b"a", b"a"), (b"/a/*", b"a/*"), (b"a//b/", b"a/b"), (b"./a/./**", b"a/**"), (b"..a", b"..a"), (b"\xff", b"\xff")],
)
def test_patterns_are_normalised_as_paths_relative_to_the_release(given: bytes, normalised: bytes) -> None:
    assert clean_glob(given, "'include' of release a") == normalised


@pytest.mark.parametrize("given", [b"", b"/", b".", b"..", b"a/../b", b"a\0"])
def test_a_pattern_that_is_empty_or_leads_out_of_the_release_is_refused_by_name(given: bytes) -> None:
    with pytest.raises(OverlayError, match=r"^'include' of release a '.*' (is empty|may not contain)"):
        clean_glob(given, "'include' of release a")
