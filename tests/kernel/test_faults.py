"""Make each important system call of a run fail, or be its last one: the old state or the new one is left, never a part.

The errors and signals are injected into modules that run as under Ansible.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import (
    DataImage,
    data_image_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    image_store,
    view_paths,
    view_state,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.injecting import Fault, Injector
from ansible_collections.renderfarm.overlay.tests.kernel.writable import Overlay, sealed, shown

pytestmark = pytest.mark.usefixtures("with_programs")

#: System calls that write, each with the error to inject. The next tables have those that mount and those that finalize.
WRITING = {
    "mkdir": "ENOSPC",
    "mkdirat": "ENOSPC",
    "rename": "EIO",
    "fsync": "EIO",
    "symlink": "ENOSPC",
    "unlink": "EIO",
    "unlinkat": "EIO",
    "rmdir": "EIO",
    "ftruncate": "EIO",
    "fsetxattr": "ENOSPC",
    "syncfs": "EIO",
    "sendfile": "EIO",
    "execve": "ENOENT",
}
MOUNTING = {
    "fsopen": "EMFILE",
    "fsconfig": "ENOMEM",
    "fsmount": "ENOMEM",
    "open_tree": "ENOMEM",
    "move_mount": "ENOMEM",
    "umount2": "EBUSY",
    "mount": "ENOMEM",
    "unshare": "ENOMEM",
    "rename": "EIO",
    "mkdir": "ENOSPC",
    "mkdirat": "ENOSPC",
}
FINALIZING = {
    "setxattr": "ENOSPC",
    "fsetxattr": "ENOSPC",
    "lsetxattr": "ENOSPC",
    "removexattr": "EIO",
    "fremovexattr": "EIO",
    "lremovexattr": "EIO",
    "lchown": "EIO",
    "fchownat": "EIO",
    "utimensat": "EIO",
    "chmod": "EIO",
    "fchmod": "EIO",
    "unlinkat": "EIO",
    "syncfs": "EIO",
    "umount2": "EBUSY",
    "fsopen": "EMFILE",
    "fsmount": "ENOMEM",
    "move_mount": "ENOMEM",
    "mount": "ENOMEM",
    "rename": "EIO",
    "unlink": "EIO",
    "rmdir": "EIO",
}
#: The most calls of one kind to inject into. Further ones belong to the same loop over files, records or links.
MOST_OF_A_KIND = 4


@dataclass
class Faults:
    """Run a module again and again, with one system call that fails or is the last one, and count the runs."""

    runs: int = 0
    kinds: int = 0
    most_of_a_kind: int = MOST_OF_A_KIND

    def each(
        self, calls: dict[str, str], module: str, arguments: dict[str, Any], around: Callable[[], Iterator[None]]
    ) -> None:
        """Inject each fault in turn. ``around`` prepares a run, and after the run checks the state that it left."""
        counts = self._run(Injector(calls), module, arguments, around)
        for call, error in calls.items():
            number_of_calls = min(counts.counted(call), self.most_of_a_kind)
            for number in range(1, number_of_calls + 1):
                for name in (error, ""):
                    injector = Injector([call], Fault(call, number, name))
                    self.runs += self._run(injector, module, arguments, around).injected
            self.kinds += number_of_calls > 0

    def _run(
        self, injector: Injector, module: str, arguments: dict[str, Any], around: Callable[[], Iterator[None]]
    ) -> Injector:
        """Run a module under an injector, and return the injector."""
        steps = around()
        next(steps)
        with support.forked_module(module, arguments, injector.enter) as child, injector.serving():
            child.go()
            child.finish()
        next(steps, None)
        return injector


def run(module: str, /, **arguments: Any) -> dict[str, Any]:
    """Run a module, which must succeed, and return its result."""
    with support.forked_module(module, arguments) as child:
        child.go()
        return child.finish().ok


@pytest.fixture
def faults() -> Faults:
    return Faults()


class View:
    """A view in a state directory, and checks of its generations."""

    def __init__(self, area: Path, root: Path) -> None:
        self.state_dir = area / "state"
        self.paths = ViewPaths.of(str(self.state_dir), "view")
        self.root = root

    def check(self) -> None:
        """Check that each visible generation is complete, and that the links lead to one."""
        state = view_state.observe(self.paths)
        for name in state.generations:
            generation = view_state.read_generation(self.paths, name)
            layer = view_paths.layer_path(self.paths.generation(name), generation.format)
            if generation.image:
                assert erofs_layer.file_digest(layer) == generation.image.digest
            else:
                found = sum(1 for _name in Path(layer).rglob("*")) + 1
                assert found == generation.entries.total
        for linked in (state.current, state.previous):
            assert linked is None or linked in state.generations

    def check_tidy(self) -> None:
        """Check that pruning removes the leftovers of a killed run."""
        run("overlay_prune", name="view", state_dir=str(self.state_dir), keep=9, min_age=0)
        assert sorted(os.listdir(self.paths.root)) == ["current", "generations", "lock", "previous"]

    def restore(self, saved: Path) -> None:
        """Restore the state directory from a copy."""
        shutil.rmtree(self.state_dir)
        shutil.copytree(saved, self.state_dir, symlinks=True)


def layer_arguments(view: View, placement: Placement, layer_format: str, strategy: str = "data_only") -> dict[str, Any]:
    releases = [{"manifest": placement.manifest}]
    form = {"format": layer_format, "strategy": strategy}
    return {"name": "view", "state_dir": str(view.state_dir), "releases": releases, **form}


@pytest.mark.parametrize("layer_format", ["directory", "erofs"])
def test_a_failed_build_leaves_the_old_state_or_a_complete_generation(
    area: Path, root: Path, tools: tuple[Placement, ...], faults: Faults, layer_format: str
) -> None:
    view = View(area, root)
    assert run("metadata_layer", **layer_arguments(view, tools[0], layer_format))["changed"]
    saved = area / "saved"
    shutil.copytree(view.state_dir, saved, symlinks=True)
    wanted = layer_arguments(view, tools[1], layer_format)

    def around() -> Iterator[None]:
        before = view_state.observe(view.paths).current
        yield
        view.check()
        assert view_state.observe(view.paths).current in (before, expected)
        result = run("metadata_layer", **wanted)
        assert result["generation"] == view_paths.generation_of(expected)
        view.check()
        assert not run("metadata_layer", **wanted)["changed"]
        view.check_tidy()
        view.restore(saved)

    expected = f"{run('metadata_layer', _ansible_check_mode=True, **wanted)['generation']}-{layer_format}"
    faults.each(WRITING, "metadata_layer", wanted, around)
    assert faults.kinds >= 8
    assert faults.runs >= (40 if layer_format == "directory" else 35)


def test_a_failed_install_leaves_the_old_state_or_the_complete_image(
    area: Path, root: Path, tools: tuple[Placement, ...], faults: Faults
) -> None:
    view = View(area, root)
    assert run("metadata_layer", **layer_arguments(view, tools[0], "erofs"))["changed"]
    saved = area / "saved"
    shutil.copytree(view.state_dir, saved, symlinks=True)
    (area / "images").mkdir()
    published = run(
        "metadata_layer", name="view", releases=[{"manifest": tools[1].manifest}], image_store=str(area / "images")
    )
    wanted = {"name": "view", "state_dir": str(view.state_dir)}
    wanted.update(image=published["image"], image_digest=published["image_digest"])
    expected = f"{published['generation']}-erofs"

    def around() -> Iterator[None]:
        before = view_state.observe(view.paths).current
        yield
        view.check()
        assert view_state.observe(view.paths).current in (before, expected)
        run("metadata_layer", **wanted)
        view.check()
        assert view_state.observe(view.paths).current == expected
        view.check_tidy()
        view.restore(saved)

    faults.each(WRITING, "metadata_layer", wanted, around)
    assert faults.runs >= 20


def test_a_failed_publish_leaves_complete_images_or_none(
    area: Path, tools: tuple[Placement, ...], faults: Faults
) -> None:
    store = area / "images"
    store.mkdir()
    wanted = {"name": "view", "releases": [{"manifest": tools[1].manifest}], "image_store": str(store)}

    def around() -> Iterator[None]:
        shutil.rmtree(store)
        store.mkdir()
        yield
        image = image_store.image_path(str(store), expected["generation"])
        found = image_store.find(image)
        assert found is None or found.image is not None
        if found and found.image:
            assert found.image.packed
            assert erofs_layer.file_digest(f"{image}.gz") == found.image.packed.digest
        assert run("metadata_layer", **wanted)["image_digest"] == expected["image_digest"]

    expected = run("metadata_layer", **wanted)
    faults.each(WRITING, "metadata_layer", wanted, around)
    assert faults.runs >= 15


@pytest.mark.parametrize(
    ("layer_format", "strategy"), [("directory", "data_only"), ("erofs", "data_only"), ("directory", "redirect")]
)
def test_a_failed_switch_leaves_the_old_view_or_the_new_one(
    area: Path, root: Path, tools: tuple[Placement, ...], faults: Faults, layer_format: str, strategy: str
) -> None:
    view = View(area, root)
    layers = [run("metadata_layer", **layer_arguments(view, one, layer_format, strategy))["layer"] for one in tools]
    place = area / "view"
    declared = [{"path": str(place), "lower": [layer], "data": [str(root)], "strategy": strategy} for layer in layers]

    def around() -> Iterator[None]:
        run("overlay_mount", **declared[0])
        assert (place / "tool" / "1.0").is_dir()
        yield
        shown = os.listdir(place / "tool")
        assert shown in (["1.0"], ["2.0"])
        assert support.compare_trees(place / "tool" / shown[0], root / "tool" / shown[0]) == []
        run("overlay_mount", **declared[1])
        assert os.listdir(place / "tool") == ["2.0"]
        assert len(mounts.observe(os.fsencode(place)).below) == 0
        assert not run("overlay_mount", **declared[1])["changed"]

    faults.each(MOUNTING, "overlay_mount", declared[1], around)
    assert faults.runs >= 15
    assert [mount.path for mount in namespaces.own_mounts() if mount.fstype == b"erofs"] == []


def test_a_failed_switch_to_a_data_image_leaves_the_old_view_or_the_new_one(
    area: Path, root: Path, tools: tuple[Placement, ...], faults: Faults
) -> None:
    view = View(area, root)
    layer = run("metadata_layer", **layer_arguments(view, tools[0], "erofs"))["layer"]
    shutil.copytree(root / "tool" / "1.0", area / "copy" / "tool" / "1.0", symlinks=True)
    # Without a record, it is mounted once more to compare it with the software root.
    image = support.image_of(area / "copy", area / "data" / "tool.erofs")
    place = area / "view"
    declared = [{"path": str(place), "lower": [layer], "data": data} for data in ([str(root)], [str(image), str(root)])]

    def around() -> Iterator[None]:
        run("overlay_mount", **declared[0])
        yield
        assert support.compare_trees(place / "tool" / "1.0", root / "tool" / "1.0") == []
        assert run("overlay_mount", **declared[1])["mount"]["data"] == [str(image.with_suffix("")), str(root)]
        assert support.compare_trees(place / "tool" / "1.0", root / "tool" / "1.0") == []
        assert not run("overlay_mount", **declared[1])["changed"]

    faults.each(MOUNTING, "overlay_mount", declared[1], around)
    assert faults.runs >= 15
    assert [mount.path for mount in namespaces.own_mounts() if mount.fstype == b"erofs"] == []
    support.unmount_all(place)
    assert support.loops_gone(area)


def test_a_failed_prune_leaves_complete_data_images(area: Path, faults: Faults) -> None:
    state_dir, saved = area / "state", area / "saved"
    (saved / "data").mkdir(parents=True, mode=0o700)
    saved.chmod(0o700)
    for number in range(3):
        text = b"image %d" % number
        digest = "sha256:" + hashlib.sha256(text).hexdigest()
        image = DataImage("tool/1.0", "tool/1.0", "/net", digest, "trace", digest, False, 1, 0, 1, 1, digest, len(text))
        (saved / "data" / f"{image.id}.erofs").write_bytes(text)
        (saved / "data" / f"{image.id}.json").write_bytes(data_image_to_json(image))
    wanted = {"state_dir": str(state_dir), "min_age": 0}

    def around() -> Iterator[None]:
        shutil.copytree(saved, state_dir)
        yield
        for image_id, image in installing.installed(str(state_dir)).items():
            path = installing.data_image_path(str(state_dir), image_id)
            assert erofs_layer.file_digest(path) == image.digest
        run("overlay_prune", **wanted)
        assert os.listdir(state_dir / "data") == ["lock"]
        shutil.rmtree(state_dir)

    # Each further call of a kind removes one more image in the same way.
    faults.most_of_a_kind = 2
    faults.each(WRITING, "overlay_prune", wanted, around)
    assert faults.runs >= 8


def test_a_failed_prune_leaves_complete_generations(
    area: Path, root: Path, tools: tuple[Placement, ...], faults: Faults
) -> None:
    view = View(area, root)
    for owner in range(4):
        run("metadata_layer", **layer_arguments(view, tools[0], "directory"), owner=str(owner))
    saved = area / "saved"
    shutil.copytree(view.state_dir, saved, symlinks=True)
    wanted = {"name": "view", "state_dir": str(view.state_dir), "keep": 0, "min_age": 0}

    def around() -> Iterator[None]:
        yield
        view.check()
        run("overlay_prune", **wanted)
        assert len(os.listdir(view.paths.generations)) == 2
        view.check_tidy()
        view.restore(saved)

    # Each further call of a kind removes one more generation in the same way.
    faults.most_of_a_kind = 2
    faults.each(WRITING, "overlay_prune", wanted, around)
    assert faults.runs >= 10


def test_a_failed_finalize_leaves_an_overlay_that_reads_as_before(area: Path, faults: Faults) -> None:
    lower = area / "lower"
    support.make_small_release(lower / "tool" / "1.0", "one")
    (lower / "tool/1.0/bin/tool").chmod(0o6755)
    os.setxattr(lower / "tool/1.0/bin/tool", "security.capability", support.CAPABILITY)
    support.make_small_release(lower / "tool" / "2.0", "two")
    gone = area / "gone"
    overlay = Overlay(area / "overlay", (lower,))
    wanted = {
        "path": str(overlay.path),
        "allow_unmount": True,
        "owner": "11",
        "keep_setid": True,
        "stale": "remove",
        "merged_levels": 1,
    }
    by_hand = False

    def content() -> dict[bytes, Any]:
        # Only this release is compared. For the deleted one, not even stat(2) is reliable.
        return {path: one[4] for path, one in shown(overlay.path / "tool/1.0").items()}

    def around() -> Iterator[None]:
        nonlocal by_hand
        overlay.mount()
        before = content()
        # A release that was finalized, and then deleted.
        run("overlay_finalize", path=str(overlay.path), subtrees=["tool/2.0"], allow_unmount=True)
        (lower / "tool/2.0").rename(gone)
        yield
        by_hand = not by_hand
        if support.live(overlay.path) is None and by_hand:
            overlay.mount()
        if support.live(overlay.path):
            assert content() == before
        result = run("overlay_finalize", **wanted)
        assert result["finalized"]
        assert content() == before
        for path in (overlay.path / "tool/1.0").rglob("*"):
            assert path.lstat().st_uid == 11
            assert not [name for name in os.listxattr(path, follow_symlinks=False) if "restor" in name]
        assert (overlay.path / "tool/1.0/bin/tool").stat().st_mode & 0o7777 == 0o6755
        assert support.capability_of(os.fsencode(overlay.path / "tool/1.0/bin/tool")) == support.CAPABILITY
        assert sealed(overlay, "tool/1.0")
        assert os.listdir(overlay.upper / "tool") == ["1.0"]
        assert not run("overlay_finalize", **wanted)["changed"]
        overlay.unmount()
        shutil.rmtree(overlay.area)
        overlay.__post_init__()
        gone.rename(lower / "tool/2.0")

    faults.most_of_a_kind = 8
    faults.each(FINALIZING, "overlay_finalize", wanted, around)
    assert faults.kinds >= 11
    assert faults.runs >= 50
