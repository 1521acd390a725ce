"""Hostile input: every reader of outside data returns a value or raises OverlayError.

`make unit ARGS='tests/unit/test_hostile.py --inputs 20000'` tries more inputs.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import boot_plan, mount_units, view_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import globs, links, ownership
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines, mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import options
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import (
    patterns,
    versions,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    Entry,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_options, root_plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_record
from ansible_collections.renderfarm.overlay.tests.unit.hostile_readers import (
    MOUNTINFO,
    OF_BYTES,
    OF_JSON,
    READERS,
    check_generation,
    values_of,
)
from ansible_collections.renderfarm.overlay.tests.unit.tried import outcome

hostile = settings(
    settings.get_profile("hostile"), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

NUMBERS = st.one_of(
    st.integers(), st.sampled_from([-1, 0, 1, 1 << 32, 1 << 63, 1 << 64, 10**30]), st.floats(), st.booleans()
)
TEXTS = st.one_of(
    st.text(st.characters(), max_size=12),
    st.sampled_from(
        ["", ".", "..", "/", "../../x", "a/../b", "a//b", "\0", "\ud800", "\udcff", "x" * 5000, "sha256:", "trusted"]
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
BYTES = st.binary(max_size=200)
PATHS = st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"\xff", b" ", b"**", b"x" * 300]), max_size=6).map(
    b"/".join
)


def places(value: Any) -> list[list[Any]]:
    """Return the path of keys to each value inside a JSON value."""
    if isinstance(value, dict):
        inner: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        inner = []
    return [[]] + [[key, *rest] for key, part in inner for rest in places(part)]


@st.composite
def altered(draw: st.DrawFn, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Draw a record in which up to two values are replaced, removed or added."""
    record: Any = copy.deepcopy(draw(st.sampled_from(records)))
    for _time in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from([place for place in places(record) if place]))
        holder = record
        for key in path[:-1]:
            holder = holder[key]
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "replace":
            holder[path[-1]] = draw(JSON)
        elif what == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(JSON)
        else:
            holder.append(draw(JSON))
        if not record:
            break
    return dict(record)


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """Draw a text of which a part is replaced, removed or repeated."""
    start = draw(st.integers(0, len(text)))
    end = min(len(text), start + draw(st.integers(0, 30)))
    middle = draw(st.one_of(BYTES, st.just(text[start:end] * draw(st.sampled_from([0, 2, 100])))))
    return text[:start] + middle + text[end:]


