"""Units and lines of fstab, mounted by mount(8) as at boot, give the declared overlay."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import (
    boot,
    boot_mounts,
    boot_paths,
    boot_plan,
    view_lines,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_plan import ReloadSystemd, WriteUnit
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_units import MARKER, Unit, desired_units
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import boot_files, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, mount_spec
from ansible_collections.renderfarm.overlay.tests.kernel import support

UNITS = Path(boot_files.UNITS)
FSTAB = Path(boot_files.FSTAB)
WANTS = UNITS / "remote-fs.target.wants"

ODD = [
    "plain",
    "a b",
    "c,d",
    "e:f",
    "g\\h",
    "i\\j,k",
    "l\\:m",
    "%n %%",
    "q'r",
    "#s",
    ";t",
    "$x ${y}",
    "ü 日",
    "=a",
    "\\040",
    "\\x20",
    "z\\\\z",
    "-dash",
    ".dot",
]


@pytest.fixture(autouse=True)
def etc(arena: Path) -> Iterator[None]:
    """Mount a private /etc over that of the machine."""
    for name in ("upper", "work"):
        (arena / "etc" / name).mkdir(parents=True)
    options = f"lowerdir=/etc,upperdir={arena}/etc/upper,workdir={arena}/etc/work"
    support.command("mount", "-t", "overlay", "-o", options, "etc", "/etc")
    FSTAB.write_text("# a comment\nfiler:/x /net/x nfs noauto,ro 0 0\n")
    UNITS.mkdir(parents=True, exist_ok=True)
    # The units of this machine are hidden, since other programs may write them at the same time.
    support.command("mount", "-t", "tmpfs", "tmpfs", UNITS)
    yield
    support.command("umount", "--lazy", "/etc")
    support.command("rm", "-r", arena / "etc")


SYSTEMCTL = """#!/bin/sh
echo "$@" >> {place}/calls
if [ -p {place}/started ]; then : > {place}/started; read line < {place}/goes_on; fi
if [ -e {place}/killing ]; then rm {place}/killing; kill -KILL $PPID; fi
"""


class Systemd:
    """A systemd that runs, and a systemctl that notes its calls."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "systemctl").write_text(SYSTEMCTL.format(place=place))
        (place / "systemctl").chmod(0o755)

    def kill_the_next_caller(self) -> None:
        (self.place / "killing").touch()

    def calls(self) -> list[str]:
        """Return the calls since the last time."""
        path = self.place / "calls"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found


