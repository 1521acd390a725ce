"""The option rules describe the kernel: each rule holds, and the kernel mounts everything that no rule refuses."""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, option_rules
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.option_rules import (
    CONFLICT,
    DANGEROUS,
    IGNORED,
    OLD_KERNELS,
    RULES,
    Rule,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    MountSpec,
    Writable,
    mount_differences,
)
from ansible_collections.renderfarm.overlay.tests.kernel import support

CONTENT = b"content"

Settings = dict[str, "str | None"]


@pytest.fixture
def layers(area: Path) -> Path:
    """Provide a directory with a metadata layer, its data layer, and two ordinary layers."""
    make_layers(area)
    return area


def make_layers(area: Path) -> None:
    """Create the layers of the fixture ``layers``."""
    for name in ("meta", "data", "normal", "other", "view"):
        (area / name).mkdir(parents=True)
    for name in ("data", "normal"):
        support.write(area / name / "file", CONTENT)
    support.write(area / "meta" / "file")
    for namespace in ("trusted", "user"):
        os.setxattr(area / "meta" / "file", f"{namespace}.overlay.metacopy", b"")
        os.setxattr(area / "meta" / "file", f"{namespace}.overlay.redirect", b"/file")
    os.truncate(area / "meta" / "file", len(CONTENT))


def bare(area: Path, settings: Settings, upper: bool, data: bool) -> MountSpec:
    """Return an overlay with exactly these settings, without any rule. Its upper layer is new."""
    writable = None
    if upper:
        number = sum(name.startswith("upper") for name in os.listdir(area))
        writable = support.writable(area / f"upper{number}", area / f"work{number}")
        os.mkdir(writable.upper)
        os.mkdir(writable.work)
    return spec_of(area, settings, writable, data)


def spec_of(area: Path, settings: Settings, writable: Writable | None, data: bool) -> MountSpec:
    """Return an overlay with exactly these settings and this upper layer."""
    lower = [area / "meta"] if data else [area / "normal", area / "other"]
    return MountSpec(
        os.fsencode(area / "view"),
        tuple(os.fsencode(path) for path in lower),
        (os.fsencode(area / "data"),) if data else (),
        tuple((name.encode(), None if value is None else value.encode()) for name, value in sorted(settings.items())),
        frozenset() if writable else frozenset({"ro"}),
        writable=writable,
    )


def cases(*kinds: str) -> Iterator[tuple[Rule, Settings, bool, bool]]:
    """Yield each rule of some kinds with all settings and layers that it matches."""
    for rule in RULES:
        if rule.kind in kinds:
            names = [name for name, _values in rule.given]
            for values in itertools.product(*(values for _name, values in rule.given)):
                for upper, data in itertools.product((False, True), (False, True)):
                    settings = dict(zip(names, values, strict=True))
                    if rule.matches(settings, upper, data):
                        yield rule, settings, upper, data


def named(case: object) -> str:
    """Return the ID of a test for a part of a case."""
    return case.reason[:30] if isinstance(case, Rule) else str(case)


@pytest.mark.parametrize(("rule", "settings", "upper", "data"), list(cases(CONFLICT)), ids=named)
def test_the_kernel_refuses_a_conflict(layers: Path, rule: Rule, settings: Settings, upper: bool, data: bool) -> None:
    with pytest.raises(OverlayError, match="the kernel refuses it: Invalid argument"):
        os.close(creating.create_overlay(bare(layers, settings, upper, data)))
    assert rule.sentence(settings).startswith("option")


@pytest.mark.parametrize(("rule", "settings", "upper", "data"), list(cases(IGNORED)), ids=named)
def test_the_kernel_ignores_an_ignored_setting(
    layers: Path, rule: Rule, settings: Settings, upper: bool, data: bool
) -> None:
    spec = bare(layers, settings, upper, data)
    with support.mounted(spec):
        live = support.live(spec.path)
        assert live
        assert set(mount_differences(spec, live, creating.overlay_defaults())) == {name for name, _values in rule.given}


def userxattr_works(area: Path) -> bool:
    """Return whether the kernel finds content in data layers without metacopy (Linux 6.16)."""
    with support.mounted(bare(area, {"userxattr": None}, upper=False, data=True)) as view:
        return read(view / "file") == CONTENT