def as_text(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()


def texts_of(records: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    return st.one_of(
        BYTES,
        JSON.map(json.dumps).map(str.encode),
        altered(records).map(as_text),
        st.sampled_from(records).map(as_text).flatmap(damaged),
    )


# ---- readers of bytes


BUILT = {
    *("generation", "digest", "format", "strategy", "xattr_namespace", "entries", "bytes", "bytes_on_disk", "image"),
    *("conflicts", "conflict_count", "rights"),
}


def renamed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the digest and name that follow from its content, as a skilled attacker would write it."""
    digest = generation_record.composition_digest({name: value for name, value in record.items() if name not in BUILT})
    return {**record, "digest": digest, "generation": generation_record.generation_id(digest)}


@pytest.mark.parametrize("reader", OF_JSON)
def test_records(reader: str) -> None:
    @hostile
    @given(texts_of(values_of(reader)))
    def check(text: bytes) -> None:
        READERS[reader].check(text)

    check()


@hostile
@given(altered(values_of("generation")).map(renamed).map(as_text))
def test_records_of_generations_with_their_right_names(text: bytes) -> None:
    check_generation(text)


@pytest.mark.parametrize("reader", OF_BYTES)
def test_texts(reader: str) -> None:
    samples = st.sampled_from(READERS[reader].samples)

    @hostile
    @given(st.one_of(BYTES, samples.flatmap(damaged), samples.flatmap(damaged).flatmap(damaged)))
    def check(text: bytes) -> None:
        READERS[reader].check(text)

    check()


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_accepts_its_samples(reader: str) -> None:
    for sample in READERS[reader].samples:
        READERS[reader].check(sample)


# ---- patterns, versions, links, modes

GLOB_PARTS = st.sampled_from(
    [b"**", b"*", b"a", b"[a-b]", b"[b-a]", b"[", b"[!", b"[]", b"?", b"a*b*c", b"[\xff-a]", b"[[:x:]]", b"\\"]
)
GLOBS = st.one_of(BYTES, st.lists(st.one_of(GLOB_PARTS, BYTES), max_size=12).map(b"/".join), PATHS)
TREE = [
    Entry(path, 0o40755, 0, 2, 0, 0, 1, None, False, ())
    for path in (b"/", b"/a", b"/a/a", b"/a/a/b", b"/a/xbyc", b"/b", b"/b/[", b"/b/\xff", b"/b/\xff/a")
]


@hostile
@given(st.lists(GLOBS, max_size=5), st.lists(GLOBS, max_size=5))
def test_patterns_of_paths(include: list[bytes], exclude: list[bytes]) -> None:
    cleaned = outcome(
        "patterns", lambda: (globs.clean_globs(include, "'include'"), globs.clean_globs(exclude, "'exclude'"))
    )
    if cleaned:
        found = list(globs.filtered(iter(TREE), *cleaned))
        assert [entry for entry in TREE if entry in found] == found


VERSIONS = st.one_of(
    st.text(max_size=20),
    st.text("0123456789.v-rca", max_size=30),
    st.sampled_from(["9" * 10_000, "0" * 10_000, "1." * 5000, "٣.1", "²", "v" * 1000]),
)


@hostile
@given(VERSIONS, st.one_of(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.text(max_size=3)), VERSIONS)
def test_comparing_versions(left: str, relation: str, right: str) -> None:
    outcome("versions", lambda: versions.compare(left, relation, right))
    assert (
        versions.compare(left, "<", right) + versions.compare(left, "==", right) + versions.compare(left, ">", right)
        == 1
    )


PATTERN_PARTS = ["{package}", "{version}", "*", "/", "a", ".", "-", "{x}", "**"]


@hostile
@given(
    st.one_of(
        st.text(max_size=30),
        st.lists(st.sampled_from(PATTERN_PARTS), max_size=12).map("".join),
        st.permutations(PATTERN_PARTS[:7]).map("".join),
    ),
    st.lists(st.one_of(st.text(max_size=30), st.text("a.-", max_size=250)), min_size=1, max_size=3),
)
def test_patterns_of_releases(pattern: str, levels: list[str]) -> None:
    found = outcome("release patterns", lambda: patterns.Pattern.parse(pattern))
    if found:
        found.release(levels)


@hostile
@given(st.lists(st.tuples(st.one_of(PATHS, BYTES), st.one_of(PATHS, BYTES)), max_size=4))
def test_links_of_a_view(declared: list[tuple[bytes, bytes]]) -> None:
    outcome("links", lambda: links.declared_links(declared))


@hostile
@given(
    st.one_of(
        st.text(max_size=20),
        st.text("ugoa+-=rwxXst,", max_size=20),
        st.lists(st.sampled_from(["u=rwx", "go-w", "a+X", "g=u", "+t", "u+s-s", "o=", "a-rwxst"]), max_size=9).map(
            ",".join
        ),
    ),
    st.integers(0, 0o177777),
)
def test_symbolic_modes(text: str, mode: int) -> None:
    found = outcome("modes", lambda: ownership.parse_mode(text))
    if found:
        ownership.changed_mode(mode, found)


# ---- mounts

WORDS = st.sampled_from([True, False, "on", "off", "auto", "follow", "true"])
VALUES = st.one_of(st.none(), st.integers(), TEXTS, WORDS)
ABSOLUTE = st.one_of(BYTES, PATHS).map(lambda path: b"/" + path.replace(b"\0", b"") + b".erofs")
NAMES = st.one_of(TEXTS, st.sampled_from([*options.SETTINGS, *options.MOUNT_FLAGS]))


@hostile
@given(
    st.one_of(
        st.dictionaries(st.sampled_from([*options.SETTINGS, *options.MOUNT_FLAGS]), WORDS, max_size=3),
        st.dictionaries(NAMES, VALUES, max_size=3),
    ),
    st.lists(ABSOLUTE, max_size=3),
    st.lists(ABSOLUTE, max_size=3),
    st.booleans(),
    st.sampled_from([None, options.Writable(b"/u", b"/w"), options.scratch_space(1)]),
    st.sampled_from(["data_only", "redirect"]),
)
def test_options_of_an_overlay(
    given_options: dict[str, Any],
    lower: list[bytes],
    data: list[bytes],
    read_only: bool,
    writable: options.Writable | None,
    strategy: str,
) -> None:
    found = outcome(
        "overlay options",
        lambda: options.mount_spec(b"/view", lower, data, given_options, read_only, lower[:1], writable, strategy),
    )
    if found:
        for mount in mountinfo.parse(MOUNTINFO):
            options.mount_differences(found, mount, {})
        outcome("units", lambda: mount_units.desired_units(found, True))
        outcome("lines of fstab", lambda: view_lines.desired_lines(found, True))


NFS_OPTIONS = st.one_of(
    TEXTS, st.sampled_from(["vers=4.2", "rsize=²", "rsize=" + "9" * 5000, "actimeo=x", "timeo=0600", "no", "="])
)


@hostile
@given(st.one_of(TEXTS, st.just("filer:/export")), st.lists(NFS_OPTIONS, max_size=4))
def test_options_of_a_software_root(source: str, given_options: list[str]) -> None:
    found = outcome(
        "NFS options", lambda: nfs_options.software_root_spec(b"/net/software", source, "nfs", given_options)
    )
    if found:
        for mount in mountinfo.parse(MOUNTINFO):
            nfs_options.nfs_differences(found, mount)
        root_plan.root_line(found)


SPEC = options.mount_spec(b"/view", [b"/state/layer.erofs"], [b"/data"], {}, True, [b"/state/layer.erofs"])
UNITS = mount_units.desired_units(SPEC, True)
FSTAB = b"".join((b"# a comment\n", *view_lines.desired_lines(SPEC, True), b"UUID=1 / ext4 defaults 0 1\n"))


@hostile
@given(
    st.lists(
        st.tuples(
            st.sampled_from([unit.name for unit in UNITS]),
            st.sampled_from([unit.text for unit in UNITS]).flatmap(damaged),
        ),
        max_size=3,
    ),
    st.one_of(BYTES, damaged(FSTAB)),
    st.sampled_from(["none", "systemd", "fstab"]),
)
def test_units_and_fstab(units: list[tuple[str, bytes]], fstab: bytes, persist: str) -> None:
    stored = boot_plan.Stored(tuple(mount_units.Unit(name, text, True) for name, text in units), fstab)
    live = list(mountinfo.parse(MOUNTINFO))
    outcome("boot", lambda: boot_plan.plan_persistence(b"/view", SPEC, persist, stored, live, True))
    fstab_lines.replaced(fstab, b"/net/software", None)
