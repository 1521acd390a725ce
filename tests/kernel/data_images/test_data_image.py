"""Data images have the content of the release, are built once, and never hold what is kept from some users."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import published, trace_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import file_digest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import TracedFile, trace_of
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.injecting import Fault, Injector
from ansible_collections.renderfarm.overlay.tests.kernel.test_modules import four_runs

pytestmark = pytest.mark.usefixtures("with_programs")

RELEASE = "tool/1.0"


class Site:
    """A software root with one release, its stores, and the options of the module for them."""

    def __init__(self, area: Path) -> None:
        self.area = area
        self.root = area / "root"
        self.top = self.root / RELEASE
        self.store = area / "store"
        self.images = area / "store" / "images"
        self.staging = area / "staging"
        self.top.mkdir(parents=True)

    def add(
        self, name: str | bytes, content: bytes, mode: int = 0o644, mtime_ns: int = 1_600_000_000_123_456_789
    ) -> Path:
        """Add a file to the release."""
        path = Path(os.fsdecode(os.path.join(os.fsencode(self.top), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        support.write(path, content, mode, mtime_ns)
        return path

    def scan(self, **options: Any) -> None:
        support.module("release_manifest", root=str(self.root), release=RELEASE, store=str(self.store), **options).ok  # noqa: B018

    def trace(self, *files: tuple[bytes, int, int]) -> None:
        """Add a trace of files, each with its opens and starts."""
        trace_files.add(str(self.store), trace_of(RELEASE, 100, [TracedFile(*one) for one in files]))

    def options(self, select: str = "everything", **more: Any) -> dict[str, Any]:
        return {
            "root": str(self.root),
            "store": str(self.store),
            "image_store": str(self.images),
            "release": RELEASE,
            "staging": str(self.staging),
            "select": select,
            **more,
        }

    def build(self, select: str = "everything", **more: Any) -> dict[str, Any]:
        return support.module("data_image", **self.options(select, **more)).ok

    def left(self) -> list[str]:
        """Return the names in the staging directory."""
        return sorted(os.listdir(self.staging)) if self.staging.exists() else []

    def published(self) -> list[str]:
        place = self.images / ".data" / RELEASE
        return sorted(os.listdir(place)) if place.exists() else []


@pytest.fixture
def site(area: Path) -> Site:
    return Site(area)


@contextlib.contextmanager
def mounted(image: str, area: Path) -> Iterator[Path]:
    """Mount an image while the block runs."""
    place = area / "mounted"
    place.mkdir(exist_ok=True)
    support.command("mount", "-t", "erofs", "-o", "ro,loop", image, place)
    try:
        yield place
    finally:
        support.command("umount", place)


def contents(top: Path | bytes, skip: Sequence[bytes] = ()) -> dict[bytes, tuple[bytes, int]]:
    """Map the path of each file with content, relative to the top, to its content and mtime."""
    found = {}
    base = os.fsencode(top)
    for directory, _directories, names in os.walk(base):
        for name in names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, base)
            if stat.S_ISREG(status.st_mode) and status.st_size and relative not in skip:
                with open(path, "rb") as stream:
                    found[relative] = (stream.read(), status.st_mtime_ns)
    return found


def test_the_content_of_an_image_equals_that_of_the_release(
    area: Path, root: Path, store: Path, odd: Placement
) -> None:
    assert odd.record.release == "odd/1"
    images = area / "images"
    images.mkdir(mode=0o700)
    done = support.module(
        "data_image",
        root=str(root),
        store=str(store),
        image_store=str(images),
        release="odd/1",
        select="globs",
        globs=["names", "times", "special/[!s]*", "special/s[!p]*", "special/sparse-1M", "bulk/**/package_00?"],
        staging=str(area / "staging"),
    ).ok
    found = {
        path: content
        for path, content in contents(root / "odd" / "1", skip=(b"special/sparse-3G",)).items()
        if not path.startswith(b"bulk") or b"/package_00" in path
    }
    before_1970 = {path for path, (_content, mtime_ns) in found.items() if mtime_ns < 0}
    with mounted(done["image"], area) as place:
        got = contents(place / "odd" / "1")
    assert set(got) == set(found) - before_1970
    assert [path for path in got if got[path][0] != found[path][0]] == []
    # Files with equal content have the mtime of the first one.
    copies = Counter(content for content, _mtime_ns in got.values())
    assert [path for path in got if copies[got[path][0]] == 1 and got[path] != found[path]] == []
    assert done["left_out"].get("unstorable", {"count": 0})["count"] == len(before_1970)
    assert not done["complete"]


def test_a_view_reads_from_the_image_without_the_release(site: Site) -> None:
    site.add("lib/a", b"content of a")
    site.scan()
    done = site.build()
    layer = support.module(
        "metadata_layer",
        name="v",
        format="directory",
        state_dir=str(site.area / "state"),
        releases=[{"manifest": str(site.store / f"{RELEASE}.dump.gz")}],
    ).ok["layer"]
    shutil.rmtree(site.top)
    with mounted(done["image"], site.area) as place:
        view = site.area / "view"
        view.mkdir()
        layers = f"ro,lowerdir={layer}::{place}::{site.root}"
        support.command("mount", "-t", "overlay", "-o", layers, "overlay", view)
        assert (view / RELEASE / "lib" / "a").read_bytes() == b"content of a"
        support.command("umount", view)


@pytest.mark.parametrize("select", ["everything", "trace", "globs", "list"])
def test_a_second_run_changes_nothing_and_reads_nothing(site: Site, select: str) -> None:
    site.add("lib/a", b"a" * 5000)
    site.add("lib/b", b"b" * 5000)
    site.scan()
    site.trace((b"lib/a", 3, 2))
    more: dict[str, Any] = {"globs": {"globs": ["lib/*"]}, "list": {"files": ["lib/a"]}}.get(select, {})
    done = four_runs("data_image", **site.options(select, **more))
    assert done["files"] == {"everything": 2, "globs": 2}.get(select, 1)
    assert site.left() == ["lock"]
    with watched(site.top / "lib", site.top) as events:
        again = site.build(select, **more)
        assert events() == []
    assert {**again, "actions": 0, "changed": 0, "diff": 0} == {**done, "actions": 0, "changed": 0, "diff": 0}


@contextlib.contextmanager
def watched(*directories: Path) -> Iterator[Any]:
    """Watch opens in directories with inotify(7) while the block runs; provide a function that returns the names of opened files."""
    watch = subprocess.Popen(
        ["python3", "-c", WATCH, *map(str, directories)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert watch.stdin
    assert watch.stdout
    assert watch.stdout.readline() == "ready\n"

    def events() -> list[str]:
        assert watch.stdin
        assert watch.stdout
        watch.stdin.close()
        return watch.stdout.read().split()

    with watch:
        yield events


WATCH = """
import ctypes, os, select, struct, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
for directory in sys.argv[1:]:
    assert libc.inotify_add_watch(fd, directory.encode(), 0x20) > 0