def read(path: Path) -> bytes | None:
    """Return the content of a file; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


@pytest.mark.parametrize(("rule", "settings", "upper", "data"), list(cases(OLD_KERNELS)), ids=named)
def test_before_linux_6_16_content_is_not_found_without_redirects(
    layers: Path, rule: Rule, settings: Settings, upper: bool, data: bool
) -> None:
    assert rule.unless == ("userxattr", None)
    works = userxattr_works(layers)
    with support.mounted(bare(layers, settings, upper, data)) as view:
        assert (read(view / "file") == CONTENT) == works


# Further settings with which the kernel mounts an exported overlay, by whether it has an upper layer.
ACCEPTED: dict[bool, list[Settings]] = {
    False: [{"redirect_dir": "nofollow"}],
    True: [
        {"index": "on", "metacopy": "off", "redirect_dir": "on"},
        {"index": "on", "redirect_dir": "nofollow"},
        {"index": "on"},
    ],
}


@pytest.mark.parametrize(("rule", "settings", "upper", "data"), list(cases(DANGEROUS)), ids=named)
def test_files_opened_by_handle_read_zeros_over_data_layers(
    disks: dict[str, Path], rule: Rule, settings: Settings, upper: bool, data: bool
) -> None:
    assert rule.given == (("nfs_export", ("on",)),)
    area = disks["ext4-512"] / f"zeros-{upper}"
    make_layers(area)
    for more in ACCEPTED[upper]:
        spec = bare(area, {**settings, **more}, upper, data)
        with support.mounted(spec) as view:
            handle = handle_of(view / "file")
            assert open_by_handle(view, handle) == CONTENT
            drop_caches()
            assert open_by_handle(view, handle) == bytes(len(CONTENT))
            assert (view / "file").read_bytes() == CONTENT


def test_files_opened_by_handle_have_their_content_if_no_rule_refuses_the_overlay(disks: dict[str, Path]) -> None:
    """Handles of an exported overlay stay valid after dropping caches, copying up, renaming and mounting again."""
    area = disks["ext4-512"] / "right"
    make_layers(area)
    (area / "normal" / "sub").mkdir()
    support.write(area / "normal" / "sub" / "name", b"below")
    writable = support.writable(area / "upper", area / "work")
    for path in (writable.upper, writable.work):
        os.mkdir(path)
    spec = support.declared(area / "view", [area / "normal"], writable=writable, nfs_export=True)
    view = area / "view"
    with support.mounted(spec):
        handles = {name: handle_of(view / name) for name in ("file", "sub/name")}
        for name, content in (("file", CONTENT), ("sub/name", b"below")):
            drop_caches()
            assert open_by_handle(view, handles[name]) == content
        with (view / "file").open("ab") as stream:
            stream.write(b" and more")
        os.rename(view / "sub" / "name", view / "renamed")
        drop_caches()
        assert open_by_handle(view, handles["file"]) == CONTENT + b" and more"
        assert open_by_handle(view, handles["sub/name"]) == b"below"
    with support.mounted(spec):
        drop_caches()
        assert open_by_handle(view, handles["file"]) == CONTENT + b" and more"
        assert open_by_handle(view, handles["sub/name"]) == b"below"
        os.unlink(view / "renamed")
    with support.mounted(spec), pytest.raises(OSError, match="Stale"):
        open_by_handle(view, handles["sub/name"])


CHOICES: dict[str, tuple[str | None, ...]] = {
    "metacopy": ("on", "off"),
    "redirect_dir": ("on", "follow", "nofollow", "off"),
    "index": ("on", "off"),
    "nfs_export": ("on", "off"),
    "userxattr": (None,),
    "volatile": (None,),
    "verity": ("on",),
}


def combinations() -> Iterator[Settings]:
    """Yield all combinations of settings, each with one of its values or missing."""
    given = [[{}, *({name: value} for value in values)] for name, values in CHOICES.items()]
    for chosen in itertools.product(*given):
        yield {name: value for one in chosen for name, value in one.items()}


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("upper", [False, True])
def test_what_no_rule_refuses_is_mounted_as_declared(layers: Path, upper: bool, data: bool) -> None:
    works = not data or userxattr_works(layers)
    defaults = creating.overlay_defaults()
    mounted = 0
    for given in combinations():
        settings = option_rules.pinned(given, upper, data)
        if option_rules.refusal(settings, upper, data) or ("userxattr" in settings and not works):
            continue
        mounted += 1
        spec = bare(layers, settings, upper, data)
        with support.mounted(spec) as view:
            live = support.live(spec.path)
            assert live
            assert mount_differences(spec, live, defaults) == {}, settings
            assert (view / "file").read_bytes() == CONTENT
    assert mounted > 10


# ---- file handles

_LIBC = ctypes.CDLL(None, use_errno=True)
_HANDLE_BYTES = 128
_AT_FDCWD = -100


def handle_of(path: Path) -> bytes:
    """Return the file handle of a path (name_to_handle_at(2))."""
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", _HANDLE_BYTES, 0) + bytes(_HANDLE_BYTES))
    mount = ctypes.c_int()
    if _LIBC.name_to_handle_at(_AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount), 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return buffer.raw


def open_by_handle(place: Path, handle: bytes) -> bytes:
    """Open a file by its handle, as an NFS server does (open_by_handle_at(2)); return its content."""
    mount = os.open(place, os.O_RDONLY)
    try:
        fd = _LIBC.open_by_handle_at(mount, handle, os.O_RDONLY)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)
        with open(fd, "rb") as stream:
            return stream.read()
    finally:
        os.close(mount)


def drop_caches() -> None:
    """Evict all caches of the kernel that can be evicted."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
