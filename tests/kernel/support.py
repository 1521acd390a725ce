"""Helpers of the kernel tests: file systems, a release with every oddity, building and mounting views, comparing trees."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.directory_layer import BuildReport
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, top_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, images, mounts, uppers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import plan_mounted
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, Writable, mount_spec
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, manifest_writer
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, view_paths, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import module_server

#: cap_net_raw=ep, as setcap(8) writes it.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
GIGABYTE = 1 << 30

NO_ID = (1 << 32) - 1
#: Tags of ACL entries (linux/posix_acl.h).
OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
#: The directory of mkcomposefs and mkfs.erofs, which `make` sets up.
PROGRAMS = Path(__file__).resolve().parents[2] / ".build" / "images" / "bin"
MODULES = "ansible_collections.renderfarm.overlay.plugins.modules."


def command(*argv: str | Path) -> str:
    """Run a program, which must succeed, and return its output."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}"
    return done.stdout


@contextlib.contextmanager
def filesystem(area: Path, kind: str) -> Iterator[Path]:
    """Mount a new file system while the block runs: ``tmpfs``, ``xfs``, or ``ext4-N`` with inodes of N bytes."""
    place = area / kind
    place.mkdir()
    if kind == "tmpfs":
        command("mount", "-t", "tmpfs", "-o", "mode=0755,size=2g,nr_inodes=0", "tmpfs", place)
    else:
        image = area / f"{kind}.image"
        with image.open("wb") as stream:
            stream.truncate(GIGABYTE)
        if kind == "xfs":
            command("mkfs.xfs", "-q", image)
        else:
            command("mkfs.ext4", "-q", "-I", kind.partition("-")[2], "-N", "120000", image)
        command("mount", "-o", "loop", image, place)
        image.unlink()
    try:
        yield place
    finally:
        command("umount", "--lazy", place)


# ---- releases


def write(path: Path | bytes, content: bytes = b"", mode: int = 0o644, mtime_ns: int | None = None) -> None:
    """Write a file with exactly this mode and, if given, this mtime in nanoseconds."""
    with open(path, "wb") as stream:
        stream.write(content)
        os.fchmod(stream.fileno(), mode)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))


AWKWARD_NAMES = [
    b" ",
    b"  leading and trailing  ",
    b"-",
    b"--help",
    b"a=b",
    b"=",
    b"back\\slash",
    b"\\x41",
    b"\\",
    b"new\nline",
    b"\n",
    b"tab\tand\rreturn",
    b"#hash",
    b"'single' \"double\"",
    b"$(date) `date` ${x} {{ jinja }}",
    b"*?[a-z]",
    b"comma,colon:semi;",
    b"\x01\x1b[31m\x7f",
    b"not utf-8 \xff\xfe\x80",
    "ünïcödé 日本 \U0001f680".encode(),
    "e\u0301 and é".encode(),
    b"x" * 255,
    "日".encode() * 85,
    b".hidden",
    b"...",
    b".wh.whiteout",
    b"CON",
]


def make_release(top: Path, outside: Path) -> None:
    """Make a release of more than 20,000 files that has every oddity; ``outside`` is a directory on the same file system."""
    top.mkdir(parents=True)
    for number in range(105):
        directory = top / "bulk" / "lib" / "python3.13" / "site-packages" / f"package_{number:03d}"
        directory.mkdir(parents=True)
        for index in range(200):
            write(directory / f"file{index}", b"%d/%d\n" % (number, index), mtime_ns=1_600_000_000_123_456_789 + index)
    _make_names(os.fsencode(top) + b"/names")
    _make_special(os.fsencode(top) + b"/special", os.fsencode(outside))
    _make_times(top / "times")
    for directory_name, _directories, _files in os.walk(top, topdown=False):
        if not directory_name.endswith("/times"):
            os.utime(directory_name, ns=(1_500_000_000_000_000_007, 1_500_000_000_000_000_007))


def _make_names(top: bytes) -> None:
    """Make files, directories and symbolic links with awkward names, and a deep tree."""
    os.mkdir(top)
    for directory in (b"files", b"directories", b"links", b"empty"):
        os.mkdir(os.path.join(top, directory))
    for name in AWKWARD_NAMES:
        write(os.path.join(top, b"files", name), name * 3)
        write(os.path.join(top, b"empty", name))
        os.mkdir(os.path.join(top, b"directories", name))
        write(os.path.join(top, b"directories", name, name), name)
        os.symlink(name, os.path.join(top, b"links", name))
    deep = top + b"/deep"
    os.mkdir(deep)
    for level in range(45):
        deep += b"/level %d" % level
        os.mkdir(deep)
        write(deep + b"/file", deep)


