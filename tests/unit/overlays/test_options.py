"""Options of an overlay mount: declarations, and how a live mount differs from them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    MOUNT_FLAGS,
    MountSpec,
    OptionValue,
    Settings,
    declared_by,
    explained_differences,
    mount_differences,
    mount_spec,
)

ON: Settings = ((b"metacopy", b"on"), (b"redirect_dir", b"on"))
Differences = dict[str, tuple[object, object]]


def spec(options: Mapping[str, OptionValue] | None = None, data: bool = True, read_only: bool = True) -> MountSpec:
    return mount_spec(b"/v", [b"/meta"], [b"/data"] if data else [], options or {}, read_only)


@pytest.mark.parametrize(
    ("options", "data", "settings"),
    [
        ({}, True, ON),
        ({}, False, ()),
        ({"metacopy": "on"}, True, ON),
        ({"metacopy": True, "redirect_dir": "follow"}, True, ((b"metacopy", b"on"), (b"redirect_dir", b"follow"))),
        ({"userxattr": True}, True, ((b"userxattr", None),)),
        ({"userxattr": None}, True, ((b"userxattr", None),)),
        ({"userxattr": "yes"}, False, ((b"userxattr", None),)),
        ({"userxattr": False}, True, ON),
        (
            {"userxattr": True, "redirect_dir": "nofollow"},
            True,
            ((b"redirect_dir", b"nofollow"), (b"userxattr", None)),
        ),
        ({"index": False, "xino": "auto"}, False, ((b"index", b"off"), (b"xino", b"auto"))),
        ({"xino": "ON"}, False, ((b"xino", b"on"),)),
        ({"verity": "require"}, True, (*ON, (b"verity", b"require"))),
        ({"nfs_export": False}, True, ((b"metacopy", b"on"), (b"nfs_export", b"off"), (b"redirect_dir", b"on"))),
        (
            {"nfs_export": True, "redirect_dir": "nofollow"},
            False,
            ((b"nfs_export", b"on"), (b"redirect_dir", b"nofollow")),
        ),
        ({"metacopy": False}, False, ((b"metacopy", b"off"),)),
    ],
)
def test_settings_that_change_what_users_see_are_explicit(
    options: dict[str, OptionValue], data: bool, settings: Settings
) -> None:
    assert spec(options, data).settings == settings


@pytest.mark.parametrize(
    ("options", "read_only", "flags"),
    [
        ({}, True, {"ro"}),
        ({}, False, set()),
        ({"nosuid": True, "nodev": False}, True, {"ro", "nosuid"}),
        (dict.fromkeys(MOUNT_FLAGS, True), False, set(MOUNT_FLAGS)),
        ({"noexec": "yes", "noatime": "true", "nodiratime": None}, False, {"noexec", "noatime", "nodiratime"}),
    ],
)
def test_flags_of_the_mount_are_no_settings(options: dict[str, OptionValue], read_only: bool, flags: set[str]) -> None:
    assert spec(options, data=False, read_only=read_only).flags == flags
    assert spec(options, data=False, read_only=read_only).settings == ()


@pytest.mark.parametrize(
    ("options", "data", "reason"),
    [
        ({"lowerdir": "/x"}, False, "'lowerdir' is not known: use one of nosuid, .*metacopy"),
        ({"ro": True}, False, "'ro' is not known"),
        ({"": True}, False, "'' is not known"),
        ({"metacopy": "maybe"}, False, "metacopy has the value 'maybe': use one of on, off"),
        ({"xino": 1}, False, "xino has the value '1': use one of on, off, auto"),
        ({"nosuid": "perhaps"}, False, "nosuid has the value 'perhaps': use true or false"),
        ({"userxattr": "x"}, False, "userxattr has the value 'x': use true or false"),
        ({"nfs_export": "on"}, True, "nfs_export=on excludes data layers, .*zeros"),
        ({"nfs_export": True}, True, "nfs_export=on excludes data layers"),
        ({"redirect_dir": "nofollow"}, True, "redirect_dir=nofollow excludes data layers"),
        ({"redirect_dir": "off"}, True, "redirect_dir=off excludes data layers"),
        ({"metacopy": "off"}, True, "metacopy=off excludes data layers"),
        ({"nfs_export": True}, False, "nfs_export=on needs redirect_dir=nofollow"),
        ({"index": True}, False, "index=on needs an upper layer"),
        ({"userxattr": True, "metacopy": "on"}, True, "userxattr and metacopy=on exclude each other"),
        ({"userxattr": True, "redirect_dir": "on"}, True, "userxattr and redirect_dir=on exclude each other"),
        ({"userxattr": True, "metacopy": "on"}, False, "userxattr and metacopy=on exclude each other"),
    ],
)
def test_an_invalid_option_is_refused_by_name(options: dict[str, OptionValue], data: bool, reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        spec(options, data)


def test_data_layers_alone_are_refused() -> None:
    with pytest.raises(OverlayError, match=r"^overlay at /v: 'lower' needs at least one layer"):
        mount_spec(b"/v", [], [b"/data"], {}, True)


def live(options: bytes, flags: bytes = b"ro,relatime", fstype: bytes = b"overlay") -> Mount:
    (mount,) = parse(b"66 63 0:40 / /v %s - %s overlay %s\n" % (flags, fstype, options))
    return mount


LAYERS = b"ro,lowerdir+=/meta,datadir+=/data"
ALL_OFF = {
    b"metacopy": b"N",
    b"redirect_dir": b"N",
    b"redirect_always_follow": b"Y",
    b"index": b"N",
    b"xino_auto": b"N",
}
METACOPY_ON = {**ALL_OFF, b"metacopy": b"Y", b"redirect_dir": b"Y"}
NO_FOLLOW = {**ALL_OFF, b"redirect_always_follow": b"N"}


@pytest.mark.parametrize(
    ("options", "defaults", "expected"),
    [
        (LAYERS + b",redirect_dir=on,metacopy=on", ALL_OFF, {}),
        (b"ro,lowerdir=/meta::/data,redirect_dir=on,metacopy=on", ALL_OFF, {}),
        (LAYERS + b",metacopy=on", ALL_OFF, {}),  # without an upper layer 'on' means 'follow'
        (LAYERS + b",redirect_dir=follow,metacopy=on", NO_FOLLOW, {}),
        (LAYERS + b",metacopy=on", NO_FOLLOW, {"redirect_dir": ("nofollow", "on")}),
        (LAYERS, METACOPY_ON, {}),
        (LAYERS, ALL_OFF, {"metacopy": ("off", "on")}),
        (LAYERS, {}, {"metacopy": ("off", "on"), "redirect_dir": ("nofollow", "on")}),
        (LAYERS + b",metacopy=off", METACOPY_ON, {"metacopy": ("off", "on")}),
        (b"ro,lowerdir+=/meta,redirect_dir=on,metacopy=on", ALL_OFF, {"data": ([], ["/data"])}),
        (
            b"ro,lowerdir+=/other,lowerdir+=/meta,datadir+=/data,metacopy=on",
            ALL_OFF,
            {"lower": (["/other", "/meta"], ["/meta"])},
        ),
        (LAYERS + b",upperdir=/u,workdir=/w,metacopy=on", ALL_OFF, {"upper": ("/u", None), "work": ("/w", None)}),
    ],
)
def test_a_live_mount_is_compared_with_its_declaration(
    options: bytes, defaults: dict[bytes, bytes], expected: Differences
) -> None:
    assert mount_differences(spec(), live(options), defaults) == expected


@pytest.mark.parametrize(
    ("wanted", "options", "defaults", "expected"),
    [
        ({"userxattr": True}, b",userxattr", ALL_OFF, {}),
        ({"userxattr": True}, b"", ALL_OFF, {"userxattr": ("off", "on")}),
        ({"index": "off"}, b"", ALL_OFF, {}),
        ({"index": "off"}, b",index=on", ALL_OFF, {"index": ("on", "off")}),
        ({"index": "off"}, b"", {**ALL_OFF, b"index": b"Y"}, {"index": ("on", "off")}),
        ({"xino": "auto"}, b",xino=off", ALL_OFF, {}),
        ({"xino": "on"}, b"", ALL_OFF, {}),  # all layers on one file system
        ({"xino": "on"}, b",xino=off", ALL_OFF, {"xino": ("off", "on")}),
        ({"xino": "off"}, b",xino=auto", ALL_OFF, {"xino": ("auto", "off")}),
        ({"redirect_dir": "off"}, b"", NO_FOLLOW, {}),
        ({"redirect_dir": "off"}, b"", ALL_OFF, {}),
        ({"redirect_dir": "nofollow"}, b"", NO_FOLLOW, {}),
        ({"redirect_dir": "nofollow"}, b",redirect_dir=nofollow", ALL_OFF, {}),
        ({"redirect_dir": "nofollow"}, b"", ALL_OFF, {"redirect_dir": ("follow", "nofollow")}),
        ({"verity": "on"}, b",verity=on", ALL_OFF, {}),
        ({"verity": "off"}, b",verity=on", ALL_OFF, {"verity": ("on", "off")}),
    ],
)
def test_settings_are_compared_with_the_defaults_of_the_host(
    wanted: dict[str, OptionValue], options: bytes, defaults: dict[bytes, bytes], expected: Differences
) -> None:
    assert mount_differences(spec(wanted, data=False), live(b"ro,lowerdir+=/meta" + options), defaults) == expected


@pytest.mark.parametrize(
    ("wanted", "flags", "expected"),
    [
        ({}, b"ro,relatime", {}),
        ({}, b"rw,relatime", {"ro": (False, True)}),
        ({}, b"ro,nosuid,relatime", {"nosuid": (True, False)}),
        ({"nodev": True}, b"ro,relatime", {"nodev": (False, True)}),
        ({"noatime": True, "nosuid": True}, b"ro,nosuid,noatime", {}),
    ],
)
def test_flags_are_compared(wanted: dict[str, OptionValue], flags: bytes, expected: Differences) -> None:
    assert mount_differences(spec(wanted, data=False), live(b"ro,lowerdir+=/meta", flags), ALL_OFF) == expected


def test_another_type_is_the_one_difference() -> None:
    assert mount_differences(spec(), live(b"rw", fstype=b"tmpfs"), ALL_OFF) == {"type": ("tmpfs", "overlay")}


def test_the_diff_shows_a_live_mount_as_its_declaration() -> None:
    assert declared_by(live(LAYERS + b",redirect_dir=on,metacopy=on")) == spec().as_dict()
    assert declared_by(None) == {}
    assert declared_by(live(b"rw", fstype=b"tmpfs")) == {}


REDIRECT = mount_spec(b"/v", [b"/meta"], [b"/data", b"/more"], {}, True, strategy="redirect")
REDIRECTED = b"66 63 0:40 %s /v ro,relatime - overlay overlay ro,%s,redirect_dir=on,metacopy=on\n"


def test_with_strategy_redirect_data_layers_are_ordinary_and_one_directory_is_shown() -> None:
    assert REDIRECT.layers == ((b"/meta", b"/data", b"/more"), ())
    assert (spec().layers, spec().root) == (((b"/meta",), (b"/data",)), b"/")
    assert REDIRECT.root == b"/view"
    assert REDIRECT.settings == (*ON, (b"xino", b"off"))
    assert REDIRECT.directories == (b"/meta", b"/data", b"/more")


@pytest.mark.parametrize(
    ("root", "layers", "expected"),
    [
        (b"/view", b"lowerdir+=/meta,lowerdir+=/data,lowerdir+=/more", {}),
        (b"/view", b"lowerdir=/meta:/data:/more", {}),
        (b"/", b"lowerdir=/meta:/data:/more", {"root": ("/", "/view")}),
        (b"/view/bin", b"lowerdir=/meta:/data:/more", {"root": ("/view/bin", "/view")}),
        (b"/view", b"lowerdir=/meta:/data", {"lower": (["/meta", "/data"], ["/meta", "/data", "/more"])}),
        (
            b"/",
            b"lowerdir=/meta::/data::/more",
            {
                "lower": (["/meta"], ["/meta", "/data", "/more"]),
                "data": (["/data", "/more"], []),
                "root": ("/", "/view"),
            },
        ),
    ],
)
def test_the_directory_that_is_shown_is_compared(root: bytes, layers: bytes, expected: Differences) -> None:
    (mount,) = parse(REDIRECTED % (root, layers))
    assert mount_differences(REDIRECT, mount, ALL_OFF) == expected
    # The kernel does not print what is this host's default.
    printed = {**REDIRECT.as_dict(), "options": {"metacopy": "on", "redirect_dir": "on"}}
    assert (declared_by(mount) == printed) == (not expected)


def test_strategy_redirect_excludes_userxattr() -> None:
    with pytest.raises(
        OverlayError,
        match=r"userxattr and strategy=redirect exclude each other, .* only into data-only layers: leave userxattr out",
    ):
        mount_spec(b"/v", [b"/meta"], [b"/data"], {"userxattr": True}, True, strategy="redirect")


def test_the_layer_name_of_an_image_is_its_path_without_the_suffix() -> None:
    spec = mount_spec(b"/v", [b"/g/1.erofs", b"/g/2.erofs"], [b"/data"], {}, True, [b"/g/1.erofs"])
    assert spec.lower == (b"/g/1", b"/g/2.erofs")
    assert spec.images == (b"/g/1.erofs",)
    assert spec.directories == (b"/g/2.erofs", b"/data")


@pytest.mark.parametrize("name", [b"/g/layer", b"/g/layer.img", b"/g/.erofs", b"/g/layer.erofs.gz"])
def test_a_file_without_the_name_of_an_image_is_refused(name: bytes) -> None:
    with pytest.raises(
        OverlayError,
        match=r"is a file and has no name of an image: give a directory, or an EROFS image whose name ends in \.erofs",
    ):
        mount_spec(b"/v", [name], [b"/data"], {}, True, [name])


def test_a_message_explains_why_the_kernel_changed_a_setting() -> None:
    words = explained_differences({"index": ("off", "on"), "nosuid": (False, True)})
    assert words == (
        "index is off, not on (the file system of a layer has no file handles, or that of the upper layer has no xattrs; give index=off to"
        " accept that), nosuid is False, not True"
    )


# ---- images


def test_images_are_named_without_their_suffix_in_both_kinds_of_layers() -> None:
    lower, data = b"/g/layer.erofs", b"/state/data/0123456789abcdef.erofs"
    spec = mount_spec(b"/v", [lower, b"/l"], [data, b"/net"], {}, True, [lower, data])
    assert (spec.lower, spec.data) == ((b"/g/layer", b"/l"), (b"/state/data/0123456789abcdef", b"/net"))
    assert (spec.images, spec.data_images, spec.directories) == ((lower, data), (data,), (b"/l", b"/net"))
    assert spec.as_dict()["data"] == ["/state/data/0123456789abcdef", "/net"]


def test_a_data_image_is_refused_with_strategy_redirect() -> None:
    with pytest.raises(
        OverlayError, match=r"image /d\.erofs cannot be a data layer with strategy redirect.*data-only layers"
    ):
        mount_spec(b"/v", [b"/l"], [b"/d.erofs", b"/net"], {}, True, [b"/d.erofs"], strategy="redirect")


def test_a_data_layer_that_is_a_file_needs_the_name_of_an_image() -> None:
    with pytest.raises(OverlayError, match=r"layer /d\.img is a file and has no name of an image"):
        mount_spec(b"/v", [b"/l"], [b"/d.img"], {}, True, [b"/d.img"])


def test_more_layers_than_overlayfs_takes_are_refused() -> None:
    data = [b"/d%d" % number for number in range(500)]
    assert len(mount_spec(b"/v", [b"/l"], data[1:], {}, True).data) == 499
    with pytest.raises(
        OverlayError, match="overlay at /v has 1 lower and 500 data layers, and overlayfs takes 500 layers in all"
    ):
        mount_spec(b"/v", [b"/l"], data, {}, True)
