# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The generations of a view on disk: what is there, building one, making one current, removing them.

A generation is built below ``staging``, synced, and renamed to its name: what has a name below ``generations`` is whole. One that
is to go is renamed away first.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import dump, erofs_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.directory_layer import (
    BuildReport,
    DirectoryLayer,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import Attributes
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, namespaces, record_files, trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement, Tally
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import Rights
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import removal, view_trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import (
    CURRENT,
    PREVIOUS,
    Generation,
    LayerSpec,
    ViewPaths,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ViewState


def observe(paths: ViewPaths) -> ViewState:
    """Return what is there of a view. Raises OverlayError when others than root can write to it, also where there is nothing to do."""
    view_trust.check_view(paths)
    try:
        found = os.listdir(paths.generations)
    except FileNotFoundError:
        found = []
    return ViewState(
        exists=os.path.lexists(paths.root),
        generations=frozenset(name for name in found if _is_whole(paths, name)),
        current=_linked(paths, CURRENT),
        previous=_linked(paths, PREVIOUS),
    )


def _is_whole(paths: ViewPaths, folder: str) -> bool:
    """Tell whether a folder holds a generation: it has its record, and an image is as long as that says.

    One that an older version of the collection has made is none: its record does not say all that it is made of.
    """
    try:
        generation = read_generation(paths, folder)
        if generation.image is None:
            return True
        image = names.layer_path(paths.generation(folder), generation.format)
        return os.stat(image).st_size == generation.image.bytes
    except (FileNotFoundError, NotADirectoryError, OutdatedError):
        return False


def _linked(paths: ViewPaths, name: str) -> str | None:
    try:
        return os.path.basename(os.readlink(paths.link(name)))
    except FileNotFoundError:
        return None


def read_generation(paths: ViewPaths, folder: str) -> Generation:
    path = names.record_path(paths.generation(folder))
    return names.generation_from_json(record_files.read(path, names.LARGEST_RECORD), path)


@contextlib.contextmanager
def locked(paths: ViewPaths, seconds: float, progress: Progress = no_progress) -> Iterator[None]:
    """Hold the view's lock, so that two runs at the same time come one after the other. Creates the view's folder."""
    state_dir = os.path.dirname(os.path.dirname(paths.root))
    trust.check_state_dir(state_dir)
    files.make_directories(os.path.dirname(state_dir), 0o755)
    files.make_directories(state_dir, 0o700)
    while True:
        view_trust.check_view(paths)
        files.make_directories(paths.root, 0o755)
        # Not truncated, which would give it another time although nothing has changed.
        with open(files.open_or_make(paths.lock, 0o600), "ab") as stream:
            files.wait_for_lock(stream.fileno(), show(os.fsencode(paths.root)), seconds, progress)
            # A run that removes the view removes the lock too, and whoever waited for that one has the lock of nothing.
            if _is_at(stream.fileno(), paths.lock):
                yield
                return


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def composed(spec: LayerSpec, progress: Progress = no_progress) -> Composition:
    """Return the view that ``spec`` declares, its conflicts known. Raises OverlayError for conflicts that nothing decides."""
    # Each of the releases that are merged has its manifest open.
    files.allow_deep_trees()
    return Composition(spec.placements, manifest_store.entries, spec.rules, progress)


def build(
    paths: ViewPaths,
    spec: LayerSpec,
    builder: Builder | None = None,
    progress: Progress = no_progress,
    composition: Composition | None = None,
) -> tuple[Generation, BuildReport]:
    """Build the generation that ``spec`` declares, from its ``composition`` if that has been made already.

    Images are made by ``builder``. The view's lock has to be held.
    """
    composition = composition or composed(spec, progress)
    with staged(paths, spec.folder, progress) as folder:
        generation, report = build_layer(folder, spec, builder, composition, progress)
        write_record(folder, generation)
    return generation, report


def build_layer(
    folder: str, spec: LayerSpec, builder: Builder | None, composition: Composition, progress: Progress = no_progress
) -> tuple[Generation, BuildReport]:
    """Build a layer in ``folder``, where it is not synced yet."""
    layer = names.layer_path(folder, spec.format)
    image = None
    if builder:
        tally = Tally()
        image = erofs_layer.build(_text(spec, composition, builder, tally), layer, builder, progress)
        os.chmod(layer, 0o644)
        report = BuildReport(tally, os.stat(layer).st_blocks * 512)
    else:
        files.make_directories(layer, 0o755)
        _drop_default_acl(layer)
        opaque = spec.strategy == strategies.REDIRECT
        top = layer
        if opaque:
            top = os.path.join(layer, strategies.SHOWN_FOLDER)
            files.make_directories(top, 0o755)
        tree = DirectoryLayer(os.fsencode(top), spec.xattr_namespace, progress, opaque)
        report = tree.build(composition.entries())
    composition_record = names.composition_of(spec)
    digest = names.composition_digest(composition_record)
    generation = Generation(
        id=names.generation_id(digest),
        digest=digest,
        format=spec.format,
        strategy=spec.strategy,
        xattr_namespace=spec.xattr_namespace,
        entries=report.tally.counts(),
        bytes=report.tally.bytes,
        bytes_on_disk=report.bytes_on_disk,
        composition=composition_record,
        conflicts=tuple(conflict.as_dict() for conflict in composition.conflicts),
        conflict_count=composition.conflict_count,
        image=image,
        rights=Rights(report.tally.privileged, composition.stripped, report.narrowed),
    )
    return generation, report


def _text(spec: LayerSpec, composition: Composition, builder: Builder, tally: Tally) -> Iterator[bytes]:
    """Yield the entries of a view as the builder of its image reads them."""
    if builder.name != "mkcomposefs" or spec.rules.attributes != Attributes():
        yield from builder.text(composition.entries(), tally)
        return
    for part in composition.parts():
        if isinstance(part, Placement):
            yield from manifest_store.parse(part, functools.partial(dump.placed_text, part, tally=tally))
        else:
            yield from builder.text((part,), tally)


def write_record(folder: str, generation: Generation) -> None:
    with files.written_aside(names.record_path(folder)) as aside:
        aside.write(names.generation_to_json(generation))


@contextlib.contextmanager
def staged(paths: ViewPaths, name: str, progress: Progress = no_progress) -> Iterator[str]:
    """Give an empty folder to make a generation in; when the block ends without an exception the generation is settled.

    After an exception nothing of it is left, since a disk that is full has to have room again.
    """
    removal.clear(paths, paths.staging, progress)
    folder = os.path.join(paths.staging, name)
    try:
        files.make_directories(folder, 0o755)
        yield folder
        _settle(folder, paths, name)
    except BaseException:
        # The reason counts, and not what it keeps from being removed: the next build clears the rest away.
        with contextlib.suppress(OSError):
            files.remove_tree(paths.staging, progress)
        raise
    os.rmdir(paths.staging)


def _settle(folder: str, paths: ViewPaths, name: str) -> None:
    """Write a staged generation to the disk, then give it its name."""
    files.make_directories(paths.generations, 0o755)
    files.sync_file_system(os.fsencode(folder))
    final = paths.generation(name)
    if os.path.lexists(final):
        # Only a generation without its record can be in the way here. It may have been mounted when it had one.
        uses = removal.remove_generation(paths, name)
        if uses:
            raise OverlayError(
                f"generation {names.id_of(name)} at {final} has lost its record or a part of its image, and is in use, so it is not"
                f" replaced ({uses}): unmount it and end these processes, then run the task again"
            )
    os.rename(folder, final)
    files.sync_directory(paths.generations)


def _drop_default_acl(path: str) -> None:
    """Take away an ACL that new files would inherit from the folders above: modes have to be those of the release."""
    with contextlib.suppress(OSError):
        os.removexattr(path, "system.posix_acl_default")


def make_current(paths: ViewPaths, folder: str, previous: str | None) -> None:
    """Make a generation the current one, and ``previous`` the one before it, unless that is another form of the same."""
    if previous is not None and names.id_of(previous) != names.id_of(folder):
        files.replace_link(paths.link(PREVIOUS), os.path.join("generations", previous))
    files.replace_link(paths.link(CURRENT), os.path.join("generations", folder))


def existing_parent(path: str) -> str:
    """Return a path, or the closest directory above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


#: What to do about a file system whose inodes are too small for a layer's attributes.
SPILL_ADVICE = (
    "put the state directory on a file system with inodes of 512 bytes or more (mkfs.ext4 -I 512, XFS) or on tmpfs"
)


def filesystem_of(path: str, live: Sequence[Mount]) -> Mount | None:
    """Return the mount that a path, which need not exist yet, is or will be on."""
    return containing_mount(live, os.fsencode(os.path.realpath(path)))


def spill_warning(paths: ViewPaths, report: BuildReport) -> list[str]:
    """Return a warning where most attributes of a new layer did not fit into the inodes; else nothing."""
    if report.spilled * 2 <= report.tally.files:
        return []
    mount = filesystem_of(paths.root, namespaces.own_mounts())
    kind = show(mount.fstype) if mount else "this file system"
    megabytes = report.bytes_on_disk / 1_000_000
    return [
        (
            f"the attributes of {report.spilled} of {report.tally.files} files do not fit into the inodes of {kind} at"
            f" {paths.root}, so each takes a block of its own ({megabytes:.0f} MB in all): {SPILL_ADVICE}"
        )
    ]


def attributes_fit(path: str, namespace: str, redirect_length: int = 120) -> bool | None:
    """Tell whether a layer's attributes fit into the inodes of the file system at ``path``, a directory.

    Tried with a file that has no name and leaves no trace. None where that cannot be tried; ``redirect_length`` is that of a path
    of usual length, in bytes.
    """
    try:
        fd = os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        os.setxattr(fd, f"{namespace}.overlay.metacopy", b"")
        os.setxattr(fd, f"{namespace}.overlay.redirect", b"/" + b"x" * redirect_length)
        os.fsync(fd)
        return os.fstat(fd).st_blocks == 0
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return None
        raise
    finally:
        os.close(fd)