@pytest.fixture
def systemd(arena: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    place = arena / "systemd"
    place.mkdir()
    running = Path("/run/systemd/system")
    running.mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    yield Systemd(place)
    support.command("rm", "-r", place, running)


#: The kinds of layers.
KINDS = ["image", "directory", "redirect", "data image"]


def view_of(area: Path, number: int = 1, kind: str = "image", view: str = "view", **options: Any) -> MountSpec:
    """Make a generation with one file, and declare its view.

    ``kind`` is one of KINDS; ``redirect`` is the strategy of that name. With ``data image``, the content is only in an image.
    """
    layer, data = area / f"g{number}" / "layer", area / "data"
    top = layer / "view" if kind == "redirect" else layer
    data.mkdir(parents=True, exist_ok=True)
    support.write(data / "file", b"content")
    top.mkdir(parents=True)
    support.write(top / "file")
    os.setxattr(top / "file", "trusted.overlay.metacopy", b"")
    os.setxattr(top / "file", "trusted.overlay.redirect", b"/file")
    os.truncate(top / "file", 7)
    if kind == "redirect":
        os.setxattr(top, "trusted.overlay.opaque", b"y")
        return support.declared(area / view, [layer], [data], strategy="redirect", **options)
    if kind == "image":
        support.image_of(layer, layer.with_suffix(".erofs"))
        support.command("rm", "-r", layer)
        layer = layer.with_suffix(".erofs")
    if kind == "data image":
        image = support.image_of(data, area / "state" / "data" / f"{number:016x}.erofs")
        (area / "empty").mkdir(exist_ok=True)
        return support.declared(area / view, [layer], [image, area / "empty"], **options)
    return support.declared(area / view, [layer], [data], **options)


def arguments_of(spec: MountSpec, persist: str, **more: Any) -> dict[str, Any]:
    of_layer = {without_suffix(image): image for image in spec.images}
    lower, data = ([os.fsdecode(of_layer.get(path, path)) for path in layers] for layers in (spec.lower, spec.data))
    given = {"path": os.fsdecode(spec.path), "lower": lower, "data": data, "strategy": spec.strategy}
    return {**given, "persist": persist, **more}


def settings(unit: bytes) -> dict[str, str]:
    """Return the settings of a unit as systemd reads them."""
    found = re.findall(rb"^(\w+)=(.*)$", unit, re.MULTILINE)
    return {name.decode(): value.decode().replace("%%", "%") for name, value in found}


def mount_units(units: tuple[Unit, ...]) -> None:
    """Mount units as systemd does: make the mountpoint and run mount(8)."""
    for unit in units:
        said = settings(unit.text)
        os.makedirs(said["Where"], exist_ok=True)
        support.command("mount", said["What"], said["Where"], "-t", said["Type"], "-o", said["Options"])


def is_as_declared(spec: MountSpec) -> bool:
    return support.planned(spec) == () and (Path(os.fsdecode(spec.path)) / "file").read_bytes() == b"content"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ODD)
def test_a_unit_mounts_the_declared_overlay(area: Path, name: str, kind: str) -> None:
    spec = view_of(area / name, kind=kind, view=f"view {name}", nodev=True, noatime=True)
    mount_units(desired_units(spec, append=True))
    assert is_as_declared(spec)


