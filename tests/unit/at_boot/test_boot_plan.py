"""Units and lines of fstab for mounting at boot, and which of the existing ones may be changed."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_mounts import tree_of, whole_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_paths import unit_name
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_plan import (
    RemoveViewLines,
    Stored,
    WriteUnit,
    WriteViewLines,
    plan_persistence,
    plan_places,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_options import mount_options
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_units import MARKER, Unit, desired_units
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.view_lines import (
    desired_lines,
    fstab_with_view,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    MountSpec,
    Writable,
    mount_spec,
    scratch_space,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import NO_DATA, TreePart

SPEC = mount_spec(b"/software", [b"/g/1/layer.erofs"], [b"/net/software"], {"nodev": True}, True, [b"/g/1/layer.erofs"])
NEXT = mount_spec(b"/software", [b"/g/2/layer.erofs"], [b"/net/software"], {"nodev": True}, True, [b"/g/2/layer.erofs"])
PLAIN = mount_spec(b"/software", [b"/g/1/layer"], [b"/net/software"], {}, True)
OTHER_VIEW = mount_spec(b"/other", [b"/g/1/layer.erofs"], [b"/net/software"], {}, True, [b"/g/1/layer.erofs"])
NOTHING = Stored((), b"")


def actions(
    spec: MountSpec | None, persist: str, stored: Stored, live: tuple[Mount, ...] = (), path: bytes = b"/software"
) -> list[str]:
    return [str(action) for action in plan_persistence(path, spec, persist, stored, live, append=True)]


KEPT = Writable(b"/var/upper dir/100%", b"/var/work")
WRITABLE = mount_spec(b"/software", [b"/g/1/layer"], [b"/net/software"], {}, False, (), KEPT)


def test_a_unit_names_the_upper_layer_and_needs_it() -> None:
    (view,) = desired_units(WRITABLE, append=True)
    assert (
        b"nfs_export=off,redirect_dir=on,xino=auto,upperdir=/var/upper dir/100%%,workdir=/var/work,_netdev" in view.text
    )
    assert b'RequiresMountsFor="/g/1/layer" "/net/software" "/var/upper dir/100%%" "/var/work"\n' in view.text


def test_units_of_a_view_that_stands_on_images_alone_do_not_wait_for_the_network() -> None:
    images = [b"/g/1/layer.erofs", b"/data/a.erofs"]
    alone = desired_units(mount_spec(b"/software", images[:1], images[1:], {}, True, images), append=True)
    assert len(alone) == 3
    for unit in alone:
        assert b"_netdev" not in unit.text
        # Else systemd would order it before all local file systems, of which its disk may not be one.
        assert b"\nDefaultDependencies=no\nConflicts=umount.target\nBefore=umount.target\n" in unit.text
    assert b'RequiresMountsFor="/g/1/layer" "/data/a"\n' in alone[-1].text
    assert b"\nBefore=remote-fs.target\n" in alone[-1].text
    mixed = mount_spec(b"/software", images[:1], [images[1], b"/net/software"], {}, True, images)
    for unit in desired_units(mixed, append=True):
        assert b"_netdev" in unit.text
        assert b"DefaultDependencies" not in unit.text


def test_a_line_names_the_upper_layer_and_needs_it() -> None:
    with pytest.raises(OverlayError, match="has a space"):
        desired_lines(WRITABLE, append=True)
    spec = mount_spec(b"/software", [b"/g/1"], [], {}, False, (), Writable(b"/var/upper", b"/var/work"))
    (line,) = desired_lines(spec, append=True)
    assert b",upperdir=/var/upper,workdir=/var/work," in line
    assert b",x-systemd.requires-mounts-for=/var/upper,x-systemd.requires-mounts-for=/var/work," in line


@pytest.mark.parametrize(
    ("writable", "options", "reason"),
    [
        (scratch_space(1 << 30), {}, "has scratch space, which is lost .*: 'persist' has to be none"),
        (KEPT, {"volatile": True}, "is volatile: .* 'persist' has to be none"),
        (Writable(b"/var/a,b", b"/var/work"), {}, "/var/a,b has a comma or a backslash .* as upperdir"),
        (Writable(b"/var/upper", b"/var/a\\b"), {}, "has a comma or a backslash .* as workdir"),
        (Writable(b"/var/" + b"u" * 255, b"/var/work"), {}, "has 260 bytes, and mount.8. takes 255"),
        (Writable(b"/var/\n", b"/var/work"), {}, "control character"),
    ],
)
def test_an_upper_layer_that_cannot_be_mounted_at_boot_is_refused(
    writable: Writable, options: dict[str, bool], reason: str
) -> None:
    spec = mount_spec(b"/software", [b"/g/1/layer"], [], options, False, (), writable)
    with pytest.raises(OverlayError, match=reason):
        desired_units(spec, append=True)


# ---- units


def test_the_units_of_a_view_and_its_image() -> None:
    image, view = desired_units(SPEC, append=True)
    assert (image.name, image.wanted) == ("g-1-layer.mount", False)
    assert image.text == (
        MARKER + b"\n"
        b"# image /g/1/layer.erofs\n"
        b"[Unit]\n"
        b"Description=Layer /g/1/layer\n"
        b'RequiresMountsFor="/g/1/layer.erofs"\n'
        b"\n"
        b"[Mount]\n"
        b"What=/g/1/layer.erofs\n"
        b"Where=/g/1/layer\n"
        b"Type=erofs\n"
        b"Options=ro,_netdev\n"
    )
    assert (view.name, view.wanted) == ("software.mount", True)
    assert view.text == (
        MARKER + b"\n"
        b"# view /software\n"
        b"# image /g/1/layer.erofs\n"
        b"[Unit]\n"
        b"Description=Overlay at /software\n"
        b'RequiresMountsFor="/g/1/layer" "/net/software"\n'
        b"\n"
        b"[Mount]\n"
        b"What=overlay\n"
        b"Where=/software\n"
        b"Type=overlay\n"
        b"Options=ro,nodev,metacopy=on,redirect_dir=on,_netdev,lowerdir=/g/1/layer::/net/software\n"
        b"\n"
        b"[Install]\n"
        b"WantedBy=remote-fs.target\n"
    )


PART = mount_spec(b"/software", [b"/g/1/layer"], [b"/d"], {"nodev": True}, True, strategy="redirect")
WHOLE = b"/g/1/layer.whole-a7dc95e2"


def test_an_overlay_that_shows_one_directory_is_mounted_as_a_whole_beside_its_layer() -> None:
    whole, view = desired_units(PART, append=True)
    assert (whole.name, whole.wanted) == (unit_name(WHOLE), False)
    assert b"# whole " + WHOLE in whole.text.split(b"\n")
    assert b'RequiresMountsFor="/g/1/layer" "/d"\n' in whole.text
    assert b"What=overlay\nWhere=" + WHOLE + b"\nType=overlay\n" in whole.text
    assert b"Options=ro,nodev,metacopy=on,redirect_dir=on,xino=off,_netdev,lowerdir=/g/1/layer:/d\n" in whole.text
    assert b"WantedBy" not in whole.text
    assert (view.name, view.wanted) == ("software.mount", True)
    assert view.text.split(b"\n")[1:3] == [b"# view /software", b"# whole " + WHOLE]
    assert b'RequiresMountsFor="' + WHOLE + b'"\n' in view.text
    assert b"What=" + WHOLE + b"/view\nWhere=/software\nType=none\nOptions=bind,ro,nodev,_netdev\n" in view.text
    assert b"WantedBy=remote-fs.target" in view.text
    lines = [line.split() for line in desired_lines(PART, append=True)]
    assert [line[:3] for line in lines] == [
        [b"overlay", WHOLE, b"overlay"],
        [WHOLE + b"/view", b"/software", b"none"],
    ]
    assert lines[1][3] == (
        b"bind,ro,nodev,_netdev,nofail,x-systemd.before=remote-fs.target,"
        b"x-systemd.requires-mounts-for=" + WHOLE + b",x-renderfarm.overlay=view"
    )


def test_each_mountpoint_of_the_same_layer_has_its_own_whole_overlay() -> None:
    other = mount_spec(b"/other", [b"/g/1/layer"], [b"/d"], {}, True, strategy="redirect")
    assert whole_of(other) not in (None, WHOLE, whole_of(PART), whole_of(PLAIN))
    assert whole_of(PART) == WHOLE
    with pytest.raises(OverlayError, match="and images, so it cannot be mounted at boot"):
        whole_of(mount_spec(b"/v", [b"/l.erofs"], [b"/d"], {}, True, [b"/l.erofs"], strategy="redirect"))


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_a_whole_overlay_is_removed_with_its_view_only(persist: str) -> None:
    stored = {
        "systemd": Stored(desired_units(PART, append=True), b""),
        "fstab": Stored((), b"".join(desired_lines(PART, append=True))),
    }[persist]
    assert actions(PART, persist, stored) == []
    other = mount_spec(b"/other", [b"/g/1/layer"], [b"/d"], {}, True, strategy="redirect")
    assert not any("remove" in action for action in actions(other, persist, stored, path=b"/other"))
    removed = actions(None, "none", stored)
    assert f"unmount what a view needed at {WHOLE.decode()}" in removed
    assert any("remove" in action for action in removed)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/software", "software.mount"),
        (b"/opt/a-b", r"opt-a\x2db.mount"),
        (b"/a b/c,d", r"a\x20b-c\x2cd.mount"),
        (b"/e:f/g\\h", r"e:f-g\x5ch.mount"),
        (b"/.x/.y", r"\x2ex-.y.mount"),
        (b"/%n/\xc3\xbc", r"\x25n-\xc3\xbc.mount"),
        (b"/", "-.mount"),
    ],
)
def test_the_name_of_a_unit_is_that_of_systemd_escape(path: bytes, name: str) -> None:
    assert unit_name(path) == name
    argv = ["systemd-escape", "--path", "--suffix=mount", "--", path.decode()]
    assert subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip() == name


def test_odd_paths_are_escaped_for_systemd() -> None:
    spec = mount_spec(b"/v 1%", [b"/l a,b:c"], [b"/d\\e%"], {}, True)
    (unit,) = desired_units(spec, append=True)
    lines = unit.text.split(b"\n")
    assert b"Where=/v 1%%" in lines
    assert b'RequiresMountsFor="/l a,b:c" "/d\\\\e%%"' in lines
    assert lines[-5].endswith(b",lowerdir=/l a\\,b\\:c::/d\\\\e%%")


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (b"/new\nline", "control character"),
        (b"/tab\there", "control character"),
        (b'/quo"te', "quotation mark"),
        (b"/\xff", "not UTF-8"),
    ],
)
def test_a_path_that_systemd_cannot_mount_is_refused_with_the_reason(path: bytes, reason: str, persist: str) -> None:
    for spec in (
        mount_spec(path, [b"/l"], [b"/d"], {}, True),
        mount_spec(b"/v", [path], [b"/d"], {}, True),
        mount_spec(b"/v", [b"/l"], [path], {}, True),
    ):
        with pytest.raises(OverlayError, match=reason):
            actions(spec, persist, NOTHING, path=spec.path)


@pytest.mark.parametrize(
    ("layer", "persist", "reason"),
    [
        (b"/ends in space ", "systemd", "ends in a space or a backslash"),
        (b"/ends\\", "systemd", "ends in a space or a backslash"),
        (b"/a b", "fstab", "fstab cannot tell systemd"),
        (b"/a,b", "fstab", "fstab cannot tell systemd"),
        (b"/a\\b", "fstab", "fstab cannot tell systemd"),
        (b"/a'b", "fstab", "fstab cannot tell systemd"),
    ],
)
def test_a_path_that_only_units_or_only_fstab_cannot_express_is_refused_there(
    layer: bytes, persist: str, reason: str
) -> None:
    spec = mount_spec(b"/software", [layer], [b"/d"], {}, True)
    with pytest.raises(OverlayError, match=reason):
        actions(spec, persist, NOTHING)


def test_a_mountpoint_too_long_for_a_unit_is_refused() -> None:
    with pytest.raises(OverlayError, match="too long for the name of a unit"):
        unit_name(b"/" + b"-" * 70)


# ---- options


def test_long_layers_are_given_one_by_one_if_the_kernel_takes_them_so() -> None:
    long = b"/" + b"x" * 200
    spec = mount_spec(b"/v", [long], [b"/d/" + b"y" * 200], {}, True)
    assert mount_options(spec, append=True).endswith(b",lowerdir+=" + long + b",datadir+=/d/" + b"y" * 200)
    with pytest.raises(OverlayError, match=r"more than 255 bytes together.*Linux 6\.8"):
        mount_options(spec, append=False)
    for path in (long + b",", long + b"\\x"):
        with pytest.raises(OverlayError, match="a comma or a backslash"):
            mount_options(mount_spec(b"/v", [path], [b"/" + b"y" * 200], {}, True), append=True)
    with pytest.raises(OverlayError, match="has 301 bytes"):
        mount_options(mount_spec(b"/v", [b"/" + b"x" * 300], [b"/d"], {}, True), append=True)
    many = mount_spec(b"/v", [b"/%d" % n + b"x" * 200 for n in range(30)], [], {}, True)
    with pytest.raises(OverlayError, match=r"mount\(8\) takes 4095 \(util-linux 2\.39 takes more\)"):
        mount_options(many, append=True)
    assert len(mount_options(many, append=True, any_length=True)) > 4095


def test_flags_and_settings_are_given_as_declared() -> None:
    spec = mount_spec(b"/v", [b"/l"], [b"/d"], {"userxattr": True, "nosuid": True, "noatime": True}, True)
    assert mount_options(spec, append=False) == b"ro,noatime,nosuid,userxattr,lowerdir=/l::/d"


# ---- fstab


def test_the_lines_of_a_view_and_its_image() -> None:
    assert desired_lines(SPEC, append=True) == (
        (
            b"/g/1/layer.erofs /g/1/layer erofs"
            b" ro,_netdev,nofail,x-systemd.requires-mounts-for=/g/1/layer.erofs,x-renderfarm.overlay=image 0 0\n"
        ),
        (
            b"overlay /software overlay ro,nodev,metacopy=on,redirect_dir=on,_netdev,nofail,"
            b"x-systemd.before=remote-fs.target,"
            b"x-systemd.requires-mounts-for=/g/1/layer,x-systemd.requires-mounts-for=/net/software,"
            b"x-renderfarm.overlay=view,lowerdir=/g/1/layer::/net/software 0 0\n"
        ),
    )
    (line,) = desired_lines(mount_spec(b"/my view\\", [b"/l:a"], [b"/d"], {}, True), append=True)
    assert line.startswith(b"overlay /my\\040view\\134 overlay ")
    assert line.endswith(b",lowerdir=/l\\134:a::/d 0 0\n")


def test_lines_of_a_view_that_stands_on_images_alone_do_not_wait_for_the_network() -> None:
    images = [b"/g/1/layer.erofs", b"/data/a.erofs"]
    alone = desired_lines(mount_spec(b"/software", images[:1], images[1:], {}, True, images), append=True)
    assert [line.split(b" ")[3] for line in alone] == [
        b"ro,nofail,x-systemd.requires-mounts-for=/g/1/layer.erofs,x-renderfarm.overlay=image",
        b"ro,nofail,x-systemd.requires-mounts-for=/data/a.erofs,x-renderfarm.overlay=image",
        (
            b"ro,metacopy=on,redirect_dir=on,nofail,x-systemd.before=remote-fs.target,"
            b"x-systemd.requires-mounts-for=/g/1/layer,x-systemd.requires-mounts-for=/data/a,"
            b"x-renderfarm.overlay=view,lowerdir=/g/1/layer::/data/a"
        ),
    ]
    mixed = mount_spec(b"/software", images[:1], [images[1], b"/net/software"], {}, True, images)
    assert [b",_netdev,nofail," in line for line in desired_lines(mixed, append=True)] == [True] * 3


FOREIGN = b"# comment\nfiler:/software /net/software nfs ro 0 0\n\nUUID=1 / ext4 defaults 0 1\n"


def edited(text: bytes, spec: MountSpec | None, path: bytes = b"/software") -> bytes:
    lines = desired_lines(spec, append=True) if spec else ()
    return fstab_with_view(text, path, lines)


def test_only_lines_of_this_collection_are_changed() -> None:
    both = b"".join(desired_lines(SPEC, append=True))
    assert edited(FOREIGN, SPEC) == FOREIGN + both
    assert edited(FOREIGN + both, SPEC) == FOREIGN + both
    assert edited(FOREIGN + both + b"tail", NEXT) == FOREIGN + b"tail\n" + b"".join(desired_lines(NEXT, append=True))
    assert edited(FOREIGN + both, PLAIN) == FOREIGN + b"".join(desired_lines(PLAIN, append=True))
    assert edited(FOREIGN + both, None) == FOREIGN
    assert edited(FOREIGN, None) == FOREIGN
    assert edited(b"", SPEC) == both
    assert edited(FOREIGN.rstrip(b"\n"), SPEC) == FOREIGN + both


def test_the_line_of_an_image_stays_until_both_of_its_views_are_gone() -> None:
    image, view = desired_lines(SPEC, append=True)
    text = edited(image + view, OTHER_VIEW, b"/other")
    assert text == image + view + desired_lines(OTHER_VIEW, append=True)[1]
    text = edited(text, None)
    assert text == image + desired_lines(OTHER_VIEW, append=True)[1]
    assert edited(text, None, b"/other") == b""


def test_lines_of_others_are_kept_with_carriage_returns_and_bytes_that_are_not_utf8() -> None:
    text = b"# old:\roverlay /software overlay x-renderfarm.overlay=view 0 0\n\xff:/x /\xfe nfs ro\r\n"
    both = b"".join(desired_lines(SPEC, append=True))
    assert edited(text, SPEC) == text + both
    assert edited(text + both, None) == text


def test_the_line_of_an_image_comes_before_that_of_the_view() -> None:
    image, view = desired_lines(SPEC, append=True)
    assert edited(view, SPEC) == image + view


# ---- plans


UNITS = desired_units(SPEC, append=True)
WRITTEN = Stored(UNITS, b"")
IN_FSTAB = Stored((), b"".join(desired_lines(SPEC, append=True)))
RELOAD = "have systemd read its units again"
UNMOUNT = "unmount what a view needed at /g/1/layer"
GONE = ["remove unit g-1-layer.mount", "remove unit software.mount", RELOAD]


@pytest.mark.parametrize(
    ("spec", "persist", "stored", "expected"),
    [
        (SPEC, "none", NOTHING, []),
        (None, "none", NOTHING, []),
        (SPEC, "systemd", NOTHING, ["write unit g-1-layer.mount", "write unit software.mount", RELOAD]),
        (SPEC, "systemd", WRITTEN, []),
        (PLAIN, "systemd", NOTHING, ["write unit software.mount", RELOAD]),
        (SPEC, "fstab", NOTHING, ["write the overlay at /software into /etc/fstab"]),
        (SPEC, "fstab", IN_FSTAB, []),
        # The link of the unit is missing.
        (SPEC, "systemd", Stored((UNITS[0], Unit(UNITS[1].name, UNITS[1].text, False)), b""), ["write unit software.mount", RELOAD]),
        # Another run was killed before systemd read its units again.
        (SPEC, "systemd", replace(WRITTEN, reload_due=True), [RELOAD]),
        (SPEC, "fstab", replace(IN_FSTAB, reload_due=True), [RELOAD]),
        (PLAIN, "systemd", replace(NOTHING, reload_due=True), ["write unit software.mount", RELOAD]),
        # After a switch to the next generation, the old image is not needed.
        (
            NEXT,
            "systemd",
            WRITTEN,
            ["write unit g-2-layer.mount", "write unit software.mount", RELOAD, UNMOUNT, "remove unit g-1-layer.mount", RELOAD],
        ),
        (NEXT, "fstab", IN_FSTAB, [UNMOUNT, "write the overlay at /software into /etc/fstab"]),
        # Not mounted at boot any more, or unmounted. The image of a view that stays mounted is in use.
        (SPEC, "none", WRITTEN, GONE),
        (None, "systemd", WRITTEN, [UNMOUNT, *GONE]),
        (None, "none", WRITTEN, [UNMOUNT, *GONE]),
        (None, "none", IN_FSTAB, [UNMOUNT, "remove the overlay at /software from /etc/fstab"]),
        # From units to fstab, and back.
        (SPEC, "fstab", WRITTEN, ["write the overlay at /software into /etc/fstab", *GONE]),
        (
            SPEC,
            "systemd",
            IN_FSTAB,
            ["write unit g-1-layer.mount", "write unit software.mount", RELOAD, "remove the overlay at /software from /etc/fstab"],
        ),
        # The image of another view stays.
        (None, "none", Stored((*UNITS, desired_units(OTHER_VIEW, append=True)[1]), b""), ["remove unit software.mount", RELOAD]),
        (NEXT, "none", Stored((Unit("x.mount", b"[Mount]\nWhere=/x\n", False),), FOREIGN), []),
    ],
)  # fmt: skip
def test_the_plan_of_mounts_at_boot(spec: MountSpec | None, persist: str, stored: Stored, expected: list[str]) -> None:
    assert actions(spec, persist, stored) == expected


def live(*lines: bytes) -> tuple[Mount, ...]:
    return tuple(parse(b"1 0 8:1 / / rw - ext4 disk rw\n" + b"".join(line + b"\n" for line in lines)))


IMAGE = b"2 1 7:0 / /g/1/layer ro - erofs /dev/loop0 ro"
VIEW = b"3 1 0:40 / /software ro - overlay overlay ro,lowerdir=/g/1/layer::/net/software"
USED = b"4 1 0:41 / /elsewhere ro - overlay overlay ro,lowerdir=/g/1/layer::/net/software"


@pytest.mark.parametrize(
    ("spec", "mounts", "expected"),
    [
        (NEXT, (IMAGE, VIEW), [UNMOUNT]),
        (None, (IMAGE, VIEW), [UNMOUNT]),
        (SPEC, (IMAGE, VIEW), []),
        (NEXT, (IMAGE, VIEW, USED), []),
        (NEXT, (VIEW,), []),
        (NEXT, (), []),
    ],
)
def test_an_image_mounted_at_boot_is_unmounted_when_no_overlay_uses_it(
    spec: MountSpec | None, mounts: tuple[bytes, ...], expected: list[str]
) -> None:
    assert actions(spec, "none", NOTHING, live(*mounts)) == expected


def test_missing_mountpoints_of_images_are_created() -> None:
    assert [str(one) for one in plan_places(SPEC, "systemd", {b"/g/1/layer"})] == ["create directory /g/1/layer"]
    assert plan_places(SPEC, "systemd", ()) == plan_places(SPEC, "none", {b"/g/1/layer"}) == ()
    assert plan_places(None, "systemd", ()) == ()


def test_units_and_lines_of_others_are_refused_or_left_alone() -> None:
    theirs = Stored((Unit("software.mount", b"[Mount]\nWhere=/software\n", True),), b"")
    with pytest.raises(OverlayError, match=r"software\.mount is there already and is not of this collection"):
        actions(SPEC, "systemd", theirs)
    assert actions(None, "none", theirs) == []
    line = Stored((), b"overlay /software overlay lowerdir=/a:/b 0 0\n")
    with pytest.raises(OverlayError, match="has a line for /software that is not of this collection"):
        actions(SPEC, "fstab", line)
    assert actions(None, "none", line) == []


def test_actions_have_the_units_and_lines_to_write() -> None:
    plan = plan_persistence(b"/software", SPEC, "systemd", NOTHING, (), append=True)
    assert [action.unit for action in plan if isinstance(action, WriteUnit)] == list(UNITS)
    (write,) = plan_persistence(b"/software", SPEC, "fstab", NOTHING, (), append=True)
    assert isinstance(write, WriteViewLines)
    assert write.lines == desired_lines(SPEC, append=True)
    (_unmount, remove) = plan_persistence(b"/software", None, "none", IN_FSTAB, (), append=True)
    assert isinstance(remove, RemoveViewLines)


def automount(place: str, source: str) -> Mount:
    (mount,) = parse(f"40 1 0:60 / {place} rw - autofs {source} rw,fd=7,direct".encode())
    return mount


AUTOFS = automount("/net", "/etc/auto.net")


def test_a_layer_that_automount_mounts_is_looked_up_so_that_it_is_mounted() -> None:
    live = [automount("/net/soft", "/etc/auto.direct"), AUTOFS]
    (view,) = desired_units(PLAIN, append=True, live=live)
    (line,) = desired_lines(PLAIN, append=True, live=live)
    # If its mount were required, systemd would stop the view when the automount expires.
    assert b'\nRequiresMountsFor="/g/1/layer"\nWants=autofs.service\nAfter=autofs.service\n' in view.text
    assert b",x-systemd.requires-mounts-for=/g/1/layer,x-systemd.after=autofs.service," in line
    for text in (view.text, line):
        assert b",lowerdir=/g/1/layer::/net/software/." in text
    # The service of automount(8) starts after remote-fs.target.
    assert b"\nDefaultDependencies=no\n" in view.text
    assert b"\nBefore=multi-user.target\n" in view.text
    assert b"x-systemd.before=multi-user.target" in line


def test_a_layer_in_an_automount_of_systemd_is_wanted_and_not_required() -> None:
    live = [AUTOFS, automount("/net/software", "systemd-1")]
    (view,) = desired_units(PLAIN, append=True, live=live)
    units = b"net-software.automount net-software.mount"
    assert b'\nRequiresMountsFor="/g/1/layer"\nWants=%s\nAfter=%s\n\n' % (units, units) in view.text
    assert b",lowerdir=/g/1/layer::/net/software\n" in view.text
    with pytest.raises(
        OverlayError, match=r"has layer /net/software in an automount of systemd.*use 'persist: systemd'"
    ):
        desired_lines(PLAIN, append=True, live=live)


def test_an_automount_beside_the_layers_changes_nothing() -> None:
    live = [automount("/net/soft", "systemd-1"), automount("/g/1/layer/inside", "systemd-1")]
    assert desired_units(PLAIN, append=True, live=live) == desired_units(PLAIN, append=True)
    assert desired_lines(PLAIN, append=True, live=live) == desired_lines(PLAIN, append=True)


def test_a_view_mounted_at_boot_over_an_automount_is_as_declared() -> None:
    (live,) = parse(b"50 1 0:61 / /software ro - overlay overlay ro,lowerdir=/g/1/layer::/net/software/.")
    assert (overlay_layers(live).lower, overlay_layers(live).data) == ((b"/g/1/layer",), (b"/net/software",))


# ---- trees of overlays

TREE = replace(
    mount_spec(b"/software", [b"/g/1/layer"], [NO_DATA], {}, True),
    parts=(
        TreePart(b"maya", (b"/net/maya",)),
        TreePart(b"rez/a", (b"/net/rez",)),
        TreePart(b"rez/b", (b"/net/rez",)),
    ),
)


def test_a_tree_is_put_together_beside_its_layer_and_then_bound_to_the_mountpoint() -> None:
    empty, top, maya, at_maya, rez, at_a, at_b, view = desired_units(TREE, append=True)
    place = tree_of(TREE)
    assert b"\nWhat=tmpfs\nWhere=" + NO_DATA + b"\nType=tmpfs\nOptions=ro,nosuid,nodev,noexec,mode=0755\n" in empty.text
    assert b'RequiresMountsFor="/g/1/layer" "' + NO_DATA + b'"\n' in top.text
    assert b"\nWhere=" + place + b"\nType=overlay\n" in top.text
    assert b",private,_netdev,lowerdir=/g/1/layer::" + NO_DATA + b"\n" in top.text
    # One overlay of each root, for all parts that show it.
    for whole, root in ((maya, b"/net/maya"), (rez, b"/net/rez")):
        assert b'RequiresMountsFor="/g/1/layer" "' + root + b'"\n' in whole.text
        assert b",lowerdir=/g/1/layer::" + root + b"\n" in whole.text
    (rez_place,) = (line[len(b"Where=") :] for line in rez.text.split(b"\n") if line.startswith(b"Where="))
    for part, name in ((at_a, b"rez/a"), (at_b, b"rez/b")):
        assert b'RequiresMountsFor="' + rez_place + b'"\n' in part.text
        assert b"\nWhat=" + rez_place + b"/" + name + b"\nWhere=" + place + b"/" + name + b"\n" in part.text
    # The view requires the tree, and only wants its parts.
    parts = b" ".join(sorted(one.name.encode() for one in (at_maya, at_a, at_b)))
    assert (b'RequiresMountsFor="%s"\nWants=%s\nAfter=%s\n' % (place, parts, parts)) in view.text
    assert b"\nWhat=" + place + b"\nWhere=/software\nType=none\nOptions=rbind,_netdev\n" in view.text
    assert [unit.wanted for unit in (empty, top, maya, at_maya, rez, at_a, at_b, view)] == [False] * 7 + [True]


@pytest.mark.parametrize(
    "other",
    [
        replace(TREE, lower=(b"/g/2/layer",)),
        replace(TREE, parts=TREE.parts[:2]),
        replace(TREE, flags=frozenset({"ro", "nodev"})),
        replace(TREE, parts=(TreePart(b"maya", (b"/net/maya2",)), *TREE.parts[1:])),
    ],
)
def test_only_the_view_and_its_empty_data_layer_have_the_same_units_in_two_declarations(other: MountSpec) -> None:
    before, after = (desired_units(spec, append=True) for spec in (TREE, other))
    texts = {unit.name: unit.text for unit in before}
    changed = [unit.name for unit in after if unit.name in texts and texts[unit.name] != unit.text]
    assert changed == ["software.mount"]
    # So what is written before the unit of the view, and removed after that, changes nothing for the next boot.
    planned = actions(other, "systemd", Stored(before, b""))
    written, removed = planned.index("write unit software.mount"), [one for one in planned if one.startswith("remove")]
    assert all(one.startswith("write unit ") for one in planned[:written])
    assert removed
    assert planned[written + 1] == RELOAD


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_what_a_tree_needs_at_boot_is_removed_with_its_view(persist: str) -> None:
    other = replace(TREE, path=b"/other")
    units = {spec.path: desired_units(spec, append=True) for spec in (TREE, other)}
    lines = {spec.path: desired_lines(spec, append=True) for spec in (TREE, other)}
    both = {unit.name: unit for spec in (TREE, other) for unit in units[spec.path]}
    text = fstab_with_view(b"".join(lines[b"/software"]), b"/other", lines[b"/other"])
    stored = Stored(tuple(both.values()), b"") if persist == "systemd" else Stored((), text)
    for spec in (TREE, other):
        assert actions(spec, persist, stored, path=spec.path) == []
    removed = actions(None, "none", stored)
    assert f"unmount what a view needed at {tree_of(TREE).decode()}" in removed
    assert not [one for one in removed if tree_of(other).decode() in one or "no-data" in one or "no\\x2ddata" in one]
    if persist == "fstab":
        left = [line for line in text.splitlines(True) if line in lines[b"/other"]]
        assert fstab_with_view(text, b"/software", ()) == b"".join(left)
        assert edited(fstab_with_view(text, b"/software", ()), None, b"/other") == b""


def test_a_part_over_an_automount_wants_it_and_so_does_the_view() -> None:
    live = [AUTOFS]
    units = desired_units(TREE, append=True, live=live)
    late = [unit.name for unit in units if b"After=" in unit.text and b"autofs.service" in unit.text]
    assert len(late) == 6
    assert b"\nBefore=multi-user.target\n" in units[-1].text
    assert b",lowerdir=/g/1/layer::/net/maya/.\n" in units[2].text
    assert b",x-systemd.before=multi-user.target," in desired_lines(TREE, append=True, live=live)[-1]
    live = [automount("/net/maya", "systemd-1")]
    wants = [
        unit.text.count(b"net-maya.automount net-maya.mount") for unit in desired_units(TREE, append=True, live=live)
    ]
    assert wants == [0, 0, 2, 2, 0, 0, 0, 2]
    with pytest.raises(OverlayError, match="has layer /net/maya in an automount of systemd"):
        desired_lines(TREE, append=True, live=live)