def _make_special(top: bytes, outside: bytes) -> None:
    """Make files with special modes, owners, xattrs, sizes, hard links and link targets."""
    os.mkdir(top)

    def path(name: bytes) -> bytes:
        return os.path.join(top, name)

    for mode in (0o000, 0o400, 0o111, 0o444, 0o640, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711):
        write(path(b"mode-%o" % mode), b"mode", mode)
    for mode in (0o000, 0o500, 0o700, 0o1777, 0o2775, 0o3777):
        os.mkdir(path(b"directory-%o" % mode))
        write(path(b"directory-%o/file" % mode), b"inside")
        os.chmod(path(b"directory-%o" % mode), mode)
    os.mkdir(path(b"empty-directory"))
    for uid, gid in ((1, 2), (65534, 65534), (4_000_000_000, 4_000_000_001)):
        write(path(b"owner-%d" % uid), b"owned")
        os.chown(path(b"owner-%d" % uid), uid, gid)
        os.symlink(b"x", path(b"owned-link-%d" % uid))
        os.chown(path(b"owned-link-%d" % uid), uid, gid, follow_symlinks=False)
        os.mkdir(path(b"owned-directory-%d" % uid))
        os.chown(path(b"owned-directory-%d" % uid), uid, gid)
    write(path(b"setuid-of-another"), b"suid", 0o4755)
    os.chown(path(b"setuid-of-another"), 12, 13)
    os.chmod(path(b"setuid-of-another"), 0o6755)
    write(path(b"capable"), b"ping", 0o755)
    os.setxattr(path(b"capable"), "security.capability", CAPABILITY)
    write(path(b"capable-and-empty"), b"", 0o755)
    os.setxattr(path(b"capable-and-empty"), "security.capability", CAPABILITY)
    _make_acls(top)
    for name, size in ((b"sparse-3G", 3 * GIGABYTE + 1), (b"sparse-1M", 1 << 20)):
        with open(path(name), "wb") as stream:
            stream.write(b"head")
            stream.seek(size // 2)
            stream.write(b"middle")
            stream.truncate(size)
    write(path(b"large"), os.urandom(1 << 20) * 8)
    write(path(b"one-block"), b"b" * 4096)
    # Hard links: in two directories, of an empty file, of a symbolic link, and to a name outside the release.
    os.mkdir(path(b"z"))
    for name in (b"linked", b"linked-empty"):
        write(path(name), b"linked" if name == b"linked" else b"")
        for further in (b"a-" + name, b"z/" + name, b"z/again \n" + name):
            os.link(path(name), path(further))
    os.symlink(b"linked", path(b"linked-link"))
    os.link(path(b"linked-link"), path(b"z/linked-link"), follow_symlinks=False)
    for name in (b"shared", b"z/shared"):
        write(path(name), b"also outside")
        os.link(path(name), os.path.join(outside, name.replace(b"/", b"-")))
    os.link(path(b"shared"), path(b"z/shared-twice"))
    for name, target in (
        (b"dangling", b"no/such/file"),
        (b"absolute", b"/etc/passwd"),
        (b"up", b"../../../.."),
        (b"long", b"x/" * 500),
        (b"dash", b"-"),
        (b"spaced", b" a b\n\\ \xff="),
        (b"itself", b"itself"),
    ):
        os.symlink(target, path(b"link-" + name))


def _make_acls(top: bytes) -> None:
    """Make files and directories with access and default ACLs."""
    access = acl(
        (OWNER, 7), (USER, 4, 5001), (USER, 6, 5002), (OWNING_GROUP, 0), (GROUP, 5, 6001), (MASK, 5), (OTHER, 4)
    )
    masked = acl((OWNER, 6), (OWNING_GROUP, 6), (MASK, 4), (OTHER, 0))
    inherited = acl((OWNER, 7), (OWNING_GROUP, 5), (OTHER, 0))
    for name, value in ((b"acl", access), (b"acl-mask", masked)):
        write(top + b"/" + name, b"with an ACL", 0o755)
        os.setxattr(top + b"/" + name, "system.posix_acl_access", value)
    write(top + b"/acl-empty", b"", 0o600)
    os.setxattr(top + b"/acl-empty", "system.posix_acl_access", access)
    os.setxattr(top + b"/acl-empty", "security.capability", CAPABILITY)
    os.link(top + b"/acl", top + b"/acl-again")
    os.mkdir(top + b"/acl-directory")
    os.setxattr(top + b"/acl-directory", "system.posix_acl_access", access)
    os.setxattr(top + b"/acl-directory", "system.posix_acl_default", access)
    write(top + b"/acl-directory/inherits", b"x", 0o664)
    os.mkdir(top + b"/acl-default")
    os.setxattr(top + b"/acl-default", "system.posix_acl_default", inherited)


#: Mtimes in nanoseconds that tmpfs, XFS and ext4 with large inodes can all hold.
MTIMES = {
    "epoch": 0,
    "before-1970": -1,
    "1950": -631_152_000_000_000_001,
    "nanoseconds": 1_234_567_890_987_654_321,
    "unpadded": 1_234_567_890_000_000_005,
    "2038": 2_147_483_648_000_000_001,
    "2106": 4_294_967_296_500_000_000,
}


def _make_times(top: Path) -> None:
    """Make a file, a symbolic link and a directory with each of MTIMES."""
    top.mkdir()
    for name, mtime_ns in MTIMES.items():
        write(top / name, b"time", mtime_ns=mtime_ns)
        (top / f"{name}-link").symlink_to(name)
        (top / f"{name}-directory").mkdir()
        for kind in ("-link", "-directory"):
            os.utime(top / f"{name}{kind}", ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    os.utime(top, ns=(-1, -1))


def make_small_release(top: Path, word: str) -> None:
    """Make a release of three files."""
    (top / "bin").mkdir(parents=True)
    write(top / "bin" / "tool", b"#!/bin/sh\necho " + word.encode() + b"\n", 0o755)
    write(top / "version", word.encode())
    os.link(top / "version", top / "version-again")
    (top / "latest").symlink_to("bin/tool")


# ---- manifests, layers, mounts


def scanned(store: Path, root: Path, release: str, checksum: bool = False, root_name: str | None = None) -> Placement:
    """Write the manifest of a release, and return the placement of the release at its own path. The store is made if it is missing."""
    store.mkdir(parents=True, exist_ok=True)
    written = manifest_writer.write(str(store), str(root), release, checksum, root_name=root_name)
    place = os.fsencode(release)
    return Placement(manifest_store.manifest_path(str(store), release), written.record, place, place)


def build(
    state_dir: Path,
    placements: Sequence[Placement],
    namespace: str = "trusted",
    name: str = "view",
    builder: Builder | None = None,
    strategy: str = "data_only",
    **more: Any,
) -> tuple[Path, Generation, BuildReport]:
    """Build the layer of a view, an image if there is a builder; return its path, the generation and the report."""
    spec = LayerSpec(name, tuple(placements), "erofs" if builder else "directory", strategy, namespace, **more)
    paths = ViewPaths.of(str(state_dir), name)
    with view_state.locked(paths, 10):
        generation, report = generations.build(paths, spec, builder)
        view_state.make_current(paths, generation.directory, view_state.observe(paths).current)
    return Path(view_paths.layer_path(paths.generation(generation.directory), generation.format)), generation, report


def declared(
    path: Path | bytes,
    lower: Sequence[Path | bytes],
    data: Sequence[Path | bytes] = (),
    read_only: bool = True,
    writable: Writable | None = None,
    strategy: str = "data_only",
    **options: Any,
) -> MountSpec:
    """Return the declaration of an overlay; it is read-only unless there is a ``writable``, or ``read_only`` is false."""
    layers = [os.fsencode(one) for one in lower]
    layers_of_data = [os.fsencode(one) for one in data]
    found = images.among((*layers, *layers_of_data))
    read_only = read_only and writable is None
    return mount_spec(os.fsencode(path), layers, layers_of_data, options, read_only, found, writable, strategy)


def writable(upper: Path | bytes, work: Path | bytes) -> Writable:
    """Return an upper and a work directory for ``declared``."""
    return Writable(os.fsencode(upper), os.fsencode(work))


def image_of(layer: Path | bytes, image: Path | bytes) -> Path:
    """Make an EROFS image of a directory layer."""
    os.makedirs(os.path.dirname(os.fsencode(image)), exist_ok=True)
    subprocess.run(["mkfs.erofs", "--quiet", image, layer], check=True, stdout=subprocess.DEVNULL)
    return Path(os.fsdecode(image))


def live(path: Path | bytes) -> Mount | None:
    """Return the visible mount at a path; None if there is none."""
    return top_mount(namespaces.own_mounts(), os.fsencode(path))


def planned(spec: MountSpec, switch: str = "auto") -> Plan:
    """Return the plan that mounts an overlay as declared."""
    state = mounts.observe(spec.path)
    return plan_mounted(
        spec, state, creating.overlay_defaults(), switch, mounts.can_mount_beneath(), uppers.observe(spec)
    )


def carried_out(spec: MountSpec, switch: str = "auto") -> list[str]:
    """Mount an overlay as declared, check that nothing is left to plan, and return the types of the actions."""
    plan = planned(spec, switch)
    for action in plan:
        apply(action, mounts.HANDLERS)
    assert planned(spec, switch) == ()
    return [type(action).__name__ for action in plan]


@contextlib.contextmanager
def mounted(spec: MountSpec) -> Iterator[Path]:
    """Mount an overlay while the block runs."""
    os.makedirs(spec.path, exist_ok=True)
    mount = creating.new_overlay(spec)
    try:
        creating.attach(mount, spec.path)
    finally:
        os.close(mount)
    try:
        yield Path(os.fsdecode(spec.path))
    finally:
        unmount_all(spec.path)


def unmount_all(path: Path | bytes) -> None:
    """Detach all mounts at a path."""
    while live(path):
        subprocess.run(["umount", "--lazy", path], check=True)


#: The end of a program for ``background`` that waits until it is no longer needed.
WAIT = "print('ready', flush=True)\nsys.stdin.read()"


@contextlib.contextmanager
def background(code: str, *arguments: object, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program while the block runs. It must print ``ready``, and end when its input ends."""
    argv = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process


@contextlib.contextmanager
def namespace(propagation: str = "unchanged", code: str = "") -> Iterator[int]:
    """Run a process that executes ``code`` in a new mount namespace, while the block runs; provide its PID."""
    with background(
        f"import os, sys\n{code}\n{WAIT}", prefix=["unshare", "--mount", f"--propagation={propagation}"]
    ) as process:
        yield process.pid


def loops_on(area: Path) -> list[str]:
    """Return the lines of losetup(8) for loop devices on files in a directory."""
    return [line for line in command("losetup", "--list", "--noheadings").splitlines() if str(area) in line]


def loops_gone(area: Path) -> bool:
    """Return whether the loop devices on files in a directory are gone, after waiting for the kernel up to five seconds."""
    for _try in range(100):
        if not loops_on(area):
            return True
        time.sleep(0.05)
    return False


# ---- comparing trees


def listing(top: Path | bytes) -> dict[bytes, os.stat_result]:
    """Map each path in a tree, relative to the top, to its status."""
    start = os.fsencode(top)
    found = {b"": os.lstat(start)}
    for directory, directories, files in os.walk(start):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            found[path[len(start) :]] = os.lstat(path)
    return found


def compare_trees(view: Path, release: Path) -> list[str]:
    """Compare a view with a release entry by entry and return the differences."""
    left, right = listing(view), listing(release)
    problems = [f"only in one of them: {path!r}" for path in left.keys() ^ right.keys()]
    names_of: dict[int, int] = {}
    for status in right.values():
        names_of[status.st_ino] = names_of.get(status.st_ino, 0) + 1
    for path in left.keys() & right.keys():
        if not stat.S_ISLNK(right[path].st_mode):
            problems += _compare_acls(os.fsencode(view) + path, os.fsencode(release) + path)
        problems += _compare(path, left[path], right[path], names_of[right[path].st_ino])
        if not problems and not stat.S_ISDIR(right[path].st_mode):
            problems += _compare_content(os.fsencode(view) + path, os.fsencode(release) + path, right[path])
    return problems


def _compare(path: bytes, left: os.stat_result, right: os.stat_result, links: int) -> list[str]:
    problems = [
        f"{path!r}: {field} {getattr(left, field)} != {getattr(right, field)}"
        for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns")
        if getattr(left, field) != getattr(right, field)
    ]
    if not stat.S_ISDIR(right.st_mode):
        if left.st_size != right.st_size:
            problems.append(f"{path!r}: size {left.st_size} != {right.st_size}")
        if left.st_nlink != links:
            problems.append(f"{path!r}: {left.st_nlink} links != {links}")
    return problems


def _compare_acls(left: bytes, right: bytes) -> list[str]:
    """Compare the access and default ACLs of two files."""
    kinds = ("system.posix_acl_access", "system.posix_acl_default")
    return [f"{left!r}: {kind}" for kind in kinds if attribute(left, kind) != attribute(right, kind)]


def attribute(path: bytes, name: str) -> bytes | None:
    """Return the value of an xattr; None if the file has none of that name."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """Return the value of an ACL xattr. Each entry has a tag, permissions and, for a named user or group, a uid or gid."""
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry, *(() if len(entry) == 3 else (NO_ID,))) for entry in entries
    )


def _compare_content(left: bytes, right: bytes, status: os.stat_result) -> list[str]:
    if stat.S_ISLNK(status.st_mode):
        return [] if os.readlink(left) == os.readlink(right) else [f"{left!r}: target"]
    problems = [] if capability_of(left) == capability_of(right) else [f"{left!r}: capability"]
    with open(left, "rb") as one, open(right, "rb") as other:
        for start, length in _extents(other.fileno(), status.st_size):
            one.seek(start)
            other.seek(start)
            if one.read(length) != other.read(length):
                problems.append(f"{left!r}: content")
    return problems


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and length of each part of a file that holds data, and of its end. A small file is one part."""
    if size < 1 << 24:
        yield 0, size
        return
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position - start
    yield size - 4096, 4096


def capability_of(path: bytes) -> bytes | None:
    """Return the file capability of a file; None if it has none."""
    try:
        return os.getxattr(path, "security.capability")
    except OSError:
        return None


# ---- modules as processes


@dataclass(frozen=True)
class Ran:
    """The result of a run of a module."""

    status: int
    result: dict[str, Any]
    output: str

    @property
    def ok(self) -> dict[str, Any]:
        """Return the values of a run that must have succeeded."""
        assert self.status == 0, self.output
        assert not self.result.get("failed"), self.output
        return self.result

    @property
    def message(self) -> str:
        """Return the message of a run that must have failed."""
        assert self.result.get("failed"), self.output
        return str(self.result["msg"])


def module(name: str, /, privileged: bool = True, check: bool = False, **arguments: Any) -> Ran:
    """Run a module as Ansible does: in its own process, with JSON in and JSON out. ``privileged`` is whether it has capabilities."""
    text = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}})
    if privileged:
        status, output = module_server.run(MODULES + name, text.encode())
    else:
        # Uid 0 without capabilities, since other users may be unable to read the tools.
        become = [*module_server.LIMITS, "setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        done = subprocess.run(
            [*become, sys.executable, "-W", "ignore", "-m", MODULES + name],
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=module_server.SECONDS,
        )
        status, output = done.returncode, done.stdout
    shown = output.decode("utf-8", "backslashreplace")
    lines = [line for line in output.splitlines() if line.startswith(b"{")]
    assert lines, shown
    return Ran(status, json.loads(lines[-1]), shown)