@pytest.mark.parametrize("name", [name for name in ODD if not re.search(r"[ ,\\']", name)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_line_of_fstab_mounts_the_declared_overlay(area: Path, name: str, kind: str) -> None:
    spec = view_of(area / name, kind=kind, view=f"view \\ {name}", nosuid=True)
    lines = view_lines.desired_lines(spec, append=True)
    for where in (spec.path, *boot_mounts.places(spec)):
        os.makedirs(where, exist_ok=True)
    (area / "fstab").write_bytes(b"".join(lines))
    support.command("mount", "-a", "-T", area / "fstab")
    assert is_as_declared(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_an_upper_layer_is_mounted_at_boot_with_what_was_written(area: Path, kind: str) -> None:
    kept = area / "kept"
    kept.mkdir(mode=0o700)
    spec = view_of(area, kind=kind, writable=support.writable(kept / "upper", kept / "work"))
    support.carried_out(spec)
    (area / "view" / "own").write_text("own")
    support.command("umount", area / "view")
    mount_units(desired_units(spec, append=True))
    assert is_as_declared(spec)
    assert (area / "view" / "own").read_text() == "own"
    (area / "view" / "later").write_text("later")


def test_layers_too_long_for_one_option_are_mounted_one_by_one(area: Path) -> None:
    assert creating.takes_layers_one_by_one()
    spec = view_of(area / ("x" * 120) / ("y" * 40))
    units = desired_units(spec, append=True)
    assert b"lowerdir+=" in units[-1].text
    mount_units(units)
    assert is_as_declared(spec)


def check_with_systemd_analyze(area: Path, spec: MountSpec) -> None:
    """Check that systemd finds no fault in the units of an overlay, which are written to a directory."""
    paths = []
    for unit in desired_units(spec, append=True):
        paths.append(area / unit.name)
        paths[-1].write_bytes(unit.text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    said = [line for line in done.stdout.splitlines() if str(area) in line or ".mount" in line]
    assert (done.returncode, said) == (0, []), done.stdout


def test_systemd_analyze_finds_no_fault_in_the_units(area: Path) -> None:
    # No name has a colon: on the command line of systemd-analyze, an alias of the unit follows a colon.
    for number, name in enumerate(["plain", "a b,c\\e", "%n ü '", "data image"]):
        spec = view_of(area / name, number, KINDS[number])
        check_with_systemd_analyze(area, spec)


GENERATOR = "/usr/lib/systemd/system-generators/systemd-fstab-generator"


def generate_units(area: Path, spec: MountSpec) -> None:
    """Have systemd generate units from the lines of fstab of an overlay, into the directory ``normal`` among others."""
    (area / "fstab").write_bytes(b"".join(view_lines.desired_lines(spec, append=True)))
    directories = [area / name for name in ("normal", "early", "late")]
    for path in directories:
        path.mkdir()
    environment = {**os.environ, "SYSTEMD_FSTAB": str(area / "fstab")}
    subprocess.run([GENERATOR, *directories], check=True, env=environment)


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_systemd_generates_from_fstab_mount_the_declared_overlay(area: Path, kind: str) -> None:
    spec = view_of(area / "e:%n#ü=", kind=kind, view="v w\\x", nodev=True)
    generate_units(area, spec)
    units = {name: (area / "normal" / name).read_bytes() for name in os.listdir(area / "normal") if "mount" in name}
    names = [boot_paths.unit_name(path) for path in (*boot_mounts.places(spec), spec.path)]
    assert sorted(units) == sorted(names)
    for name in names:
        assert (area / "normal" / "remote-fs.target.wants" / name).is_symlink()
    required = settings(units[names[0] if kind == "redirect" else names[-1]])["RequiresMountsFor"].split(" ")
    assert required == [os.fsdecode(path) for path in (*spec.lower, *spec.data)]
    if kind == "redirect":
        assert settings(units[names[-1]])["RequiresMountsFor"] == os.fsdecode(boot_mounts.places(spec)[0])
    # A service that starts after the target, such as a render service, finds the view.
    assert boot_mounts.WANTED_BY in settings(units[names[-1]])["Before"].split(" ")
    mount_units(tuple(Unit(name, units[name], True) for name in names))
    assert is_as_declared(spec)


def test_systemd_orders_a_view_on_images_alone_neither_after_the_network_nor_before_local_file_systems(
    area: Path,
) -> None:
    images = [b"/g/1/layer.erofs", b"/data/a.erofs"]
    spec = mount_spec(b"/software", images[:1], images[1:], {}, True, images)
    generate_units(area, spec)
    units = {path.name: settings(path.read_bytes()) for path in (area / "normal").glob("*.mount")}
    assert sorted(units) == ["data-a.mount", "g-1-layer.mount", "software.mount"]
    for name, unit in units.items():
        assert (area / "normal" / "local-fs.target.wants" / name).is_symlink()
        assert "local-fs.target" not in unit.get("Before", "").split(" ")
        assert "nofail" in unit["Options"].split(",")


def four_runs(**arguments: Any) -> dict[str, Any]:
    checked = support.module("overlay_mount", True, True, **arguments).ok
    done = support.module("overlay_mount", **arguments).ok
    again = support.module("overlay_mount", **arguments).ok
    assert (checked["changed"], done["changed"], again["changed"]) == (True, True, False)
    assert checked["actions"] == done["actions"]
    assert checked["diff"]["after"]["at boot"] == done["diff"]["after"]["at boot"]
    assert again["actions"] == []
    return done


def own_units() -> set[str]:
    return {path.name for path in UNITS.glob("*.mount") if path.read_bytes().startswith(MARKER)}


def test_units_follow_the_view(area: Path) -> None:
    specs = [view_of(area, number) for number in range(2)]
    names = [{boot_paths.unit_name(spec.lower[0]), boot_paths.unit_name(spec.path)} for spec in specs]
    view_unit = boot_paths.unit_name(specs[0].path)
    four_runs(**arguments_of(specs[0], "systemd"))
    assert own_units() == names[0]
    assert os.path.samefile(WANTS / view_unit, UNITS / view_unit)
    assert (area / "g0" / "layer").is_dir()
    # This is the state after a boot: the image is mounted visibly.
    support.unmount_all(specs[0].path)
    stored = {unit.name: unit for unit in boot.read().units}
    mount_units(tuple(stored[unit.name] for unit in desired_units(specs[0], append=True)))
    assert not support.module("overlay_mount", **arguments_of(specs[0], "systemd")).ok["changed"]
    # A switch unmounts the old image, and removes its unit and mountpoint.
    done = four_runs(**arguments_of(specs[1], "systemd"))
    assert done["switched"]
    assert own_units() == names[1]
    assert [one.path for one in namespaces.own_mounts() if one.fstype == b"erofs"] == []
    assert os.listdir(area / "g0") == ["layer.erofs"]
    assert os.listdir(area / "g1/layer") == []
    assert (area / "view" / "file").read_bytes() == b"content"
    # The view is not mounted at boot any more, and then it is removed.
    assert support.module("overlay_mount", **arguments_of(specs[1], "none")).ok["changed"]
    assert own_units() == set()
    assert not os.path.lexists(WANTS / view_unit)
    assert support.live(specs[1].path)
    support.module("overlay_mount", **arguments_of(specs[1], "systemd"))
    done = support.module("overlay_mount", path=os.fsdecode(specs[1].path), state="absent").ok
    assert f"remove unit {view_unit}" in done["actions"]
    assert own_units() == set()
    assert os.listdir(area / "g1") == ["layer.erofs"]


def test_lines_of_fstab_follow_the_view(area: Path) -> None:
    before = FSTAB.read_text()
    specs = [view_of(area, number) for number in range(2)]
    four_runs(**arguments_of(specs[0], "fstab"))
    support.unmount_all(specs[0].path)
    support.command("mount", "-a", "-T", FSTAB)
    assert is_as_declared(specs[0])
    assert not support.module("overlay_mount", **arguments_of(specs[0], "fstab")).ok["changed"]
    four_runs(**arguments_of(specs[1], "fstab"))
    assert FSTAB.read_bytes() == before.encode() + b"".join(view_lines.desired_lines(specs[1], append=True))
    assert [one.path for one in namespaces.own_mounts() if one.fstype == b"erofs"] == []
    four_runs(**arguments_of(specs[1], "systemd"))
    assert FSTAB.read_text() == before
    four_runs(**arguments_of(specs[1], "fstab"))
    assert own_units() == set()
    assert support.module("overlay_mount", path=os.fsdecode(specs[1].path), state="unmounted").ok["changed"]
    assert FSTAB.read_text() == before


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_the_whole_overlay_of_a_view_that_shows_one_directory_follows_it(area: Path, persist: str) -> None:
    before = FSTAB.read_bytes(), own_units()
    specs = [view_of(area, number, "redirect") for number in range(2)]
    second = view_of(area, 2, "redirect", "other")
    support.module("overlay_mount", **arguments_of(second, persist))
    kept = FSTAB.read_bytes(), own_units()
    four_runs(**arguments_of(specs[0], persist))
    # The module itself does not mount the whole overlay visibly.
    (place,) = boot_mounts.places(specs[0])
    assert os.listdir(place) == []
    support.unmount_all(specs[0].path)
    if persist == "fstab":
        support.command("mount", "-a", "-T", FSTAB)
    else:
        mount_units(desired_units(specs[0], append=True))
    assert is_as_declared(specs[0])
    assert sorted(os.listdir(place)) == [b"file", b"view"]
    assert not support.module("overlay_mount", **arguments_of(specs[0], persist)).ok["changed"]
    # A switch removes the old whole overlay, and does not report it as another place that shows the old layers.
    done = four_runs(**arguments_of(specs[1], persist))
    assert (done["switched"], done["elsewhere"], done.get("warnings")) == (True, [], None)
    assert os.listdir(area / "g0") == ["layer"]
    assert is_as_declared(specs[1])
    assert support.module("overlay_mount", path=os.fsdecode(specs[1].path), state="absent").ok["changed"]
    assert os.listdir(area / "g1") == ["layer"]
    assert (FSTAB.read_bytes(), own_units()) == kept
    support.module("overlay_mount", path=os.fsdecode(second.path), state="absent")
    assert (FSTAB.read_bytes(), own_units()) == before


def test_an_image_that_another_overlay_uses_stays_mounted(area: Path) -> None:
    specs = [view_of(area, number) for number in range(2)]
    mount_units(desired_units(specs[0], append=True))
    (area / "other").mkdir()
    layers = f"lowerdir={area}/g0/layer::{area}/data"
    support.command("mount", "-t", "overlay", "-o", f"ro,metacopy=on,{layers}", "overlay", area / "other")
    support.module("overlay_mount", **arguments_of(specs[1], "none"))
    assert support.live(area / "g0" / "layer")
    support.module("overlay_mount", path=str(area / "other"), state="absent")
    assert not support.live(area / "g0" / "layer")


def test_a_view_that_cannot_be_mounted_at_boot_is_refused_before_it_is_mounted(area: Path) -> None:
    (area / "a b").mkdir()
    spec = view_of(area / "a b", kind="directory")
    ran = support.module("overlay_mount", **arguments_of(spec, "fstab"))
    assert "use 'persist: systemd'" in ran.message
    assert support.live(spec.path) is None
    (UNITS / boot_paths.unit_name(spec.path)).write_text("[Mount]\n")
    ran = support.module("overlay_mount", **arguments_of(spec, "systemd"))
    assert "not of this collection" in ran.message
    assert support.live(spec.path) is None


def test_check_mode_writes_no_unit_and_no_line(area: Path) -> None:
    spec = view_of(area)
    before = FSTAB.read_bytes(), sorted(os.listdir(UNITS)), sorted(os.listdir(area / "g1"))
    for persist in ("systemd", "fstab"):
        assert support.module("overlay_mount", True, True, **arguments_of(spec, persist)).ok["changed"]
    assert (FSTAB.read_bytes(), sorted(os.listdir(UNITS)), sorted(os.listdir(area / "g1"))) == before


@pytest.mark.parametrize("kind", ["image", "redirect", "data image"])
@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_a_run_that_ends_after_any_of_its_actions_is_completed_by_the_next(area: Path, persist: str, kind: str) -> None:
    before = FSTAB.read_bytes()
    number = 0
    done = 0
    while True:
        # As after a boot, the image or the whole overlay of the first one is mounted visibly.
        specs = [view_of(area, number, kind), view_of(area, number + 1, kind)]
        number += 2
        support.module("overlay_mount", **arguments_of(specs[0], persist))
        support.unmount_all(specs[0].path)
        mount_units(desired_units(specs[0], append=True))
        stored, live = boot.read(), namespaces.own_mounts()
        plan = (
            *boot_plan.plan_places(specs[1], persist, boot.missing_places(specs[1])),
            *support.planned(specs[1]),
            *boot_plan.plan_persistence(specs[1].path, specs[1], persist, stored, live, append=True),
        )
        for action in plan[:done]:
            apply(action, boot.HANDLERS)
        support.module("overlay_mount", **arguments_of(specs[1], persist))
        assert not support.module("overlay_mount", **arguments_of(specs[1], persist)).ok["changed"]
        assert is_as_declared(specs[1])
        expected = {boot_paths.unit_name(path) for path in (specs[1].path, *boot_mounts.places(specs[1]))}
        assert own_units() == (expected if persist == "systemd" else set())
        lines = view_lines.desired_lines(specs[1], append=True) if persist == "fstab" else ()
        assert FSTAB.read_bytes() == before + b"".join(lines)
        assert [
            one.path for one in namespaces.own_mounts() if re.match(rb"/(g|state)", one.path[len(os.fsencode(area)) :])
        ] == []
        if done >= len(plan):
            break
        done += 1
    assert done >= 4


RELOAD = str(ReloadSystemd())


def test_units_of_a_run_that_was_killed_before_systemd_read_them_are_read_by_the_next(
    area: Path, systemd: Systemd
) -> None:
    arguments = arguments_of(view_of(area), "systemd")
    systemd.kill_the_next_caller()
    assert "the worker process was killed" in support.module("overlay_mount", **arguments).message
    assert support.module("overlay_mount", check=True, **arguments).ok["actions"] == [RELOAD]
    assert systemd.calls() == ["daemon-reload"]
    assert support.module("overlay_mount", **arguments).ok["actions"] == [RELOAD]
    assert systemd.calls() == ["daemon-reload"]
    assert not support.module("overlay_mount", **arguments).ok["changed"]
    assert systemd.calls() == []


def check_that_an_ended_run_is_completed(plans: Sequence[Callable[[], Plan]], systemd: Systemd) -> None:
    """Check that units are read after runs that ended before it. The plans are of a mount, of a switch, and to mount nothing at boot."""
    for planned in plans:
        # The first run ends before systemd reads what it wrote, and the second before it reads what that removed.
        for _ended in range(2):
            plan = planned()
            for action in plan[: plan.index(ReloadSystemd())]:
                apply(action, boot.HANDLERS)
        assert systemd.calls() == []
        assert planned() == (ReloadSystemd(),)
        apply(ReloadSystemd(), boot.HANDLERS)
        assert systemd.calls() == ["daemon-reload"]
        assert planned() == ()


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_every_kind_of_view_are_read_after_a_run_that_ended_before_it(
    area: Path, systemd: Systemd, kind: str
) -> None:
    def planned(spec: MountSpec, persist: str) -> Plan:
        places = boot_plan.plan_places(spec, persist, boot.missing_places(spec))
        stored, live = boot.read(), namespaces.own_mounts()
        at_boot = boot_plan.plan_persistence(spec.path, spec, persist, stored, live, append=True)
        return (*places, *support.planned(spec), *at_boot)

    specs = [view_of(area, number, kind) for number in range(2)]
    runs = [(specs[0], "systemd"), (specs[1], "systemd"), (specs[1], "none")]
    check_that_an_ended_run_is_completed([functools.partial(planned, *one) for one in runs], systemd)


def test_a_unit_that_is_written_while_systemd_reads_its_units_is_read_again(area: Path, systemd: Systemd) -> None:
    first, second = desired_units(view_of(area), append=True)
    apply(WriteUnit(first), boot.HANDLERS)
    for name in ("started", "goes_on"):
        os.mkfifo(systemd.place / name)
    reading = threading.Thread(target=apply, args=(ReloadSystemd(), boot.HANDLERS))
    reading.start()
    (systemd.place / "started").read_bytes()
    apply(WriteUnit(second), boot.HANDLERS)
    (systemd.place / "goes_on").write_text("\n")
    reading.join()
    assert boot.read().reload_due
    (systemd.place / "started").unlink()
    apply(ReloadSystemd(), boot.HANDLERS)
    assert not boot.read().reload_due


def test_a_run_that_cannot_have_systemd_read_its_units_fails_and_the_next_tries_again(
    area: Path, systemd: Systemd
) -> None:
    arguments = arguments_of(view_of(area), "systemd")
    (systemd.place / "systemctl").write_text("#!/bin/sh\necho no; exit 1\n")
    assert "systemctl daemon-reload failed (status 1): no" in support.module("overlay_mount", **arguments).message
    (systemd.place / "systemctl").write_text("#!/bin/sh\n")
    assert support.module("overlay_mount", **arguments).ok["actions"][-1] == RELOAD
    assert not support.module("overlay_mount", **arguments).ok["changed"]
