"""Layers that an automounter mounts on demand, and unmounts when nobody uses them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import boot_paths, mount_units, view_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import health
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import mounting
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.at_boot.test_boot import GENERATOR
from ansible_collections.renderfarm.overlay.tests.kernel.automounter import Automount, automount
from ansible_collections.renderfarm.overlay.tests.kernel.overlays.test_switch import arguments_of, generation

KINDS = ("direct", "indirect")
SECONDS = 60.0


@contextlib.contextmanager
def on_demand(area: Path, source: Path, kind: str = "direct", answers: bool = True) -> Iterator[tuple[Path, Automount]]:
    """Mount a directory on demand while the block runs; provide the path, where nothing is mounted yet."""
    place = area / "net"
    place.mkdir()
    with automount(place, source if kind == "direct" else {"software": source}, answers) as daemon:
        yield place if kind == "direct" else place / "software", daemon


def carry_out(plan: Plan, handlers: Handlers) -> None:
    for action in plan:
        apply(action, handlers)


def command_check(command: str) -> health.HealthCheck:
    return health.HealthCheck(command, "root", SECONDS, {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_mounted_and_switched_over_an_idle_automount(area: Path, kind: str) -> None:
    view = area / "view"
    specs = [generation(area, number, view, image=number == 1) for number in range(2)]
    data = Path(os.fsdecode(specs[0].data[0]))
    with on_demand(area, data, kind) as (software, daemon):
        arguments: list[dict[str, Any]] = [arguments_of(spec, data=[str(software)]) for spec in specs]
        assert support.module("overlay_mount", check=True, **arguments[0]).ok["changed"]
        daemon.expire()
        assert support.module("overlay_mount", **arguments[0]).ok["changed"]
        daemon.expire()
        # The view has the file system, so neither reading nor a run without changes mounts anything.
        served = daemon.served()
        assert not support.module("overlay_mount", **arguments[0]).ok["changed"]
        assert (view / "bin" / "file0").read_text() == "generation 0"
        assert daemon.served() == served
        # The image is mounted in a private mount namespace, where nothing is mounted on demand.
        assert support.module("overlay_mount", **arguments[1]).ok["switched"]
        assert daemon.served() == served + 1
        assert (view / "bin" / "file0").read_text() == "generation 0"


@pytest.mark.parametrize("image", [False, True])
def test_an_idle_automount_holds_layers_of_a_view_that_is_checked_unseen(area: Path, image: bool) -> None:
    view = area / "view"
    generation(area, 0, view, image)
    with on_demand(area, area / "g0") as (place, daemon):
        spec = support.declared(view, [place / ("layer.erofs" if image else "layer")], [place / "data"])
        daemon.expire()
        health.try_unseen(spec, "carry", [], command_check(f"cat {view}/bin/file0"), SECONDS, no_progress)


def test_the_command_of_a_health_check_sees_what_is_mounted_on_demand(area: Path) -> None:
    shared = area / "shared"
    shared.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", shared)
    support.command("mount", "--make-shared", shared)
    spec = generation(area, 0, area / "view")
    (area / "home").mkdir()
    (area / "home" / "licence").write_text("licence")
    with on_demand(shared, area / "home") as (home, daemon):
        health.try_unseen(spec, "carry", [], command_check(f"cat {home}/licence"), SECONDS, no_progress)
        assert daemon.served() == 1


def test_an_automount_that_cannot_be_mounted_is_named(area: Path) -> None:
    spec = generation(area, 0, area / "view")
    with on_demand(area, area / "missing") as (software, _daemon):
        failed = support.module("overlay_mount", **arguments_of(spec, data=[str(software)]))
        assert f"layer {software} is an automount, and it cannot be mounted" in failed.message
        assert "check the map of the automounter" in failed.message


def test_an_automounter_that_does_not_answer_ends_the_run_at_its_time_limit(area: Path) -> None:
    spec = generation(area, 0, area / "view")
    with on_demand(area, area / "g0", answers=False) as (software, _daemon):
        failed = support.module("overlay_mount", **arguments_of(spec, data=[str(software)], timeout=1))
        assert "no progress for 1 seconds" in failed.message
    assert not (area / "view").is_mount()


def test_a_directory_that_the_kernel_takes_for_no_layer_gets_no_hint_about_the_version(area: Path) -> None:
    spec = generation(area, 0, area / "view")
    # Names in this directory are compared by a function of its own, which overlayfs refuses.
    moved = support.declared(area / "view", [spec.lower[0]], [Path("/proc/sys/kernel")])
    with pytest.raises(
        OverlayError, match=r"/proc/sys/kernel not supported.*; use a directory on a file system"
    ) as refused:
        creating.new_overlay(moved)
    assert "Linux 6.5" not in str(refused.value)


def test_a_list_of_releases_keeps_the_software_root_mounted(area: Path) -> None:
    source = area / "source"
    for version in ("1", "2"):
        (source / "tool" / version).mkdir(parents=True)
    with on_demand(area, source) as (software, daemon):
        found = scan.find_releases(str(software), Pattern.parse("{package}/{version}"), scan.PassedOver())
        first = next(found)
        assert not daemon.expire()
        assert {first.path, *(one.path for one in found)} == {"tool/1", "tool/2"}
        assert daemon.expire()
        with namespaces.held([os.fsencode(software)]):
            assert not daemon.expire()


def test_what_mounts_the_view_at_boot_mounts_its_automount(area: Path) -> None:
    view = area / "view"
    spec = generation(area, 0, view)
    view.mkdir(exist_ok=True)
    with on_demand(area, Path(os.fsdecode(spec.data[0]))) as (software, daemon):
        arguments = arguments_of(spec, data=[str(software)])
        declared = dataclasses.replace(spec, data=(os.fsencode(software),))
        (unit,) = mount_units.desired_units(declared, append=True, live=namespaces.own_mounts())
        assert b"\nAfter=autofs.service\n" in unit.text
        options = next(line for line in unit.text.split(b"\n") if line.startswith(b"Options="))[len(b"Options=") :]
        daemon.expire()
        support.command("mount", "-t", "overlay", "overlay", "-o", os.fsdecode(options), view)
        assert (view / "bin" / "file0").read_text() == "generation 0"
        assert not support.module("overlay_mount", **arguments).ok["changed"]


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_systemd_finds_no_cycle_in_the_order_of_a_view_and_its_automounter(area: Path, persist: str) -> None:
    units, view = area / "units", area / "view"
    for target, wanted in (("multi-user", "autofs.service"), ("remote-fs", boot_paths.unit_name(os.fsencode(view)))):
        (units / f"{target}.target.wants").mkdir(parents=True)
        (units / f"{target}.target.wants" / wanted).symlink_to(f"../{wanted}")
    # The order of Debian's package.
    (units / "autofs.service").write_text(
        "[Unit]\nAfter=network-online.target remote-fs.target\n[Service]\nExecStart=/bin/true\n"
    )
    spec = dataclasses.replace(generation(area, 0, view), data=(b"/net/software",))
    live = list(mountinfo.parse(b"40 1 0:60 / /net rw - autofs /etc/auto.net rw,fd=7,indirect"))
    if persist == "systemd":
        (unit,) = mount_units.desired_units(spec, append=True, live=live)
        (units / unit.name).write_bytes(unit.text)
    else:
        (area / "fstab").write_bytes(b"".join(view_lines.desired_lines(spec, append=True, live=live)))
        environment = {**os.environ, "SYSTEMD_FSTAB": str(area / "fstab")}
        generated = [str(units), *(str(area / name) for name in ("early", "late"))]
        subprocess.run([GENERATOR, *generated], check=True, env=environment)
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}
    verify = ["systemd-analyze", "verify", "--man=no", "multi-user.target"]
    done = subprocess.run(verify, env=environment, capture_output=True, text=True, check=False)
    assert "cycle" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_listing_a_root_mounts_no_other_root_on_demand(area: Path) -> None:
    for release in ("houdini/20.5", "maya/2025"):
        (area / release).mkdir(parents=True)
    (area / "houdini/current").symlink_to("20.5")
    listing: dict[str, Any] = {"root": str(area / "houdini"), "pattern": "{version}", "package": "houdini"}
    with on_demand(area, area / "maya", "indirect") as (maya, daemon):
        listing["named_roots"] = {"maya": str(maya)}
        (link,) = support.module("release_info", **listing).ok["links"]
        assert (link["release"], daemon.served()) == ("20.5", 0)
        # Whether this link leads to the other root, only the real path of that says.
        (area / "houdini/old").symlink_to(maya / "2025")
        links = support.module("release_info", **listing).ok["links"]
        assert [link["elsewhere"] for link in links] == [None, "maya/2025"]


def test_each_layer_is_mounted_on_demand_once_and_counts_as_progress(area: Path) -> None:
    names = ("a", "b", "c")
    view = area / "view"
    spec = generation(area, 0, view)
    for name in names:
        shutil.copytree(os.fsdecode(spec.data[0]), area / name)
    (area / "net").mkdir()
    progress = []
    with automount(area / "net", {name: area / name for name in names}) as daemon:

        def worked() -> None:
            # The timeout of an automounter may be shorter than the time that it takes to mount all layers.
            daemon.expire()
            progress.append(daemon.served())

        given = arguments_of(spec, data=[str(area / "net" / name) for name in names], options={}, state="mounted")
        given.update(dict.fromkeys(("upper", "work", "scratch", "read_only")))
        given.update(persist="none", switch="auto", inner_mounts="carry")
        mounting.bring(os.fsencode(view), given, False, SECONDS, worked, carry_out)
        # The first layer is the lower one, which is always there.
        assert progress[:4] == [0, 1, 2, 3]
        assert daemon.served() == len(names)
    assert (view / "bin" / "file0").read_text() == "generation 0"