class ForkedModule:
    """A module in a forked process that calls ``first``, and waits for ``go`` before it starts."""

    def __init__(self, name: str, arguments: dict[str, Any], first: Callable[[], None]) -> None:
        main = importlib.import_module(MODULES + name).main
        given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_diff": True}}
        waiting, self._start = os.pipe()
        self._output, output = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._start)
            os.dup2(output, 1)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            status = 1
            try:
                first()
                os.read(waiting, 1)
                status = module_server.be_the_module(main, json.dumps(given).encode())
            finally:
                sys.stdout.flush()
                os._exit(status)
        os.close(waiting)
        os.close(output)

    def go(self) -> None:
        """Start the module."""
        os.write(self._start, b".")

    def finish(self) -> Ran:
        """Wait until the module ends and return its result."""
        with open(self._output, "rb", closefd=False) as stream:
            output = stream.read()
        lines = [line for line in output.splitlines() if line.startswith(b"{")]
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return Ran(status, json.loads(lines[-1]) if lines else {}, output.decode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Kill the module if it still runs."""
        os.close(self._start)
        os.close(self._output)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def forked_module(
    name: str, arguments: dict[str, Any], first: Callable[[], None] = lambda: None
) -> Iterator[ForkedModule]:
    """Provide a forked module while the block runs. Its process calls ``first`` before all else."""
    child = ForkedModule(name, arguments, first)
    try:
        yield child
    finally:
        child.close()
