"""The readers of data that somebody else may have written: what must hold for any bytes, and real data to begin with.

tests/unit/test_hostile.py gives them random changes of the real data, and tests/fuzz the inputs that a coverage-guided fuzzer finds.
"""

from __future__ import annotations

import functools
import json
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import marks, move_plan, remount_notes
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import lock, status
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import LockedImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import dump, image_delta, image_records, links
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition, Rules, placed
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.deflating import (
    DamagedError,
    deflated,
    inflated,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import (
    Image,
    StoredDelta,
    StoredFile,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import (
    OwnershipRules,
    is_privileged,
    parse_mode,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached_records, options
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import (
    data_image_record,
    manifest,
    nfs4_acl,
    patterns,
    posix_acl,
    trace_record,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    CARRIED_XATTRS,
    CHECKSUM_XATTR,
    MANIFEST_XATTRS,
    SET_ID,
    Entry,
    EntryCounts,
    ManifestRecord,
    Placement,
    Tally,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import StructureCheck
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import mountstats
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_options
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_record, layer_spec, linger
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.tests.unit.layers.test_image_delta import image
from ansible_collections.renderfarm.overlay.tests.unit.layers.test_merge import random_view
from ansible_collections.renderfarm.overlay.tests.unit.stores import answering
from ansible_collections.renderfarm.overlay.tests.unit.tried import outcome


@dataclass(frozen=True)
class Reader:
    """A reader of bytes."""

    #: Raises AssertionError if what must hold does not, and the error of a reader that neither returns nor refuses.
    check: Callable[[bytes], None]
    #: Real data.
    samples: tuple[bytes, ...]


# ---- records

DIGEST = "sha256:" + "0123456789abcdef" * 4
RECORD = ManifestRecord("pkg/1", DIGEST, 123, EntryCounts(1, 2, 3, 4), 5, True, "/net/software")
PLACEMENTS = (
    Placement("/s/pkg/1.dump.gz", RECORD, b"pkg/1", b"pkg/1", (b"bin/**",), (b"doc",)),
    Placement("/s/pkg/2.dump.gz", replace(RECORD, release="pkg/2"), b"pkg", b"elsewhere"),
)
SPECS = [
    LayerSpec("view", PLACEMENTS, "directory", "data_only", "trusted"),
    LayerSpec(
        "view",
        PLACEMENTS,
        "erofs",
        "data_only",
        "trusted",
        0,
        1,
        ((1, 2),),
        ((3, 4),),
        "go-w",
        on_conflict="first",
        links=links.declared_links([(b"pkg/current", b"1")]),
    ),
]
IMAGE = Image(DIGEST, 4096, "mkcomposefs", StoredFile(DIGEST, 400), (StoredDelta(DIGEST, 40, DIGEST),))


def recorded(spec: LayerSpec) -> bytes:
    composition = layer_spec.composition_of(spec)
    digest = generation_record.composition_digest(composition)
    written = Generation(
        generation_record.generation_id(digest),
        digest,
        spec.format,
        spec.strategy,
        spec.xattr_namespace,
        EntryCounts(1, 2, 3, 4),
        5,
        6,
        composition,
        ({"path": "/x", "kept": "a", "hidden": "b"},),
        3,
        IMAGE if spec.format == "erofs" else None,
    )
    return generation_record.generation_to_json(written)


GENERATIONS = tuple(recorded(spec) for spec in SPECS)


def check_generation(text: bytes) -> None:
    found = outcome("generation", lambda: generation_record.generation_from_json(text, "/x/view.json"))
    if found:
        assert "/" not in found.directory
        assert generation_record.generation_id(generation_record.composition_digest(found.composition)) == found.id
        assert generation_record.generation_from_json(generation_record.generation_to_json(found), "view.json") == found


def check_manifest_record(text: bytes) -> None:
    found = outcome("manifest record", lambda: manifest.record_from_json(text))
    if found:
        assert ".." not in found.release.split("/")
        assert manifest.record_from_json(manifest.record_to_json(found)) == found


TRACE = trace_record.trace_of(
    "pkg/1", 3, [trace_record.TracedFile(b"bin/a", 4, 3), trace_record.TracedFile(b"lib/\xff", 1, 1)]
)


def check_trace(text: bytes) -> None:
    found = outcome("trace", lambda: trace_record.trace_from_text(text))
    if found:
        assert not {b"", b".", b".."} & {part for file in found.files for part in file.path.split(b"/")}
        assert trace_record.trace_from_text(trace_record.trace_to_text(found)) == found
        assert trace_record.merged(found, found).starts == min(2 * found.starts, trace_record.MOST_COUNTED)


DETACHED = detached_records.DetachedMount(b"/view", (0, 42), frozenset((1, 2)), (b"/layer",), 1.5, (b"/data",))


def check_detached(text: bytes) -> None:
    found = outcome("detached note", lambda: detached_records.from_json(text))
    if found:
        assert detached_records.from_json(detached_records.to_json(found)) == found
        live = list(mountinfo.parse(MOUNTINFO))
        detached_records.brought_up_to_date([found, found], live)
        detached_records.is_mounted(found, live)


AGAIN = remount_notes.RemountSpec(
    options.MountSpec(
        b"/view",
        (b"/layer",),
        (b"/data",),
        ((b"metacopy", b"on"), (b"volatile", None)),
        frozenset(("ro", "nosuid")),
        (b"/layer.erofs",),
        options.Writable(b"/upper", b"/work"),
    ),
    True,
)


def check_unmounted(text: bytes) -> None:
    found = outcome("unmounted note", lambda: remount_notes.from_json(text))
    if found:
        assert remount_notes.from_json(remount_notes.to_json(found)) == found


DATA_IMAGE = data_image_record.DataImage(
    "pkg/1", "pkg/1", "/net/software", DIGEST, "trace", DIGEST, False, 3, 1, 4096, 9, DIGEST, 1024
)


def check_data_image(text: bytes) -> None:
    found = outcome("data image", lambda: data_image_record.data_image_from_json(text))
    if found:
        assert data_image_record.is_image_id(found.id)
        assert not {"", ".", ".."} & {*found.release.split("/"), *found.source.split("/")}
        assert data_image_record.data_image_from_json(data_image_record.data_image_to_json(found)) == found


LOCK = lock.lock_to_json(
    [
        lock.LockedView(
            "lighting",
            "0123456789abcdef",
            (
                {"release": "pkg/1", "digest": DIGEST, "at": "pkg", "include": ["bin/**"]},
                {"release": "pkg/2", "digest": DIGEST, "source": ""},
            ),
            ({"release": "pkg/0", "until": "2026-01-01T00:00:00Z"},),
            DIGEST,
            (LockedImage("pkg/1", "trace", DIGEST, 1024, 9, False),),
        ),
        lock.LockedView("comp", "f" * 16, ({"release": "pkg/2", "digest": DIGEST},)),
    ]
)


def check_lock(text: bytes) -> None:
    found = outcome("lock", lambda: lock.lock_from_json(text))
    if found:
        assert not any("/" in view.name + view.generation for view in found.values())
        assert all(data_image_record.is_image_id(one.id) for view in found.values() for one in view.data_images)
        assert lock.lock_from_json(lock.lock_to_json(found.values())) == found


STATUS = status.status_to_json(
    status.ViewStatus(
        "lighting",
        "/software",
        "0123456789abcdef",
        "systemd",
        "the kernel refused the mount",
        status.Hold("f" * 16, 1_700_000_000, "a crash", "0" * 16),
        {"options": {"metacopy": "on", "nosuid": True}, "data": ["/data"], "writable": "scratch", "scratch_size": 5},
        "e" * 16,
    )
)


def check_status(text: bytes) -> None:
    found = outcome("status", lambda: status.status_from_json(text))
    if found:
        assert "/" not in found.view
        assert found.mountpoint.startswith("/")
        assert status.status_from_json(status.status_to_json(found)) == found


RELEASES = linger.Record(
    (linger.placed("pkg/1", None, None, ["bin/**"], ["doc"]), linger.placed("pkg/2", "/", "other", [], [])),
    (linger.Leaving(linger.placed("pkg/0", None, None, [], []), 1_700_000_000),),
)


def check_view_releases(text: bytes) -> None:
    found = outcome("releases of a view", lambda: linger.record_from_json("view", text))
    if found:
        assert linger.record_from_json("view", linger.record_to_json("view", found)) == found
        decision = linger.decide((), ["current"], found, 1_700_000_001, 60, {})
        assert len(decision.record.leaving) + len(decision.left) <= len(found.declared) + len(found.leaving)


# ---- manifests

LINES = b"".join(
    manifest.encode(entry)
    for entry in (
        Entry(b"/", 0o40755, 0, 3, 0, 0, 1, None, False, ()),
        Entry(b"/bin", 0o40755, 0, 2, 0, 0, 1, None, False, ()),
        Entry(b"/bin/a", 0o100755, 5, 2, 0, 0, 1, b"pkg/1/bin/a", False, ()),
        Entry(b"/bin/b", 0o100755, 5, 2, 0, 0, 1, b"/bin/a", True, ()),
        Entry(b"/link", 0o120777, 3, 1, 0, 0, 1, b"bin", False, ()),
    )
)


def plain_placement(release: str) -> Placement:
    place = release.encode()
    return Placement("", replace(RECORD, release=release), place, place)


def check_manifest(text: bytes) -> None:
    """Read a manifest in both ways, as entries and as text. Both must accept the same manifests, and give the same view."""
    found = outcome("manifest text", lambda: list(manifest.read_entries(manifest.lines(text), b"pkg/1")))
    placement, tally = plain_placement("pkg/1"), Tally()
    try:
        shown = b"".join(dump.placed_text(placement, (text,), tally)) if text else None
    except ManifestError:
        shown = None
    assert (found is None) == (shown is None), "only one of the two ways accepts it"
    if found:
        assert found[0].path == b"/"
        assert not any(part in (b".", b"..") for entry in found for part in entry.path.split(b"/"))
        assert not any({name for name, _value in entry.xattrs} - MANIFEST_XATTRS for entry in found)
        entries = list(placed(placement, iter(found), OwnershipRules()))
        assert [manifest.decode(line) for line in manifest.lines(shown or b"")] == entries
        counted = Tally()
        for entry in entries:
            counted.add(entry)
        assert (tally.counts(), tally.bytes) == (counted.counts(), counted.bytes)


# ---- composition

PLACES = (b"", b"a", b"a/b", b"a/b/c.so", b"b", b"tool/0")
RULES = tuple(
    Rules(ownership, on_conflict, declared)
    for on_conflict in ("error", "first", "last")
    for ownership in (
        OwnershipRules(),
        OwnershipRules(owner=7, group_map=((2, 82),)),
        OwnershipRules(owner_map=((0, 70), (1, 71)), mode=parse_mode("go-w,a+rX")),
    )
    for declared in ((), links.declared_links([(b"a/b", b"../b"), (b"q/r", b"a")]))
)
#: Values that a manifest may have: cap_net_raw=ep, and a SHA-256.
XATTR_VALUES = {CAPABILITY_XATTR: struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0), CHECKSUM_XATTR: b"0" * 64}
#: Between the manifests of a composition.
BETWEEN = b"%\n"


def composition_input(seed: int) -> bytes:
    """Return a random view as one text: a byte for the rules and one for each place, and then the manifests."""
    releases, _rules = random_view(seed)
    head = bytes(
        (
            seed % len(RULES),
            *(PLACES.index(one.placement.at) % len(PLACES) for one in releases if one.placement.at in PLACES),
        )
    )
    texts = []
    for number, one in enumerate(releases):
        entries = [
            entry._replace(xattrs=tuple((name, XATTR_VALUES[name]) for name, _value in entry.xattrs))
            for entry in one.entries()
        ]
        texts.append(b"".join(map(manifest.encode, entries)).replace(one.placement.source, b"tool/%d" % number))
    return head.ljust(5, b"\1") + BETWEEN.join(texts)


@dataclass(frozen=True)
class View:
    """A composed view."""

    composition: Composition
    rules: Rules
    #: The entries of all manifests of which it was made.
    given: tuple[Entry, ...]


def composed(text: bytes) -> View | None:
    """Return the view of those manifests of an input that are accepted; None if they cannot be composed."""
    head, texts = text[:5].ljust(5, b"\0"), text[5:].split(BETWEEN)[:4]
    rules = RULES[head[0] % len(RULES)]
    placements, entries = [], {}
    for number, one in enumerate(texts):
        release = f"tool/{number}"
        found = outcome(
            "manifest of a composition",
            lambda one=one, release=release: list(manifest.read_entries(manifest.lines(one), release.encode())),  # type: ignore[misc]
        )
        if found:
            place = PLACES[head[1 + number] % len(PLACES)]
            placements.append(replace(plain_placement(release), manifest=release, at=place))
            entries[release] = found

    def read(placement: Placement) -> Iterator[Entry]:
        return iter(entries[placement.manifest])

    composition = outcome("composition", lambda: Composition(placements, read, rules, lambda: None))
    given = tuple(entry for found in entries.values() for entry in found)
    return View(composition, rules, given) if composition else None


def check_composition(text: bytes) -> None:
    """Compose the manifests that are accepted, and check that the view has a sound tree and gives nobody more than they do."""
    view = composed(text)
    if view:
        entries = list(view.composition.entries())
        check_tree(entries)
        check_rights(entries, view.rules, view.given)


def check_tree(view: Sequence[Entry]) -> None:
    """Check that a tree is sound: names in order, every directory before its entries, hard links to what is there."""
    structure = StructureCheck(b"")
    for entry in view:
        # A view has the content of its files at the paths of their releases, and a manifest at its own.
        is_file = stat.S_ISREG(entry.mode) and not entry.is_hardlink and entry.size
        structure.add(entry._replace(target=entry.path) if is_file else entry)
    structure.end()


def check_rights(view: Sequence[Entry], rules: Rules, given: Sequence[Entry]) -> None:
    """Check that files have the content of a release, no set-ID bits with another owner, and no xattr but those that views carry."""
    files = {
        entry.target: entry for entry in given if stat.S_ISREG(entry.mode) and not entry.is_hardlink and entry.size
    }
    ownership = rules.ownership
    for entry in view:
        assert not {name for name, _value in entry.xattrs} - CARRIED_XATTRS
        if entry.is_hardlink or not stat.S_ISREG(entry.mode) or not entry.size:
            continue
        source = files[entry.target]
        assert (entry.size, entry.mtime_ns) == (source.size, source.mtime_ns)
        assert (entry.uid, entry.gid) == (ownership.uid(source.uid), ownership.gid(source.gid))
        assert entry.mode & SET_ID & ~source.mode == 0
        if is_privileged(entry.mode, entry.xattrs):
            assert (entry.uid, entry.gid) == (source.uid, source.gid)
        if ownership == OwnershipRules():
            assert entry.mode == source.mode
            assert entry.xattrs == tuple(pair for pair in source.xattrs if pair[0] in CARRIED_XATTRS)


# ---- images

OLD_IMAGE, NEW_IMAGE = image(["usd/1", "usd/2"], 20), image(["usd/1", "usd/3"], 20)
DELTA = tuple(image_delta.encode(memoryview(OLD_IMAGE), memoryview(NEW_IMAGE), lambda: None))


def part_of(whole: memoryview) -> image_delta.Read:
    return lambda start, length: whole[start : start + length]


def decoded(delta: Sequence[bytes], old: memoryview, size: int) -> bytes:
    return b"".join(image_delta.decode(delta, part_of(old), len(old), size))


def check_delta(text: bytes) -> None:
    """Decode a delta whose plain text is given, and the text itself as a delta."""
    with memoryview(OLD_IMAGE) as old:
        for delta in ((text,), tuple(deflated(deflated((text,), 1), 1))):
            read = functools.partial(decoded, delta, old, len(NEW_IMAGE))
            made = outcome("delta", read, DamagedError)
            assert made is None or len(made) == len(NEW_IMAGE)


def check_image(text: bytes) -> None:
    """Divide an image into records, and make deltas from and to it."""
    with memoryview(text) as crafted, memoryview(OLD_IMAGE) as real:
        end = 0
        for offset, length, _key in outcome("image", lambda: list(image_records.records(crafted))) or ():
            assert end <= offset <= offset + length <= len(crafted)
            end = offset + length
        for old, new in ((real, crafted), (crafted, real)):
            delta = tuple(image_delta.encode(old, new, lambda: None))
            assert not delta or decoded(delta, old, len(new)) == new


# ---- mounts

MOUNTINFO = (
    b"90 29 0:48 / /net/software ro,nodev shared:40 - nfs4 filer:/export ro,vers=4.2,rsize=262144,addr=10.0.2.15\n"
    b"95 29 0:50 / /software ro,relatime - overlay overlay ro,lowerdir+=/state/layer,datadir+=/net/software,metacopy=on\n"
    b"96 29 0:51 / /old\\040one ro master:1 - overlay overlay rw,lowerdir=/a:/b\\134:c::/d,upperdir=/u,workdir=/w\n"
)


def check_mountinfo(text: bytes) -> None:
    found = outcome("mountinfo", lambda: list(mountinfo.parse(text)))
    for mount in found or ():
        mountinfo.overlay_layers(mount)
        mountinfo.described(mount)
        mountinfo.stack(found or (), mount.path)
        options.declared_by(mount)
        outcome("mount again", lambda mount=mount: remount_notes.remount_spec(mount, ()))  # type: ignore[misc]
        nfs_options.nfs_mount_values(mount)


MOUNTSTATS = (
    b"device filer:/export mounted on /net/software with fstype nfs4 statvers=1.1\n"
    b"\topts:\tro,vers=4.2\n\tper-op statistics\n"
    b"\t        NULL: 1 1 0 44 24 2 1 3 0\n\t      LOOKUP: 5241 5241 0 12 13 1 2 3 43\n"
    b"device tmpfs mounted on /tmp with fstype tmpfs\n"
)


def check_mountstats(text: bytes) -> None:
    mountstats.calls_below([b"/software", b"/old one"], list(mountinfo.parse(MOUNTINFO)), text)
    outcome("mountstats", lambda: mountstats.parse_mountstats(text))


# ---- http

ADDRESS = "http://store/view/0123456789abcdef.json"
ANSWERS = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "a"\r\nLast-Modified: Sat, 01 Nov 2025 10:00:00 GMT\r\n\r\nhello',
    b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\nETag: "a"\r\n\r\nhel'
    + answering.BETWEEN
    + b'HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 3-8/9\r\nETag: "a"\r\n\r\nlo hey',
    b"HTTP/1.1 302 Found\r\nLocation: /other?x=1\r\n\r\n"
    + answering.BETWEEN
    + b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\n"
    + answering.BETWEEN
    + b"HTTP/1.1 416 No\r\nContent-Range: bytes */3\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nhello",
    b"HTTP/1.1 301 Moved\r\nLocation: https://other/x\r\n\r\n",
    b"HTTP/1.1 418 I'm a teapot\r\n\r\n",
)
LARGEST = 1000


def check_http(text: bytes) -> None:
    """Read a record and the rest of a file from a web server that gives these answers and then refuses connections."""
    answering.check_answers(ADDRESS, text, LARGEST)


def check_location(text: bytes) -> None:
    location = text.decode("utf-8", "surrogateescape")
    found = outcome("location", lambda: locations.check(location, "store"))
    locations.shown(location)
    if found and locations.is_address(found):
        joined = locations.joined(found, "a b/\udcff?", "..x")
        assert locations.problem_of(joined) is None or len(joined) > 4095


# ---- names and patterns, one to a line


def check_ignored_names(text: bytes) -> None:
    lines = [line.decode("utf-8", "surrogateescape") for line in text.split(b"\n")]
    found = outcome("ignored names", lambda: patterns.IgnoredNames(lines))
    if found:
        for name in (b"a", b"\xff", b"x" * 255, b"[", b"a\nb"):
            assert isinstance(name in found, bool)
        plain = [line for line in text.split(b"\n") if not set(line) & set(b"*?[")]
        assert all(name in found for name in plain)


# ---- xattrs


def check_acl(value: bytes) -> None:
    acl = outcome("POSIX ACL", lambda: posix_acl.parse(value), ValueError)
    if acl:
        assert posix_acl.parse(posix_acl.serialize(acl)) == acl
        assert not posix_acl.narrowed(acl, 1, 2) & ~0o777
    outcome("NFSv4 ACL", lambda: nfs4_acl.summarize(value), ValueError)


def check_marks(value: bytes) -> None:
    outcome("mark of a move", lambda: move_plan.parse_marker(value))
    outcome("note of attributes", lambda: marks.OwnerChange.from_note(value, 7))
    outcome("note of an mtime", lambda: marks.mtime_from_note(value, 7))


ACLS = (
    posix_acl.serialize(
        posix_acl.parse(
            b"\2\0\0\0" + b"".join(bytes((tag, 0, 5, 0)) + b"\xff" * 4 for tag in (1, 4, 16, 32)) + b"\2\0\6\0\7\0\0\0"
        )
    ),
    bytes.fromhex("00000001 00000000 00000000 001601bf 00000006") + b"OWNER@\0\0",
)
MARKS = (
    move_plan.marker_of(b"/old", b"/new", 1),
    marks.OwnerChange(0o4755, 1, 2, b"\1").to_note(7),
    marks.mtime_to_note(1_700_000_000_000_000_001, 7),
)

READERS = {
    "generation": Reader(check_generation, GENERATIONS),
    "manifest_record": Reader(check_manifest_record, (manifest.record_to_json(RECORD),)),
    "trace": Reader(check_trace, (trace_record.trace_to_text(TRACE),)),
    "detached": Reader(check_detached, (detached_records.to_json(DETACHED),)),
    "unmounted": Reader(check_unmounted, (remount_notes.to_json(AGAIN),)),
    "data_image": Reader(check_data_image, (data_image_record.data_image_to_json(DATA_IMAGE),)),
    "lock": Reader(check_lock, (LOCK.encode(),)),
    "status": Reader(check_status, (STATUS,)),
    "view_releases": Reader(check_view_releases, (linger.record_to_json("view", RELEASES),)),
    "manifest": Reader(check_manifest, (LINES,)),
    "composition": Reader(check_composition, tuple(composition_input(seed) for seed in range(24))),
    "delta": Reader(
        check_delta,
        (
            b"".join(inflated(inflated(DELTA))),
            b"".join(DELTA),
        ),
    ),
    "image": Reader(check_image, (NEW_IMAGE, OLD_IMAGE)),
    "mountinfo": Reader(check_mountinfo, (MOUNTINFO,)),
    "mountstats": Reader(check_mountstats, (MOUNTSTATS,)),
    "http": Reader(check_http, ANSWERS),
    "location": Reader(check_location, (b"https://host:8443/a%20b/", b"http://[::1]:80/x", b"/net/store")),
    "ignored_names": Reader(
        check_ignored_names, ("\n".join(patterns.DEFAULT_IGNORED_NAMES).encode(), b"[b-a]\n[!x]*?")
    ),
    "acl": Reader(check_acl, ACLS),
    "marks": Reader(check_marks, MARKS),
}
#: The readers of JSON objects, and those of lines of text.
OF_JSON = (
    *("generation", "manifest_record", "trace", "detached", "unmounted", "data_image", "lock", "status"),
    "view_releases",
)
OF_BYTES = tuple(name for name in READERS if name not in OF_JSON)


def values_of(name: str) -> list[dict[str, Any]]:
    """Return the samples of a reader of JSON objects as values."""
    return [json.loads(sample) for sample in READERS[name].samples]
