"""Merged and filtered views are compared with a simple model that holds whole trees in memory."""

from __future__ import annotations

import fnmatch
import random
import stat
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import (
    Composition,
    Rules,
    compose,
    in_order,
    precedence,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import Link, declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import (
    OwnershipRules,
    changed_mode,
    parse_mode,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    CHECKSUM_XATTR,
    Entry,
    EntryCounts,
    ManifestRecord,
    Placement,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import sibling_key
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_sources import hidden_warnings
from ansible_collections.renderfarm.overlay.tests.unit.random_cases import Record, each_seed

# ---- releases in memory


class Node(NamedTuple):
    """A file of a release or of a view."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    #: Target of a symbolic link, or path of the content of a file.
    target: bytes | None = None
    xattrs: Xattrs = ()
    #: The same for all names of a file with several; None for a file with one name.
    file: object = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


Nodes = dict[bytes, Node]


@dataclass(frozen=True)
class Release:
    """A release and its placement."""

    placement: Placement
    nodes: Nodes = field(repr=False)

    def entries(self) -> list[Entry]:
        """Return the entries of the manifest of the release."""
        names: dict[object, list[bytes]] = {}
        ordered = sorted(self.nodes, key=sibling_key)
        for path in ordered:
            if self.nodes[path].file is not None:
                names.setdefault(self.nodes[path].file, []).append(path)
        found = []
        for path in ordered:
            node = self.nodes[path]
            paths = names.get(node.file, [path])
            further = path != paths[0]
            target, xattrs = (paths[0], ()) if further else (node.target, node.xattrs)
            nlink = len(paths)
            if node.is_directory:
                inside = path.rstrip(b"/") + b"/"
                nlink = 2 + sum(
                    one.is_directory and other != b"/" and other.startswith(inside) and b"/" not in other[len(inside) :]
                    for other, one in self.nodes.items()
                )
            found.append(
                Entry(path, node.mode, node.size, nlink, node.uid, node.gid, node.mtime_ns, target, further, xattrs)
            )
        return found


def reader(releases: Sequence[Release]) -> dict[str, list[Entry]]:
    return {release.placement.manifest: release.entries() for release in releases}


NAMES = [b"a", b"a-", b"b", b"c.so", b"\xff", "ü".encode(), b"[x]"]


def random_release(dice: random.Random, number: int) -> Release:
    name = f"tool/{number}"
    at = dice.choice([b"", b"", b"a", b"a", b"a/b", b"a/b/c.so", b"b", b"x/y", name.encode()])
    nodes: Nodes = {b"/": random_directory(dice)}
    directories = [b""]
    files: list[bytes] = []
    for _turn in range(dice.randrange(14)):
        path = dice.choice(directories) + b"/" + dice.choice(NAMES)
        if path in nodes:
            continue
        kind = dice.randrange(8)
        if kind < 3:
            nodes[path] = random_directory(dice)
            directories.append(path)
        elif kind == 3:
            target = dice.choice([b"a", b"../b"])
            nodes[path] = Node(stat.S_IFLNK | 0o777, dice.randrange(3), 0, dice.randrange(9), len(target), target)
        elif kind < 6 and files:
            linked = nodes[dice.choice(files)]
            nodes[path] = linked if linked.file is not None else linked._replace(file=path)
            for other in files:
                if nodes[other] is linked:
                    nodes[other] = nodes[path]
            files.append(path)
        else:
            nodes[path] = random_file(dice, name.encode() + path)
            files.append(path)
    # The content of a file with several names is at its first name.
    for path in sorted(files, key=sibling_key, reverse=True):
        if nodes[path].size:
            for other in files:
                if other != path and nodes[path].file is not None and nodes[other].file == nodes[path].file:
                    nodes[other] = nodes[other]._replace(target=name.encode() + path)
            nodes[path] = nodes[path]._replace(target=name.encode() + path)
    include = random_globs(dice) if dice.random() < 0.3 else ()
    exclude = random_globs(dice) if dice.random() < 0.3 else ()
    record = ManifestRecord(name, f"sha256:{number}", 1, EntryCounts(), 0, True)
    return Release(Placement(f"/store/{name}.dump.gz", record, at, name.encode(), include, exclude), nodes)


def random_directory(dice: random.Random) -> Node:
    mode = stat.S_IFDIR | dice.choice([0o755, 0o700, 0o2775])
    return Node(mode, dice.randrange(3), dice.randrange(3), dice.randrange(9))


def random_file(dice: random.Random, content: bytes) -> Node:
    size = dice.choice([0, 5, 5, 6])
    xattrs: Xattrs = ()
    if dice.random() < 0.2:
        xattrs += ((CAPABILITY_XATTR, b"cap"),)
    if dice.random() < 0.8 and size:
        xattrs += ((CHECKSUM_XATTR, dice.choice([b"one", b"one", b"two"])),)
    mode = stat.S_IFREG | dice.choice([0o644, 0o644, 0o664, 0o4755])
    return Node(
        mode, dice.randrange(3), dice.randrange(3), dice.randrange(9), size, content if size else None, xattrs, None
    )


def random_globs(dice: random.Random) -> tuple[bytes, ...]:
    parts = [*NAMES, b"*", b"**", b"?", b"*.so", b"[ab]", b"[!a]*", b"[[]x]", b"**"]
    return tuple(
        b"/".join(dice.choice(parts) for _part in range(dice.choice([1, 1, 2, 3])))
        for _glob in range(dice.choice([1, 1, 2]))
    )


def random_rules(dice: random.Random) -> Rules:
    ownership = OwnershipRules()
    if dice.random() < 0.4:
        ownership = OwnershipRules(
            dice.choice([None, 7]),
            dice.choice([None, 8]),
            dice.choice([(), ((1, 71), (0, 70))]),
            dice.choice([(), ((2, 82),)]),
            dice.choice([(), parse_mode("go-w,a+rX"), parse_mode("u=rwx,g=u,o=")]),
            dice.choice([False, False, True]),
        )
    links = [
        (dice.choice([b"l", b"a/l", b"a", b"x", b"a/b/c.so/a", b"q/r"]), dice.choice([b"a", b"../b"]))
        for _link in range(dice.choice([0, 0, 0, 1, 2]))
    ]
    try:
        return Rules(ownership, dice.choice(["error", "error", "first", "last"]), declared_links(links))
    except OverlayError:
        return Rules(ownership, "first")


# ---- the model: whole trees in memory, merged path by path


def matches(pattern: Sequence[bytes], parts: Sequence[bytes]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == b"**":
        return any(matches(pattern[1:], parts[start:]) for start in range(len(parts) + 1))
    text, glob = (one.decode("utf-8", "surrogateescape") for one in (parts[0] if parts else b"", pattern[0]))
    return bool(parts) and fnmatch.fnmatchcase(text, glob) and matches(pattern[1:], parts[1:])


def covered(patterns: Sequence[bytes], path: bytes) -> bool:
    parts = [part for part in path.split(b"/") if part]
    return any(matches(pattern.split(b"/"), parts[:depth]) for pattern in patterns for depth in range(len(parts) + 1))


def chosen(release: Release) -> set[bytes]:
    place = release.placement
    paths = {path for path in release.nodes if not covered(place.exclude, path)}
    if place.include:
        included = {path for path in paths if covered(place.include, path)}
        paths = included | {path for path in paths if any(below(path, one) for one in included)}
    return paths


def below(directory: bytes, path: bytes) -> bool:
    return path != directory and path.startswith(directory.rstrip(b"/") + b"/")


def parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:depth]) or b"/" for depth in range(1, len(parts))] if path != b"/" else []


@dataclass
class Layer:
    """One tree of the model, with paths in the view."""

    label: str
    nodes: Nodes
    implied: set[bytes]


class Model:
    """A view, built without streams."""

    def __init__(self, releases: Sequence[Release], rules: Rules) -> None:
        self.rules = rules
        self.nodes: Nodes = {}
        self.conflicts: list[tuple[bytes, str, str]] = []
        #: Each directory of which nothing is shown, with the number of entries in it.
        self.hidden: list[tuple[bytes, str, str, int]] = []
        self._roots = [(b"/" + one.placement.at, one.nodes[b"/"].mtime_ns) for one in releases]
        self._newest = max((mtime_ns for _at, mtime_ns in self._roots), default=0)
        if rules.on_conflict == "error":
            order = in_order([release.placement for release in releases])
            releases = sorted(releases, key=lambda release: order.index(release.placement))
        elif rules.on_conflict == "last":
            releases = list(reversed(releases))
        layers = [self._link(link) for link in rules.links] + [self._release(one) for one in releases]
        layers.append(Layer("", {b"/": self._implied(b"/")}, {b"/"}))
        self._merge(b"/", layers)

    def _owned(self, node: Node) -> Node:
        ownership = self.rules.ownership
        uid, gid = ownership.uid(node.uid), ownership.gid(node.gid)
        mode, xattrs = node.mode, node.xattrs
        if ownership.strips and (uid, gid) != (node.uid, node.gid) and stat.S_ISREG(mode):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
            xattrs = tuple(pair for pair in xattrs if pair[0] != CAPABILITY_XATTR)
        return node._replace(mode=changed_mode(mode, ownership.mode), uid=uid, gid=gid, xattrs=xattrs)

    def _implied(self, path: bytes) -> Node:
        times = [mtime_ns for at, mtime_ns in self._roots if below(path, at)]
        if path == b"/" or any(below(path, b"/" + link.path) for link in self.rules.links):
            times.append(self._newest)
        return self._owned(Node(stat.S_IFDIR | 0o755, 0, 0, max(times)))

    def _link(self, link: Link) -> Layer:
        path = b"/" + link.path
        node = self._owned(Node(stat.S_IFLNK | 0o777, 0, 0, self._newest, len(link.target), link.target))
        implied = {parent: self._implied(parent) for parent in parents(path)}
        return Layer(f"link -> {link.target.decode()}", {**implied, path: node}, set(implied))

    def _release(self, release: Release) -> Layer:
        at = b"/" + release.placement.at
        name = release.placement.record.release
        nodes = {}
        for path in chosen(release):
            node = self._owned(release.nodes[path])
            file = (name, at, id(release), node.file) if node.file is not None else None
            nodes[(at.rstrip(b"/") + path).rstrip(b"/") or b"/"] = node._replace(file=file)
        implied = {parent: self._implied(parent) for parent in parents(at)} if nodes else {}
        return Layer(name, {**implied, **nodes}, set(implied))

    def _merge(self, path: bytes, layers: list[Layer]) -> None:
        there = [layer for layer in layers if path in layer.nodes]
        kept = there[0].nodes[path]
        for layer in there[1:]:
            hidden = layer.nodes[path]
            if not (kept.is_directory and hidden.is_directory) and not self._equal(kept, hidden):
                self.conflicts.append((path, there[0].label, layer.label))
        if not kept.is_directory:
            self.nodes[path] = kept
            self.hidden += [
                (path, there[0].label, layer.label, sum(one.startswith(path + b"/") for one in layer.nodes))
                for layer in there
                if layer.nodes[path].is_directory
            ]
            return
        described = [layer for layer in there if layer.nodes[path].is_directory and path not in layer.implied]
        self.nodes[path] = described[0].nodes[path] if path in there[0].implied and described else kept
        for child in {one for layer in layers for one in layer.nodes if one != b"/" and parents(one)[-1] == path}:
            self._merge(child, layers)

    @staticmethod
    def _equal(one: Node, other: Node) -> bool:
        if one.mode != other.mode:
            return False
        if stat.S_ISLNK(one.mode):
            return one.target == other.target
        sums = [dict(node.xattrs).get(CHECKSUM_XATTR) for node in (one, other)]
        capabilities = [dict(node.xattrs).get(CAPABILITY_XATTR) for node in (one, other)]
        same = one.size == other.size and capabilities[0] == capabilities[1]
        return same and (one.size == 0 or (sums[0] is not None and sums[0] == sums[1]))

    def listing(self) -> dict[bytes, tuple[object, ...]]:
        """Return the visible properties of each entry, by path."""
        found: dict[bytes, tuple[object, ...]] = {}
        for path, node in self.nodes.items():
            names = [path]
            if node.is_directory:
                nlink = 2 + sum(one.is_directory and parents(other)[-1:] == [path] for other, one in self.nodes.items())
            else:
                if node.file is not None:
                    names = sorted(other for other, one in self.nodes.items() if one.file == node.file)
                nlink = len(names)
            xattrs = tuple(pair for pair in node.xattrs if pair[0] == CAPABILITY_XATTR)
            found[path] = (*node[:6], xattrs, nlink, names)
        return found


def listed(entries: Sequence[Entry]) -> dict[bytes, tuple[object, ...]]:
    """Return the same of composed entries, after checking their order and hard links."""
    assert [entry.path for entry in entries] == sorted({entry.path for entry in entries}, key=sibling_key)
    files: dict[bytes, Entry] = {}
    names: dict[bytes, list[bytes]] = {}
    for entry in entries:
        if entry.is_hardlink:
            assert entry.target in files
            names[entry.target or b""].append(entry.path)
        else:
            files[entry.path] = entry
            names[entry.path] = [entry.path]
    found: dict[bytes, tuple[object, ...]] = {}
    for entry in entries:
        first = entry.target if entry.is_hardlink and entry.target else entry.path
        file = files[first]
        assert (entry.mode, entry.size, entry.nlink) == (file.mode, file.size, file.nlink)
        found[entry.path] = (
            *(file.mode, file.uid, file.gid, file.mtime_ns, file.size, file.target, file.xattrs, file.nlink),
            sorted(names[first]),
        )
    return found


SEEDS = 600


def random_view(seed: int) -> tuple[list[Release], Rules]:
    dice = random.Random(seed)
    return [random_release(dice, number) for number in range(dice.randrange(1, 5))], random_rules(dice)


def test_a_random_view_equals_the_model(record_testsuite_property: Record) -> None:
    each_seed(SEEDS, _check_view, record_testsuite_property)


def _check_view(seed: int) -> None:
    releases, rules = random_view(seed)
    model = Model(releases, rules)
    manifests = reader(releases)

    def composition(declared: Rules) -> Composition:
        placements = [release.placement for release in releases]
        return Composition(placements, lambda one: iter(manifests[one.manifest]), declared, lambda: None)

    if rules.on_conflict == "error" and model.conflicts:
        count = len(model.conflicts)
        with pytest.raises(OverlayError, match=rf"^the view has {count} conflicts?: '/") as raised:
            composition(rules)
        assert all(f"of {kept} and of {hidden}" in str(raised.value) for _path, kept, hidden in model.conflicts)
        return
    view = composition(rules)
    assert sorted((one.path, one.kept, one.hidden) for one in view.conflicts) == sorted(model.conflicts)
    assert view.conflict_count == len(model.conflicts)
    hidden = [(one.path, one.kept, one.hidden, one.entries) for one in view.hidden_directories]
    assert sorted(hidden) == sorted(model.hidden)
    assert view.hidden_entries == sum(entries for *_names, entries in model.hidden)
    assert listed(list(view.entries())) == model.listing()
    assert list(view.entries()) == list(view.entries())


def test_enough_random_views_have_each_feature_under_test() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        releases, rules = random_view(seed)
        model = Model(releases, rules)
        nodes = model.nodes.values()
        globs = any(one.placement.include or one.placement.exclude for one in releases)
        # The first name of the file, which is the path of its content, is not in the view.
        first: dict[object, bytes] = {}
        for path in sorted(model.nodes, key=sibling_key):
            first.setdefault(model.nodes[path].file, path)
        renamed = any(
            file is not None and not (model.nodes[path].target or path).endswith(path.rpartition(b"/")[2])
            for file, path in first.items()
        )
        seen.update(
            large=len(nodes) > 5,
            refused=rules.on_conflict == "error" and bool(model.conflicts),
            decided=rules.on_conflict != "error" and bool(model.conflicts),
            links=bool(rules.links),
            globs=globs,
            linked=any(node.file is not None for node in nodes),
            renamed=renamed,
        )
    assert min(seen.values()) > SEEDS / 20, seen


# ---- single cases


def release(name: str, at: bytes, files: Mapping[bytes, bytes | None], **more: tuple[bytes, ...]) -> Release:
    """Return a release with the given files. The value is the checksum of the file, or None for a directory."""
    record = ManifestRecord(name, f"sha256:{name}", 1, EntryCounts(), 0, True)
    mtime_ns = len(name)
    nodes = {b"/": Node(stat.S_IFDIR | 0o755, 1, 1, mtime_ns)}
    for path, content in files.items():
        for parent in parents(path)[1:]:
            nodes.setdefault(parent, Node(stat.S_IFDIR | 0o755, 1, 1, mtime_ns))
        if content is None:
            nodes[path] = Node(stat.S_IFDIR | 0o755, 1, 1, mtime_ns)
        else:
            target = name.encode() + path
            nodes[path] = Node(stat.S_IFREG | 0o644, 1, 1, 1, 3, target, ((CHECKSUM_XATTR, content),))
    return Release(Placement(f"/store/{name}.dump.gz", record, at, name.encode(), **more), nodes)


def composed(releases: Sequence[Release], rules: Rules | None = None) -> dict[bytes, Entry]:
    manifests = reader(releases)
    placements = [one.placement for one in releases]
    return {entry.path: entry for entry in compose(placements, lambda one: iter(manifests[one.manifest]), rules)}


ONE = release("one", b"", {b"/bin/one": b"1", b"/share/doc": b"1"})
TWO = release("second", b"", {b"/bin/two": b"2", b"/share/doc": b"2"})


def test_releases_at_one_place_are_merged() -> None:
    view = composed([ONE, replace(TWO, placement=replace(TWO.placement, exclude=(b"share",)))])
    assert list(view) == [b"/", b"/bin", b"/bin/one", b"/bin/two", b"/share", b"/share/doc"]
    assert view[b"/bin/two"].target == b"second/bin/two"
    assert view[b"/"].nlink == 4


@pytest.mark.parametrize(("on_conflict", "kept"), [("first", b"one"), ("last", b"second")])
def test_on_conflict_decides_by_the_order_of_the_declaration(on_conflict: str, kept: bytes) -> None:
    view = composed([ONE, TWO], Rules(on_conflict=on_conflict))
    assert view[b"/share/doc"].target == kept + b"/share/doc"
    assert view[b"/share"].mtime_ns == len(kept)
    other = {"first": "last", "last": "first"}[on_conflict]
    assert composed([TWO, ONE], Rules(on_conflict=other)) == view


def test_a_conflict_is_named_with_its_path_and_both_releases() -> None:
    with pytest.raises(
        OverlayError, match=r"has 1 conflict: '/share/doc' of one and of second\. .*exclude.*on_conflict"
    ):
        composed([ONE, TWO])


def test_the_first_conflicts_are_named_and_all_are_counted() -> None:
    many = {b"/f%03d" % number: b"1" for number in range(150)}
    releases = [release("one", b"", many), release("two", b"", dict.fromkeys(many, b"2"))]
    with pytest.raises(OverlayError, match="has 150 conflicts, the first 20 of which are: ") as raised:
        composed(releases)
    assert "/f019" in str(raised.value)
    assert "/f020" not in str(raised.value)
    manifests = reader(releases)
    placements = [one.placement for one in releases]
    view = Composition(placements, lambda one: iter(manifests[one.manifest]), Rules(on_conflict="first"), lambda: None)
    assert (len(view.conflicts), view.conflict_count) == (100, 150)
    assert view.conflicts[0].as_dict() == {"path": "/f000", "kept": "one", "hidden": "two"}


def test_files_conflict_unless_checksum_size_mode_and_xattrs_are_equal() -> None:
    equal = release("two", b"", {b"/share/doc": b"1"})
    assert composed([ONE, equal])[b"/share/doc"].target == b"one/share/doc"
    doc = equal.nodes[b"/share/doc"]
    for changed in (
        doc._replace(xattrs=()),
        doc._replace(size=4),
        doc._replace(mode=doc.mode | 0o111),
        doc._replace(xattrs=((CAPABILITY_XATTR, b"cap"), *doc.xattrs)),
    ):
        with pytest.raises(OverlayError, match="'/share/doc' of one and of two"):
            composed([ONE, replace(equal, nodes={**equal.nodes, b"/share/doc": changed})])


def test_a_file_that_takes_precedence_hides_a_directory_and_its_content() -> None:
    directory = release("two", b"", {b"/share/doc/a/b": b"2", b"/share/doc/c": b"2", b"/share/doc-": b"2"})
    rules = Rules(on_conflict="first")
    assert list(composed([ONE, directory], rules))[4:] == [b"/share/doc", b"/share/doc-"]
    assert list(composed([directory, ONE], rules))[4:] == [
        b"/share/doc",
        b"/share/doc/a",
        b"/share/doc/a/b",
        b"/share/doc/c",
        b"/share/doc-",
    ]


def test_precedence_of_nested_releases_depends_on_the_order_and_not_on_the_place() -> None:
    inside = release("inner", b"share/doc", {b"/x": b"2"})
    assert list(composed([ONE, inside], Rules(on_conflict="first")))[-1] == b"/share/doc"
    assert list(composed([inside, ONE], Rules(on_conflict="first")))[-1] == b"/share/doc/x"
    with pytest.raises(OverlayError, match="'/share/doc' of one and of inner"):
        composed([inside, ONE])


def test_a_directory_that_a_link_hides_is_named_with_the_number_of_its_entries() -> None:
    linked = release("linked", b"", {})
    linked.nodes[b"/lib64"] = Node(stat.S_IFLNK | 0o777, 1, 1, 1, 3, b"lib")
    first, second = (
        release(name, b"", {b"/lib64/a": b"1", b"/lib64/deep/b": b"2", b"/lib64x": name.encode()})
        for name in ("first", "second")
    )
    inputs = [linked, first, second]
    manifests = reader(inputs)
    view = Composition(
        [one.placement for one in inputs],
        lambda one: iter(manifests[one.manifest]),
        Rules(on_conflict="first"),
        lambda: None,
    )
    assert [(one.path, one.kept, one.hidden, one.entries) for one in view.hidden_directories] == [
        (b"/lib64", "linked", "first", 3),
        (b"/lib64", "linked", "second", 3),
    ]
    assert view.hidden_entries == 6
    (warning,) = hidden_warnings(view)
    assert (
        "6 entries in all: /lib64 of first (3 entries), where linked has a file or symbolic link; /lib64 of sec"
        in warning
    )
    assert hidden_warnings(None) == []


def test_what_patterns_leave_out_is_counted_once() -> None:
    whole = release("tool", b"x", {b"/doc/a": b"1", b"/doc/b": b"2", b"/bin/c": b"3"}, exclude=(b"doc", b"bin/c"))
    manifests = reader([whole])
    view = Composition([whole.placement], lambda one: iter(manifests[one.manifest]), Rules(), lambda: None)
    assert [entry.path for entry in view.entries()][-1] == b"/x/bin"
    assert view.excluded == 4


def test_a_directory_that_a_release_describes_replaces_an_implied_one() -> None:
    inside = release("inside-of-it", b"share/deep", {b"/x": b"2"})
    view = composed([inside, ONE], Rules(on_conflict="first"))
    assert (view[b"/share"].mtime_ns, view[b"/share"].uid) == (len("one"), 1)
    assert view[b"/share/deep"].mtime_ns == len("inside-of-it")


def test_the_next_name_of_a_file_replaces_an_excluded_first_name() -> None:
    one = release("one", b"x", {b"/a": b"1", b"/b": b"1", b"/c/d": b"1"})
    file = one.nodes[b"/a"]._replace(file="f", xattrs=((CAPABILITY_XATTR, b"cap"), (CHECKSUM_XATTR, b"1")))
    one = replace(one, nodes={**one.nodes, b"/a": file, b"/b": file, b"/c/d": file})
    view = composed([replace(one, placement=replace(one.placement, exclude=(b"a",)))])
    assert view[b"/x/b"] == Entry(b"/x/b", file.mode, 3, 2, 1, 1, 1, b"one/a", False, ((CAPABILITY_XATTR, b"cap"),))
    assert (view[b"/x/c/d"].target, view[b"/x/c/d"].is_hardlink, view[b"/x/c/d"].nlink) == (b"/x/b", True, 2)


def test_a_release_without_included_entries_adds_no_directories() -> None:
    nothing = release("two", b"deep/er", {b"/f": b"1"}, include=(b"no-such-name",))
    assert list(composed([ONE, nothing])) == list(composed([ONE]))
    assert list(composed([nothing])) == [b"/"]
    assert composed([nothing])[b"/"].nlink == 2


def test_a_declared_link_has_parent_directories_and_the_latest_mtime() -> None:
    tool = release("tool", b"tool/1", {b"/f": b"1"})
    view = composed(
        [tool], Rules(OwnershipRules(7, 8), links=declared_links([(b"tool/current", b"1"), (b"/new/l", b"x")]))
    )
    assert list(view) == [b"/", b"/new", b"/new/l", b"/tool", b"/tool/1", b"/tool/1/f", b"/tool/current"]
    assert view[b"/tool/current"] == Entry(
        b"/tool/current", stat.S_IFLNK | 0o777, 1, 1, 7, 8, len("tool"), b"1", False, ()
    )
    assert [view[path].nlink for path in (b"/", b"/new", b"/tool")] == [4, 2, 3]


@pytest.mark.parametrize(
    ("path", "named"),
    [(b"tool", "'/tool'"), (b"tool/1", "'/tool/1'"), (b"tool/1/f", "'/tool/1/f'"), (b"tool/1/f/x", "'/tool/1/f'")],
)
def test_a_declared_link_conflicts_with_and_replaces_any_entry_at_its_path(path: bytes, named: str) -> None:
    tool = release("tool", b"tool/1", {b"/f": b"1"})
    links = declared_links([(path, b"target")])
    with pytest.raises(OverlayError, match=f"{named} of link -> target and of tool"):
        composed([tool], Rules(links=links))
    for on_conflict in ("first", "last"):
        view = composed([tool], Rules(links=links, on_conflict=on_conflict))
        assert view[b"/" + path].target == b"target"
        assert not any(one.startswith(b"/" + path + b"/") for one in view)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(b"", b"x")], "root of the view"),
        ([(b"/./", b"x")], "root of the view"),
        ([(b"a/../b", b"x")], r"path of the link 'a/\.\./b' may not contain"),
        ([(b"a", b"")], "target of link 'a' has 0 bytes"),
        ([(b"a", b"x" * 4096)], "target of link 'a' has 4096 bytes"),
        ([(b"a", b"x\0")], "1 to 4095 bytes without NUL"),
        ([(b"a", b"x"), (b"/a/", b"y")], "link '/a/' is declared with two targets, 'x' and 'y'"),
        ([(b"a/b/c", b"x"), (b"a", b"x"), (b"a-", b"x")], "link 'a/b/c' would be below link 'a'"),
    ],
)
def test_an_invalid_link_is_refused_by_name(given: list[tuple[bytes, bytes]], message: str) -> None:
    with pytest.raises(OverlayError, match=message):
        declared_links(given)


def test_declared_links_are_sorted_and_deduplicated() -> None:
    given = [(b"b", b"x"), (b"a-", b"x"), (b"/a/c/", b"x" * 4095), (b"b", b"x")]
    assert [link.path for link in declared_links(given)] == [b"a/c", b"a-", b"b"]


def test_precedence_lists_only_releases_that_overlap() -> None:
    def order(*places: bytes, on_conflict: str = "first", links: tuple[Link, ...] = ()) -> list[list[int]] | None:
        placements = [release(f"r{place.decode()}", place, {}).placement for place in places]
        return precedence(placements, Rules(on_conflict=on_conflict, links=links))

    assert order(b"a", b"b") is None
    assert order(b"b", b"a") is None
    assert order(b"a", b"a/b", on_conflict="error") is None
    assert order(b"a", b"a/b") == order(b"a/b", b"a", on_conflict="last") == [[0, 1]]
    assert order(b"a/b", b"a") == order(b"a", b"a/b", on_conflict="last") == [[1, 0]]
    # Two releases below a third one do not overlap with each other.
    assert order(b"", b"a", b"b") == order(b"", b"b", b"a") == [[0, 1], [0, 2]]
    assert order(b"a", b"", b"b") == [[1, 0], [0, 2]]
    assert order(b"a", links=declared_links([(b"b", b"x")])) is None
    assert order(b"a", links=declared_links([(b"a/b", b"x")])) == []
    assert order(b"a/b", links=declared_links([(b"a", b"x")])) == []


# ---- memory


def large(name: bytes, files: int) -> Iterator[Entry]:
    """Yield a release with ``files`` files in ten directories."""
    yield Entry(b"/", stat.S_IFDIR | 0o755, 0, 12, 1, 1, 1, None, False, ())
    for index in range(10):
        top = b"/directory%d" % index
        yield Entry(top, stat.S_IFDIR | 0o755, 0, 2, 1, 1, 1, None, False, ())
        for number in range(files // 10):
            path = top + b"/file%06d" % number
            yield Entry(path, stat.S_IFREG | 0o644, 5, 1, 1, 1, 1, name + path, False, ((CHECKSUM_XATTR, name),))


def peak(files: int) -> int:
    """Return the peak memory in bytes of merging two releases with ``files`` files each."""
    placements = [
        replace(release(name, b"x", {}).placement, exclude=(b"**/file*7",), include=(b"directory*/*",))
        for name in ("one", "two")
    ]
    rules = Rules(OwnershipRules(owner=5), "last", declared_links([(b"x/directory3/file000001", b"target")]))
    tracemalloc.start()
    try:
        view = compose(placements, lambda one: large(one.source, files), rules)
        assert sum(1 for _entry in view) == 12 + files * 9 // 10
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_files() -> None:
    peak(1_000)
    assert peak(20_000) < peak(2_000) * 1.2