print("ready", flush=True)
sys.stdin.read()
while select.select([fd], [], [], 0)[0]:
    events = os.read(fd, 65536)
    while events:
        length = struct.unpack("iIII", events[:16])[3]
        print(events[16 : 16 + length].rstrip(b"\\0").decode() or ".")
        events = events[16 + length :]
"""


def test_reading_a_release_is_noticed(site: Site) -> None:
    site.add("lib/a", b"a")
    with watched(site.top / "lib") as events:
        (site.top / "lib" / "a").read_bytes()
        assert events() == ["a"]


def test_two_releases_of_equal_files_give_equal_images(area: Path) -> None:
    digests = []
    for turn, order in enumerate((1, -1)):
        place = area / f"{turn}"
        place.mkdir()
        site = Site(place)
        site.store.mkdir()
        for name in [*support.AWKWARD_NAMES, *(b"many/%d" % number for number in range(300))][::order]:
            site.add(name if name.startswith(b"many") else b"names/" + name, name * 50, mtime_ns=10**18 + len(name))
        os.link(site.top / "many" / "7", site.top / "other name")
        os.utime(site.top, ns=(5, turn))
        site.scan()
        digests.append(site.build(jobs=1 + turn * 7)["digest"])
    assert digests[0] == digests[1]


def test_the_hottest_files_come_first_until_the_budget_is_spent(site: Site) -> None:
    for name in "abcdef":
        site.add(name, name.encode() * 1000)
    site.add("large", b"x" * 5000)
    site.scan()
    site.trace((b"large", 9, 9), (b"a", 1, 1), (b"b", 9, 1), (b"c", 9, 2), (b"d", 9, 1), (b"gone", 1, 1))
    done = site.build("trace", budget=3000)
    with mounted(done["image"], site.area) as place:
        assert sorted(os.listdir(place / RELEASE)) == ["b", "c", "d"]
    assert done["left_out"] == {
        "budget": {"count": 2, "paths": ["large", "a"]},
        "unknown": {"count": 1, "paths": ["gone"]},
    }
    assert not done["complete"]


def test_hard_links_and_equal_files_are_stored_once(site: Site) -> None:
    content = os.urandom(1 << 20)
    first = site.add("a/first", content)
    (site.top / "b").mkdir()
    os.link(first, site.top / "b" / "link")
    site.add("b/equal", content)
    site.add("b/newer", content, mtime_ns=1_700_000_000 * 10**9)
    site.scan()
    done = site.build()
    assert (done["files"], done["bytes"]) == (3, 3 << 20)
    assert done["bytes_on_disk"] < (1 << 20) * 1.1
    with mounted(done["image"], site.area) as place:
        found = contents(place / RELEASE)
        assert set(found) == set(contents(site.top))
        assert {one for one, _mtime in found.values()} == {content}


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_file_that_changed_or_vanished_is_left_out_and_named(site: Site, name: str) -> None:
    site.add("a", b"a" * 100)
    site.add("b", b"b" * 100)
    site.add("c", b"c" * 100)
    site.scan(checksum="sha256")
    if name == "a":
        (site.top / "a").unlink()
        expected = {"missing": {"count": 1, "paths": ["a"]}}
    else:
        # Only the SHA-256 tells this one.
        site.add("b", b"x" * 100)
        expected = {"changed": {"count": 1, "paths": ["b"]}}
    done = support.module("data_image", **site.options())
    assert done.ok["left_out"] == expected
    assert (done.ok["files"], done.ok["complete"]) == (2, False)
    assert any("not in the data image" in str(warning) for warning in done.ok["warnings"])
    with mounted(done.ok["image"], site.area) as place:
        assert sorted(os.listdir(place / RELEASE)) == sorted({"a", "b", "c"} - {name})
    assert site.build()["changed"] is False


def test_a_file_that_changes_while_it_is_read_is_left_out(site: Site) -> None:
    site.add("large", b"x" * 3_000_000)
    site.add("small", b"s")
    site.scan()
    with support.forked_module("data_image", site.options(bandwidth=1_000_000, jobs=2)) as child:
        child.go()
        deadline = time.monotonic() + 20
        # A part of the file has been read as soon as this file has content.
        while not any(path.stat().st_size for path in site.staging.glob("*/tree/tool/1.0/*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with open(site.top / "large", "r+b") as stream:
            stream.write(b"new")
        done = child.finish().ok
    assert done["left_out"] == {"changed": {"count": 1, "paths": ["large"]}}
    assert done["files"] == 1


def test_a_file_replaced_by_a_symbolic_link_is_not_followed(site: Site) -> None:
    secret = site.area / "secret"
    support.write(secret, b"s" * 100, mtime_ns=1_600_000_000_123_456_789)
    site.add("lib/a", b"a" * 100)
    site.add("lib/b", b"b" * 100)
    site.add("other/c", b"c" * 100)
    site.scan()
    (site.top / "lib" / "a").unlink()
    (site.top / "lib" / "a").symlink_to(secret)
    os.rename(site.top / "other", site.area / "moved")
    (site.top / "other").symlink_to(site.area / "moved")
    done = site.build()
    assert done["left_out"] == {"missing": {"count": 2, "paths": ["lib/a", "other/c"]}}


def test_the_bandwidth_is_limited(site: Site) -> None:
    for number in range(4):
        site.add(f"{number}", os.urandom(500_000))
    site.scan()
    started = time.monotonic()
    site.build(bandwidth=1_000_000)
    assert 1.5 < time.monotonic() - started < 8


ACL = struct.pack(
    "<I" + "HHI" * 5,
    2,
    *(support.OWNER, 6, support.NO_ID),
    *(support.USER, 0, 12345),
    *(support.OWNING_GROUP, 4, support.NO_ID),
    *(support.MASK, 4, support.NO_ID),
    *(support.OTHER, 4, support.NO_ID),
)


@pytest.mark.parametrize("private_store", [False, True])
def test_what_is_kept_from_some_users_is_only_in_a_store_of_root(site: Site, private_store: bool) -> None:
    site.add("open", b"open")
    site.add("closed", b"closed", 0o640)
    site.add("not for its group", b"group", 0o604)
    site.add("inner/deep/file", b"inner")
    os.chmod(site.top / "inner", 0o750)
    os.setxattr(site.add("denied", b"denied"), "system.posix_acl_access", ACL)
    site.scan()
    site.images.mkdir(mode=0o700 if private_store else 0o755)
    done = site.build()
    if private_store:
        assert (done["files"], done["complete"], done["left_out"]) == (5, True, {})
        assert os.stat(done["image"]).st_mode & 0o777 == 0o600
    else:
        assert done["left_out"]["private"]["count"] == 4
        assert (done["files"], done["complete"]) == (1, False)
        assert os.stat(done["image"]).st_mode & 0o777 == 0o644
        assert b"closed" not in Path(done["image"]).read_bytes()


def test_a_release_that_some_users_cannot_reach_is_private(site: Site) -> None:
    site.add("a", b"a")
    site.scan()
    os.chmod(site.root / "tool", 0o700)
    done = site.build()
    assert (done["image"], done["left_out"]["private"]["count"]) == (None, 1)
    assert done["changed"] is False


def test_a_full_disk_publishes_nothing(site: Site) -> None:
    for number in range(8):
        site.add(f"{number}", os.urandom(1 << 20))
    site.scan()
    small = site.area / "small"
    small.mkdir()
    support.command("mount", "-t", "tmpfs", "-o", "mode=0755,size=7m", "tmpfs", small)
    refused = support.module("data_image", **site.options(staging=str(small / "s")))
    assert "has " in refused.message
    assert "needs 8388608" in refused.message
    support.command("mount", "-o", "remount,size=9m", small)
    refused = support.module("data_image", **site.options(staging=str(small / "s")))
    assert "no room to build" in refused.message
    assert os.listdir(small / "s") == ["lock"]
    assert site.published() == []
    store = site.area / "full"
    store.mkdir()
    support.command("mount", "-t", "tmpfs", "-o", "mode=0755,size=4m", "tmpfs", store)
    refused = support.module("data_image", **site.options(image_store=str(store)))
    assert "No space left" in refused.message
    assert list((store / ".data" / RELEASE).iterdir()) == []
    assert site.build()["files"] == 8
    assert site.left() == ["lock"]


def test_a_killed_run_leaves_nothing_that_a_later_one_takes_wrongly(site: Site) -> None:
    for number in range(60):
        site.add(f"lib/{number}", os.urandom(20_000) if number % 3 else b"equal" * 4_000)
    site.scan()
    wanted = site.build()
    os.rename(site.images, site.area / "reference")
    kills = 0
    for call in ("openat2", "utimensat", "rename", "renameat", "unlink", "fsync", "execve", "linkat"):
        for number in (1, 15):
            injector = Injector([call], Fault(call, number))
            with (
                support.forked_module("data_image", site.options(), injector.enter) as child,
                injector.serving(),
            ):
                child.go()
                child.finish()
            kills += injector.injected
            found = published.find(str(site.images), RELEASE, "everything")
            if found:
                assert file_digest(published.image_path(str(site.images), found)) == wanted["digest"]
            done = site.build()
            assert (done["digest"], done["left_out"]) == (wanted["digest"], {})
            assert site.left() == ["lock"]
            shutil.rmtree(site.images)
    assert kills >= 6, kills


def test_an_interrupted_run_continues(site: Site) -> None:
    for number in range(10):
        site.add(f"lib/{number}", os.urandom(200_000))
    site.scan()
    with support.forked_module("data_image", site.options(bandwidth=500_000, jobs=1)) as child:
        child.go()
        deadline = time.monotonic() + 20
        # The last file that is there may be incomplete.
        while len(list(site.staging.glob("*/tree/tool/1.0/lib/*"))) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child.pid, 9)
    with watched(site.top / "lib") as events:
        done = site.build()
        opened = set(events())
    assert done["files"] == 10
    assert len(opened - {"."}) <= 6
    with mounted(done["image"], site.area) as place:
        assert contents(place / RELEASE) == contents(site.top)


def test_images_of_other_selections_are_pruned(site: Site) -> None:
    for number in range(6):
        site.add(f"{number}", b"%d" % number * 5000)
    site.scan()
    everything = site.build()
    built = [site.build("list", files=[f"{number}"], keep=2) for number in range(5)]
    place = Path(everything["image"]).parent
    assert sorted(path.name for path in place.glob("*.erofs")) == sorted(
        os.path.basename(one["image"]) for one in (everything, *built[2:])
    )
    assert site.build("list", files=["4"], keep=0)["actions"] != []
    assert len(list(place.glob("*.erofs"))) == 2
    gone = four_runs("data_image", **site.options(state="absent"))
    assert len(gone["actions"]) == 2
    assert not (site.images / ".data" / "tool").exists()


def test_an_image_without_its_record_is_published_again(site: Site) -> None:
    site.add("a", b"a")
    site.scan()
    done = site.build()
    os.truncate(done["image"], 5)
    assert published.find(str(site.images), RELEASE, "everything") is None
    again = site.build()
    assert again["digest"] == done["digest"] == file_digest(again["image"])


def test_two_hosts_publish_one_image(site: Site) -> None:
    for number in range(50):
        site.add(f"{number}", os.urandom(10_000))
    site.scan()
    with (
        support.forked_module("data_image", site.options()) as one,
        support.forked_module("data_image", site.options(staging=str(site.area / "other"))) as other,
    ):
        one.go()
        other.go()
        results = [one.finish().ok, other.finish().ok]
    assert results[0]["digest"] == results[1]["digest"]
    assert len(list(Path(results[0]["image"]).parent.glob("*.erofs"))) == 1


def test_zstd_is_used_where_program_and_kernel_can(site: Site) -> None:
    site.add("a", b"text of the file\n" * 10_000)
    site.scan()
    done = four_runs("data_image", **site.options(compression="zstd"))
    with mounted(done["image"], site.area) as place:
        assert contents(place / RELEASE) == contents(site.top)
    assert site.build(compression="none")["bytes_on_disk"] > 170_000 > done["bytes_on_disk"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"select": "list"}, "files"),
        ({"select": "list", "files": ["nothing", "lib"]}, "no regular files nothing, lib"),
        ({"select": "list", "files": ["../up"]}, "'..'"),
        ({"select": "globs", "globs": [""]}, "is empty"),
        ({"select": "globs", "files": ["a"], "globs": ["a"]}, "files is for select=list"),
        ({"select": "trace"}, "has no trace"),
        ({"budget": -1}, "budget has to be"),
        ({"jobs": 0}, "jobs has to be"),
        ({"bandwidth": 0}, "bandwidth has to be"),
        ({"release": "tool/2.0"}, "there is no such manifest"),
        ({"image_store": "/nowhere/images"}, "does not exist"),
        ({"staging": "relative"}, "staging must be an absolute path"),
    ],
)
def test_a_refusal_names_the_option_and_leaves_nothing(site: Site, more: dict[str, Any], words: str) -> None:
    site.add("lib/a", b"a")
    site.scan()
    assert words in support.module("data_image", **site.options(**more)).message
    assert (site.left(), site.published()) == ([], [])


def test_a_staging_directory_that_others_can_enter_is_refused(site: Site) -> None:
    site.add("a", b"a")
    site.scan()
    site.staging.mkdir(mode=0o755)
    assert "chmod it to 0700" in support.module("data_image", **site.options()).message


def test_staged_files_of_an_earlier_boot_are_read_again(site: Site) -> None:
    site.add("a", b"a" * 100)
    site.scan()
    with support.forked_module("data_image", site.options(bandwidth=30)) as child:
        child.go()
        while not list(site.staging.glob("*/tree/tool/1.0")):
            time.sleep(0.01)
        os.kill(child.pid, 9)
    (place,) = site.staging.glob("*/boot")
    place.write_text("another boot\n")
    left = site.staging / ("5" * 16)
    shutil.copytree(place.parent, left)
    foreign = site.staging / "own directory"
    shutil.copytree(place.parent, foreign)
    staged = place.parent / "tree" / RELEASE / "a"
    support.write(staged, b"\0" * 100, mtime_ns=1_600_000_000_123_456_789)
    done = site.build()
    with mounted(done["image"], site.area) as mount:
        assert contents(mount / RELEASE) == contents(site.top)
    assert site.left() == ["lock", foreign.name]
