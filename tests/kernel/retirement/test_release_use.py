"""What uses a release is found: in views, through switches, in containers, and on the software root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import fuse_server, support

#: Programs that use the file or directory that they are given. Python keeps a descriptor of what it maps.
OPENS = "import sys\nheld = open(sys.argv[1])\n" + support.WAIT
MAPS = (
    "import mmap, sys\nwith open(sys.argv[1], 'rb') as stream:\n"
    "    held = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)\n" + support.WAIT
)
ENTERS = "import os, sys\nos.chdir(sys.argv[1])\n" + support.WAIT


@dataclass
class Host:
    area: Path
    placements: list[Placement]
    layer: Path
    generation: str

    @property
    def view(self) -> Path:
        return self.area / "view"

    @property
    def root(self) -> Path:
        return self.area / "root"

    def mount(self, layer: Path, **more: Any) -> None:
        given = {"path": str(self.view), "lower": [str(layer)], "data": [str(self.root)], **more}
        assert support.module("overlay_mount", **given).ok["changed"]

    def usage(self, **options: Any) -> dict[str, Any]:
        given = {"state_dirs": [str(self.area / "state")], **options}
        ran = support.module("release_usage_info", **given).ok
        assert not ran["changed"]
        return ran

    def release(self, release: str, **options: Any) -> dict[str, Any]:
        found = self.usage(releases=[release], **options)
        assert [one["release"] for one in found["releases"]] == [release]
        return dict(found["releases"][0])

    def at(self, path: Path | str) -> dict[str, Any]:
        return dict(self.usage(paths=[str(path)], processes=False)["paths"][0])

    def users(self, release: str, **options: Any) -> list[tuple[int, list[str], list[str]]]:
        return [(one["pid"], one["how"], one["paths"]) for one in self.release(release, **options)["processes"]]


@pytest.fixture
def host(area: Path) -> Host:
    placements = []
    for version in ("1.0", "2.0"):
        support.make_small_release(area / "root" / "tool" / version, version)
        placements.append(support.scanned(area / "store", area / "root", f"tool/{version}"))
    (area / "state").mkdir(mode=0o700)
    layer, generation, _report = support.build(area / "state", placements)
    found = Host(area, placements, layer, generation.id)
    found.mount(layer)
    return found


@pytest.mark.parametrize(
    ("code", "path", "how", "inside"),
    [
        (OPENS, "bin/tool", ["open"], "bin/tool"),
        (MAPS, "bin/tool", ["mapped", "open"], "bin/tool"),
        (ENTERS, "bin", ["working directory"], "bin"),
        (ENTERS, "", ["working directory"], "."),
    ],
    ids=["open", "mapped", "directory", "release"],
)
def test_a_process_uses_the_release_that_its_file_is_in(
    host: Host, code: str, path: str, how: list[str], inside: str
) -> None:
    with support.background(code, host.view / "tool" / "1.0" / path) as process:
        assert host.users("tool/1.0") == [(process.pid, how, [inside])]
        # A process uses a release, not its view.
        other = host.release("tool/2.0")
        assert (other["in_use"], other["shown"], other["processes"]) == (False, True, [])
        assert host.release("tool/1.0")["in_use"]
        assert host.release("tool/1.0", processes=False)["processes"] == []
    assert not host.release("tool/1.0")["in_use"]


def test_nothing_above_a_release_counts_as_its_use(host: Host) -> None:
    with support.background(ENTERS, host.view / "tool"):
        assert host.users("tool/1.0") == []


def test_a_program_and_a_root_directory_in_a_release_are_uses(host: Host, area: Path) -> None:
    program = host.root / "tool" / "3.0" / "program"
    program.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", program)
    layer, _generation, _report = support.build(
        area / "state", [*host.placements, support.scanned(area / "store", host.root, "tool/3.0")]
    )
    host.mount(layer)
    with Popen([host.view / "tool/3.0/program", "60"]) as process:
        while os.readlink(f"/proc/{process.pid}/exe") == os.readlink("/proc/self/exe"):
            pass
        assert host.users("tool/3.0") == [(process.pid, ["mapped", "program"], ["program"])]
        process.kill()
    code = f"import os, sys\nos.chroot({str(host.view / 'tool/1.0')!r})\n{support.WAIT}"
    with support.background(code) as jailed:
        assert host.users("tool/1.0") == [(jailed.pid, ["root"], ["."])]


@contextmanager
def switched_away(host: Host) -> Iterator[Popen[str]]:
    with support.background(MAPS, host.view / "tool/1.0/bin/tool") as process:
        layer, _generation, _report = support.build(host.area / "state", host.placements[1:])
        host.mount(layer)
        assert not (host.view / "tool/1.0").exists()
        yield process


@contextmanager
def in_a_container(host: Host) -> Iterator[Popen[str]]:
    prefix = ["unshare", "--mount", "--propagation=private"]
    with support.background(OPENS, host.view / "tool/1.0/bin/tool", prefix=prefix) as process:
        support.unmount_all(host.view)
        yield process


@contextmanager
def in_a_jail(host: Host) -> Iterator[Popen[str]]:
    """Run a process whose root is a directory of a mount namespace of its own, with the view mounted elsewhere in it."""
    inside = host.area / "jail" / "software"
    inside.mkdir(parents=True)
    code = (
        "import os, subprocess, sys\n"
        f"subprocess.run(['mount', '--bind', {str(host.view)!r}, {str(inside)!r}], check=True)\n"
        f"os.chroot({str(inside.parent)!r})\nos.chdir('/')\nheld = open('/software/tool/1.0/bin/tool')\n{support.WAIT}"
    )
    with support.background(code, prefix=["unshare", "--mount", "--propagation=private"]) as process:
        yield process


@contextmanager
def on_a_bind_mount(host: Host) -> Iterator[Popen[str]]:
    other = host.area / "other"
    other.mkdir()
    support.command("mount", "--bind", host.view / "tool" / "1.0", other)
    with support.background(OPENS, other / "bin" / "tool") as process:
        yield process
    support.unmount_all(other)


@pytest.mark.parametrize("using", [switched_away, in_a_container, in_a_jail, on_a_bind_mount])
def test_a_process_is_found_wherever_it_sees_the_view(host: Host, using: Callable[[Host], Any]) -> None:
    with using(host) as process:
        found = host.users("tool/1.0")
        assert [(pid, paths) for pid, _how, paths in found] == [(process.pid, ["bin/tool"])]
        assert host.users("tool/2.0") == []


def test_what_is_used_in_a_view_that_a_user_has_detached_is_unknown(host: Host) -> None:
    with support.background(OPENS, host.view / "tool/1.0/bin/tool") as process:
        support.command("umount", "--lazy", host.view)
        found = host.usage(releases=["tool/2.0"])
        assert found["releases"][0]["in_use"]
        assert [f"({process.pid}) has files of an overlay" in one for one in found["unknown"]] == [True]


def test_use_on_the_software_root_itself_is_found(host: Host) -> None:
    with support.background(OPENS, host.root / "tool/1.0/bin/tool") as process:
        assert host.users("tool/1.0") == [(process.pid, ["open"], ["bin/tool"])]
        assert host.users("tool/2.0") == []
        support.unmount_all(host.view)
        shutil.rmtree(host.area / "state")
        assert host.users("tool/1.0", roots=[str(host.root)]) == [(process.pid, ["open"], ["bin/tool"])]


def test_a_file_server_that_does_not_answer_is_not_asked(host: Host, area: Path) -> None:
    shutil.copytree(host.root, area / "software")
    support.unmount_all(host.view)
    file = "tool/1.0/bin/tool"
    # The processes end after the server is gone: closing a file waits for it.
    with ExitStack() as running, fuse_server.served(area / "software", host.root) as server:
        host.mount(host.layer)
        mapping, opening, entering = (
            running.enter_context(support.background(code, path))
            for code, path in (
                (MAPS, host.view / file),
                (OPENS, host.root / file),
                (ENTERS, host.root / "tool/2.0"),
            )
        )
        server.hang()
        asked: dict[str, Any] = {"roots": [str(host.root)], "timeout": 20.0}
        assert host.users("tool/1.0", **asked) == sorted(
            [(mapping.pid, ["mapped", "open"], ["bin/tool"]), (opening.pid, ["open"], ["bin/tool"])]
        )
        assert host.users("tool/2.0", **asked) == [(entering.pid, ["working directory"], ["."])]
        for path in (host.view / file, host.root / file):
            found = host.usage(paths=[str(path)], processes=False, **asked)["paths"][0]
            assert (found["release"], len(found["places"])) == ("tool/1.0", 1)
        refused = support.module(
            "release_retire",
            root=str(host.root),
            store=str(area / "store"),
            releases=["tool/1.0"],
            state_dirs=[str(area / "state")],
            timeout=20.0,
        )
        assert "is in use on this host, so nothing was removed" in refused.message


@pytest.mark.parametrize("strategy", ["data_only", "redirect"])
def test_the_generations_that_show_a_release_are_named(host: Host, strategy: str) -> None:
    layer, generation, _report = support.build(host.area / "state", host.placements[1:], strategy=strategy)
    host.mount(layer, strategy=strategy)
    old = {"view": "view", "generation": host.generation, "state": "previous", "mounted": False, "mountpoints": []}
    new = {"view": "view", "generation": generation.id, "state": "current", "mounted": True}
    assert host.release("tool/1.0")["views"] == [{**old, "at": ["/tool/1.0"]}]
    found = sorted(host.release("tool/2.0")["views"], key=lambda one: one["state"])
    assert found[0] == {**new, "mountpoints": [str(host.view)], "at": ["/tool/2.0"]}
    with support.background(OPENS, host.view / "tool/2.0/bin/tool") as process:
        assert host.users("tool/2.0") == [(process.pid, ["open"], ["bin/tool"])]
    assert [one["release"] for one in host.usage()["releases"]] == ["tool/1.0", "tool/2.0"]


def test_a_release_of_another_software_root_is_another_release(host: Host) -> None:
    with support.background(OPENS, host.view / "tool/1.0/bin/tool") as process:
        assert [pid for pid, _how, _paths in host.users("tool/1.0", root_name=str(host.root))] == [process.pid]
        found = host.release("tool/1.0", root_name="/net/other")
        assert (found["in_use"], found["shown"], found["views"]) == (False, False, [])
    with support.background(OPENS, host.root / "tool/1.0/bin/tool"):
        assert host.users("tool/1.0", root_name=str(host.root))
        assert not host.users("tool/1.0", root_name="/net/other")


def test_paths_lead_to_releases_and_back(host: Host) -> None:
    inside = host.at(host.view / "tool/1.0/bin/tool")
    assert (inside["release"], inside["source"]) == ("tool/1.0", "tool/1.0/bin/tool")
    assert [one["paths"] for one in inside["places"]] == [[str(host.view / "tool/1.0/bin/tool")]]
    assert host.at(host.root / "tool/1.0/bin/tool")["places"] == inside["places"]
    for outside in (host.view / "tool", host.root / "tool", "/etc/passwd", host.root / "other/1.0/bin"):
        found = host.at(outside)
        assert (found["release"], found["places"]) == (None, [])


def test_the_processes_that_use_a_path_are_those_inside_of_it(host: Host) -> None:
    def users(path: Path) -> list[tuple[int, list[str]]]:
        found = host.usage(paths=[str(path)])["paths"][0]["processes"]
        return [(one["pid"], one["how"]) for one in found]

    with (
        support.background(OPENS, host.view / "tool/1.0/bin/tool") as opening,
        support.background(ENTERS, host.view / "tool/1.0") as entering,
    ):
        for top in (host.view, host.root):
            assert users(top / "tool/1.0/bin/tool") == users(top / "tool/1.0/bin") == [(opening.pid, ["open"])]
            both = sorted([(opening.pid, ["open"]), (entering.pid, ["working directory"])])
            assert users(top / "tool/1.0") == both
            assert users(top / "tool/2.0/bin") == users(top / "tool/1.0/lib") == []


def test_the_layer_decides_among_releases_that_are_merged(host: Host, area: Path) -> None:
    support.write(host.root / "tool/2.0/only", b"x")
    again = support.scanned(area / "store", host.root, "tool/2.0")
    merged = [placement.__class__(**{**vars(placement), "at": b""}) for placement in (host.placements[0], again)]
    layer, _generation, _report = support.build(area / "state", merged, on_conflict="first")
    host.mount(layer)
    assert host.at(host.view / "only")["release"] == "tool/2.0"
    with support.background(OPENS, host.view / "only") as process:
        assert host.users("tool/2.0") == [(process.pid, ["open"], ["only"])]
        assert host.users("tool/1.0") == []


def test_a_generation_whose_record_is_gone_is_unknown(host: Host) -> None:
    os.unlink(host.layer.parent / "view.json")
    found = host.usage(releases=["tool/1.0"])
    assert found["releases"][0]["in_use"]
    assert found["unknown"] == [f"layer {host.layer} is in use, and it is unknown which releases it shows"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"releases": ["../x"]}, "may not contain '..'"),
        ({"releases": ["/net/tool/1"]}, "is not a path below the software root"),
        ({"paths": ["tool"]}, "paths must be an absolute path"),
        ({"state_dirs": ["state"]}, "state_dirs must be an absolute path"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    assert message in support.module("release_usage_info", **options).message


def test_use_on_one_of_several_software_roots_is_told_from_that_on_the_others(host: Host, area: Path) -> None:
    """Releases have equal paths on all roots, and the roots are on one file system."""
    named = {}
    for name in ("maya", "houdini"):
        support.make_small_release(area / name / "1.0", name)
        named[name] = str(area / name)
    with support.background(OPENS, area / "maya/1.0/bin/tool") as process:
        found = {one: host.users(one, named_roots=named) for one in ("maya/1.0", "houdini/1.0", "tool/1.0")}
        assert found == {"maya/1.0": [(process.pid, ["open"], ["bin/tool"])], "houdini/1.0": [], "tool/1.0": []}
    # A release of a root that is asked for, and not one of another root with the same name.
    assert not host.release("tool/1.0", named_roots=named)["shown"]
    assert host.release("tool/1.0", named_roots=named, root_name=str(host.root))["shown"]


def test_a_tree_of_overlays_shows_releases_of_several_roots(host: Host, area: Path) -> None:
    store, roots = area / "stores", []
    releases: list[dict[str, Any]] = []
    store.mkdir()
    for name in ("maya", "houdini"):
        support.make_small_release(area / name / "1.0", name)
        options: dict[str, Any] = {"root": str(area / name), "root_name": name, "prefix": name, "store": str(store)}
        assert support.module("release_manifest", releases=[f"{name}/1.0"], **options).ok["changed"]
        roots.append({"name": name, "path": str(area / name)})
        releases.append({"manifest": str(store / name / "1.0.dump.gz"), "source": "1.0"})
    view = {"name": "tree", "mountpoint": str(area / "tree"), "roots": roots, "releases": releases}
    assert support.module("view", views=[{**view, "state_dir": str(area / "state")}]).ok["changed"]
    named = {root["name"]: root["path"] for root in roots}
    with support.background(OPENS, area / "tree/maya/1.0/bin/tool") as process:
        found = {one: host.users(one, named_roots=named) for one in ("maya/1.0", "houdini/1.0")}
        assert found == {"maya/1.0": [(process.pid, ["open"], ["bin/tool"])], "houdini/1.0": []}
    behind = host.usage(paths=[str(area / "houdini/1.0/bin/tool")], named_roots=named, processes=False)["paths"][0]
    assert behind["release"] == "houdini/1.0"
    assert [one["path"] for one in behind["places"]] == ["/houdini/1.0/bin/tool"]
