"""Unreachable file servers, memory, and trials of features that leave no trace."""

from __future__ import annotations

import codecs
import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import probe
from ansible_collections.renderfarm.overlay.tests.kernel import support

NOBODY = 65534
PR_SET_DUMPABLE = 4
LIMIT = 1.5


@contextmanager
def dead_server(path: Path, reads: bool) -> Iterator[None]:
    """Mount a FUSE file system that never answers, like an unreachable file server.

    Without ``reads`` it takes no request, and a waiting process can be killed. With ``reads`` it takes requests and does not answer, and a
    waiting process cannot be killed.
    """
    path.mkdir(parents=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % fd
    syscalls.mount(b"dead", os.fsencode(path), b"fuse", 0, options)
    reader = 0
    try:
        if reads:
            reader = os.fork()
            if reader == 0:
                _answer_only_init(fd)
        yield
    finally:
        # Closing the device ends all requests.
        if reader:
            os.kill(reader, signal.SIGKILL)
            os.waitpid(reader, 0)
        os.close(fd)
        support.unmount_all(path)


def _answer_only_init(fd: int) -> None:
    """Answer FUSE_INIT (include/uapi/linux/fuse.h), then take requests and answer none."""
    try:
        request = os.read(fd, 1 << 20)
        unique = request[8:16]
        answer = (7).to_bytes(4, "little") + (31).to_bytes(4, "little") + bytes(56)
        os.write(fd, (16 + len(answer)).to_bytes(4, "little") + bytes(4) + unique + answer)
        while True:
            os.read(fd, 1 << 20)
    finally:
        os._exit(0)


def children_of_modules() -> set[str]:
    """Return the IDs of orphaned processes that run a module."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if support.MODULES.encode() in command and parent == "1":
            found.add(pid)
    return found


def calls(area: Path, dead: Path) -> dict[str, Callable[[], support.Ran]]:
    """Return calls of modules that access a dead server, by name."""
    root, store = str(dead), str(area / "store")
    limit: dict[str, Any] = {"timeout": LIMIT}
    return {
        "scan": lambda: support.module("release_manifest", root=root, release="a/1", store=store, **limit),
        "list": lambda: support.module("release_info", root=root, **limit),
        "store": lambda: support.module("release_info", store=root, **limit),
        "decide": lambda: support.module("view_releases", name="v", root=root, store=store, releases=[], **limit),
        "record": lambda: support.module("view_releases", name="v", root=store, store=root, releases=[], **limit),
        "build": lambda: support.module(
            "metadata_layer",
            name="v",
            state_dir=str(area / "state"),
            releases=[{"manifest": f"{root}/a/1.dump.gz"}],
            **limit,
        ),
        "mount": lambda: support.module(
            "overlay_mount", path=str(area / "view"), lower=[str(area / "layer")], data=[root], **limit
        ),
    }


@pytest.mark.parametrize(
    ("what", "reads"),
    [("scan", False), ("store", False), ("record", False), ("scan", True), ("build", True), ("mount", True)],
)
def test_an_unreachable_server_ends_in_a_message_within_the_time_limit(area: Path, what: str, reads: bool) -> None:
    (area / "layer").mkdir()
    left_before = children_of_modules()
    with dead_server(area / "dead", reads):
        started = time.monotonic()
        ran = calls(area, area / "dead")[what]()
        took = time.monotonic() - started
        named = f"No answer from the file server of {area}/dead (dead): check the server"
        assert f"gave up: no progress for 1.5 seconds. {named}" in ran.message
        assert took < LIMIT + 8
        assert support.live(area / "view") is None
        if not reads:
            assert children_of_modules() == left_before
    # When the server is unmounted, no process is left waiting for it.
    limit = time.monotonic() + 60
    while children_of_modules() != left_before and time.monotonic() < limit:
        time.sleep(0.01)
    assert children_of_modules() == left_before
    assert list((area / "store").iterdir()) == []


def test_the_release_on_an_unreachable_server_is_named(area: Path) -> None:
    for number in (1, 3):
        support.make_small_release(area / "root" / "tool" / str(number), "one")
    with dead_server(area / "root" / "tool" / "2", reads=False):
        ran = support.module(
            "release_manifest",
            root=str(area / "root"),
            releases=[f"tool/{number}" for number in (1, 2, 3)],
            store=str(area / "store"),
            timeout=LIMIT,
        )
    named = f"No answer from the file server of {area}/root/tool/2 (dead)"
    assert f"gave up: no progress for 1.5 seconds at release tool/2. {named}" in ran.message


def test_work_with_progress_may_take_longer_than_its_limit() -> None:
    def work(progress: deadline.Progress) -> str:
        for _ in range(15):
            time.sleep(0.1)
            progress()
        return "done"

    assert deadline.run(work, 0.6) == "done"


def test_work_without_progress_is_given_up_at_its_limit() -> None:
    started = time.monotonic()
    with pytest.raises(deadline.TimeLimitError, match=r"no progress for 0\.3 seconds"):
        deadline.run(lambda _progress: time.sleep(60), 0.3)
    assert time.monotonic() - started < 30


def fail_with(error: BaseException) -> Callable[[deadline.Progress], None]:
    def work(_progress: deadline.Progress) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (OverlayError("a reason"), OverlayError, "a reason"),
        (FileNotFoundError(2, "No such file", "/x \udcff"), FileNotFoundError, "No such file"),
        (ValueError("unforeseen"), deadline.WorkError, "ValueError: unforeseen"),
        (MemoryError(), deadline.WorkError, "MemoryError"),
        (SystemExit(3), OverlayError, "was killed"),
    ],
)
def test_an_error_in_the_child_process_is_raised_in_the_parent(
    error: BaseException, expected: type[Exception], said: str
) -> None:
    with pytest.raises(expected, match=said) as caught:
        deadline.run(fail_with(error), 10)
    if isinstance(error, OSError):
        assert isinstance(caught.value, OSError)
        assert (caught.value.errno, caught.value.filename) == (error.errno, error.filename)


def test_killed_work_is_an_error() -> None:
    with pytest.raises(OverlayError, match=r"was killed \(wait status 9\)"):
        deadline.run(lambda _progress: os.kill(os.getpid(), signal.SIGKILL), 10)


def test_a_large_result_is_complete() -> None:
    text = ".=" * 5_000_000
    assert deadline.run(lambda _progress: text, 10) == text


# ---- memory


def peak(work: Callable[[], object]) -> int:
    """Return the peak memory, in KiB, of a child process that does some work."""

    def measured(_progress: deadline.Progress) -> int:
        work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    return deadline.run(measured, 100)


def many(root: Path, count: int) -> str:
    """Create a release of files of one byte, a hundred in each directory; return its name."""
    name = f"many/{count}"
    for number in range(count // 100):
        directory = root / name / f"{number:04d}"
        directory.mkdir(parents=True)
        for index in range(100):
            os.close(os.open(directory / f"{index}", os.O_CREAT | os.O_WRONLY))
            os.truncate(directory / f"{index}", 1)
    return name


def test_memory_does_not_grow_with_the_number_of_files(area: Path) -> None:
    scans, builds = {}, {}
    root, store = area / "root", area / "store"
    for count in (5_000, 50_000):
        name = many(root, count)
        scans[count] = peak(partial(support.scanned, store, root, name))
        placement = support.scanned(store, root, name)
        builds[count] = peak(partial(support.build, area / f"state{count}", [placement]))
    # A list of the entries of 45,000 more files would take over 20 MB.
    assert scans[50_000] - scans[5_000] < 3_000
    assert builds[50_000] - builds[5_000] < 3_000


# ---- features


def host() -> tuple[bytes, list[set[str]]]:
    """Return what trials could leave: the mounts, and the directories named like a feature in the places of trials."""
    places = [set(os.listdir(place)) & set(probe.TRIALS) for place in ("/tmp", "/var/tmp", "/run", "/mnt")]
    return Path("/proc/self/mountinfo").read_bytes(), places


def test_all_features_are_found_and_the_trials_leave_no_trace() -> None:
    before = host()
    features = deadline.run(lambda _progress: probe.probe(), 60)
    assert host() == before
    missing = {name: feature.detail for name, feature in features.items() if not feature.supported}
    # No released kernel does this.
    assert set(missing) == {"kernel_seal"}, missing
    assert set(features) == set(probe.TRIALS)


def test_without_root_features_are_tried_in_a_user_namespace() -> None:
    # Loaded now, since others may be unable to read the files of Python.
    codecs.lookup("ascii")

    def as_nobody(_progress: deadline.Progress) -> dict[str, probe.Feature]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        # A program that a user starts is dumpable; one that changed its uid is not.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        return probe.probe()

    before = host()
    features = deadline.run(as_nobody, 60)
    assert host() == before
    assert features["overlay"].supported
    assert features["data_only_userxattr"].supported, features["data_only_userxattr"].detail
    assert "in a user namespace" in features["data_only_userxattr"].detail
    # Trusted xattrs need the initial user namespace.
    assert features["data_only"].supported is False


def test_overlay_info_reports_features_and_the_layer_file_system(disks: dict[str, Path]) -> None:
    before = host()
    fits = {}
    for kind in ("xfs", "ext4-256", "ext4-512", "tmpfs"):
        info = support.module("overlay_info", state_dir=str(disks[kind] / "not" / "yet")).ok
        assert info["recommended_strategy"] == "data_only"
        assert info["layer_filesystem"]["path"] == str(disks[kind])
        assert info["layer_filesystem"]["type"] == kind.partition("-")[0]
        fits[kind] = info["layer_filesystem"]["attributes_fit"]
        assert bool(info["layer_filesystem"]["advice"]) == (not fits[kind])
    assert fits == {"xfs": True, "ext4-256": False, "ext4-512": True, "tmpfs": True}
    assert host() == before


def test_no_process_of_a_module_is_left() -> None:
    assert children_of_modules() == set()
