# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the data image of a release: observe what is published, select files, read them, and publish the image."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import (
    image_program,
    published,
    selection,
    trace_files,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.image_plan import (
    BuildDataImage,
    RemoveDataImage,
    WantedImage,
    plan_absent,
    plan_present,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.image_program import ImageProgram
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.release_reader import (
    Bandwidth,
    ReleaseReader,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.selection import (
    ChosenFile,
    FilesLeftOut,
    Heat,
    Limits,
    Selection,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.staging import Staging, remove_outdated
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer, globs
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, Placement, relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import image_store

#: Seconds to wait for another run that builds data images on this host.
_LOCK_SECONDS = 24 * 3600.0
_LOCK = "lock"
_IMAGE = "image.erofs"


@dataclass(frozen=True)
class ImageRequest:
    """What the user asks for."""

    root: str
    #: The manifest store.
    store: str
    image_store: str
    release: str
    #: How files are selected, one of data_image_record.KINDS.
    kind: str
    #: Patterns for ``globs``, or paths for ``list``, relative to the release.
    chosen: tuple[bytes, ...]
    compression: str
    #: Directory for the files of images that are being built.
    staging: str
    #: Bytes of content, uncompressed; None for no limit.
    budget: int | None = None
    #: Bytes per second; None for no limit.
    bandwidth: int | None = None
    #: Number of files that are read at the same time.
    jobs: int = 4
    #: Number of images that stay although they are not current.
    keep: int = 2


@dataclass
class ImageState:
    """The data images of one release in the course of a run."""

    request: ImageRequest
    plan: Plan = ()
    before: DataImage | None = None
    after: DataImage | None = None
    left_out: FilesLeftOut = field(default_factory=FilesLeftOut)
    #: The manifest, the selection and the program; None if images are only removed.
    placement: Placement | None = None
    wanted: WantedImage | None = None
    program: ImageProgram | None = None

    @property
    def is_built(self) -> bool:
        """Whether the plan builds an image."""
        return any(isinstance(action, BuildDataImage) for action in self.plan)

    def values(self) -> dict[str, Any]:
        """Return the return values of the module."""
        image, wanted = self.after, self.wanted
        values: dict[str, Any] = {
            "image": published.image_path(self.request.image_store, image) if image else None,
            "digest": image.digest if image else None,
            "bytes_on_disk": image.bytes_on_disk if image else None,
            "left_out": self.left_out.as_dict(),
            "files": image.files if image else 0,
            "bytes": image.bytes if image else 0,
            "complete": image.complete if image else False,
        }
        if wanted and not image:
            chosen = wanted.files
            values.update(files=len(chosen.files), bytes=chosen.size, complete=chosen.complete)
        return values

    def warnings(self) -> list[str]:
        """Return what the user should know: files that are not as the manifest says, and a selection without files."""
        found = []
        release = show(os.fsencode(self.request.release))
        for reason, words in (
            (selection.MISSING, "are missing"),
            (selection.CHANGED, "differ from the manifest"),
            (selection.UNREADABLE, "cannot be read by root of this host"),
        ):
            paths = self.left_out.by_reason.get(reason)
            if paths:
                found.append(
                    f"release {release}: {paths.count} files {words} and are not in the data image ({paths.listed()}); a release"
                    " never changes, so check it with release_manifest and rescan=true"
                )
        if self.wanted and not self.wanted.files.files:
            found.append(
                f"release {release}: no file is selected, so there is no data image; see left_out for the reasons"
            )
        return found

    def diff(self, image: DataImage | None) -> dict[str, Any]:
        """Return an image for the diff."""
        return {"image": image.id, "files": image.files, "bytes": image.bytes} if image else {}

    def diff_after(self) -> dict[str, Any]:
        """Return the state after the run for the diff. In check mode the image of a build is unknown."""
        if self.is_built and self.after is None and self.wanted:
            return {
                "image": "known after the build",
                "files": len(self.wanted.files.files),
                "bytes": self.wanted.files.size,
            }
        return self.diff(self.after)


def observe_absent(request: ImageRequest) -> ImageState:
    """Return the plan that removes the data images of a release. Its manifest need not exist."""
    image_store.check_store(request.image_store, request.store)
    current = published.current_ids(request.image_store, request.release)
    found = [*dict.fromkeys(current.values()), *published.other_ids(request.image_store, request.release)]
    before = published.find(request.image_store, request.release, request.kind)
    return ImageState(request, plan_absent(request.release, found), before)


def observe(request: ImageRequest, progress: Progress) -> ImageState:
    """Return the plan that gives a release its data image. No content of the release is read.

    Raises OverlayError if the manifest or the trace is missing or damaged, a listed file is not in the release, or this host cannot build
    images.
    """
    image_store.check_store(request.image_store, request.store)
    manifest_store.check_store(request.store)
    path = manifest_store.manifest_path(request.store, request.release)
    record = manifest_store.read_record(path, request.release)
    placement = Placement(path, record, b"", os.fsencode(record.release))
    program = image_program.find_image_program()
    is_private = _is_roots_alone(request.image_store)
    left_out = FilesLeftOut()
    closed_above = not is_private and not _is_open_above(request)
    chosen, total = _chosen(request, placement, closed_above, left_out, progress)
    found = selection.select(chosen, total, Limits(is_private, program.longest_name, request.budget), left_out)
    wanted = WantedImage(
        request.release, request.kind, record.digest, found.digest(placement.source, request.compression), found
    )
    current = published.find(request.image_store, request.release, request.kind)
    older = published.other_ids(request.image_store, request.release)
    plan = plan_present(wanted, current, older, request.keep)
    state = ImageState(request, plan, current, None, left_out, placement, wanted, program)
    if not state.is_built:
        state.after = current if found.files else None
    return state


def _chosen(
    request: ImageRequest, placement: Placement, closed_above: bool, left_out: FilesLeftOut, progress: Progress
) -> tuple[Sequence[ChosenFile], int]:
    """Return the files that the request selects, and the number of all files of the release that have content."""
    trace = trace_files.find(request.store, request.release)
    heat = {file.path: Heat(file.starts, file.opens) for file in trace.files} if trace else {}
    empty: set[bytes] = set()
    found = selection.release_files(_seen(manifest_store.entries(placement), empty, progress), heat, closed_above)
    total = len({file.path for file in found.values()})
    if request.kind == "trace":
        if trace is None:
            raise OverlayError(
                f"release {show(os.fsencode(request.release))} has no trace in {show(os.fsencode(request.store))}: record one with"
                " access_trace, or choose another 'select'"
            )
        names: Sequence[bytes] = [file.path for file in trace.files if file.path not in empty]
    elif request.kind == "globs":
        patterns = globs.clean_globs(request.chosen, "pattern in 'globs'")
        matched = globs.filtered(manifest_store.entries(placement), patterns, ())
        names = [entry.path[1:] for entry in matched if entry.path[1:] in found]
    elif request.kind == "list":
        names = [relative_path(name, "path in 'files'") for name in request.chosen]
        selection.check_listed(found, names, empty)
        names = [name for name in names if name in found]
    else:
        names = list(found)
    return selection.named_files(found, names, left_out), total


def _seen(entries: Iterator[Entry], empty: set[bytes], progress: Progress) -> Iterator[Entry]:
    """Yield entries, and collect the paths of empty files."""
    for entry in entries:
        if stat.S_ISREG(entry.mode) and not entry.size:
            empty.add(entry.path[1:])
        elif entry.is_directory:
            progress()
        yield entry


def _is_roots_alone(store: str) -> bool:
    """Return whether only root can read what is in an image store."""
    try:
        status = os.stat(store)
    except FileNotFoundError:
        return False
    return status.st_uid == os.geteuid() == 0 and not status.st_mode & 0o077


def _is_open_above(request: ImageRequest) -> bool:
    """Return whether all users may search the software root and the directories between it and the release."""
    path = request.root
    for name in request.release.split("/"):
        if os.stat(path).st_mode & 0o011 != 0o011:
            return False
        path = os.path.join(path, name)
    return True


def handlers(state: ImageState, progress: Progress) -> Handlers:
    """Return what carries out the actions of the plan of a state, and notes the result in it."""

    def build(_action: BuildDataImage) -> None:
        state.after = _build(state, progress)

    def remove(action: RemoveDataImage) -> None:
        request = state.request
        if state.wanted is None:
            published.remove_current(request.image_store, request.release)
        published.remove(request.image_store, request.release, action.image_id)
        published.remove_directories(request.image_store, request.release)

    return {BuildDataImage: build, RemoveDataImage: remove}


def _build(state: ImageState, progress: Progress) -> DataImage:
    """Build and publish the wanted image, and add what could not be read to ``left_out``."""
    request, wanted, placement, program = state.request, state.wanted, state.placement, state.program
    if wanted is None or placement is None or program is None:
        raise OverlayError("there is no selection to build a data image of: observe the release first")
    image_program.check_compression(program, request.compression)
    with _staging(request, placement, wanted, progress) as staging:
        try:
            built, kept = _built(state, wanted, program, staging, progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                staging.remove(progress)
                raise OverlayError(
                    f"{show(os.fsencode(request.staging))} has no room to build the data image of {wanted.files.size} bytes of content:"
                    " free as much and half of it again, or give another 'staging'; nothing was published"
                ) from None
            raise
        image = DataImage(
            release=request.release,
            source=os.fsdecode(placement.source),
            root_name=placement.record.root,
            manifest_digest=wanted.manifest_digest,
            kind=request.kind,
            selection=wanted.selection,
            complete=wanted.files.complete and len(kept) == len(wanted.files.files),
            files=len(kept),
            skipped=len(wanted.files.files) - len(kept),
            bytes=sum(file.size for file in kept),
            opens=sum(file.opens for file in kept),
            digest=erofs_layer.file_digest(built, progress),
            bytes_on_disk=os.stat(built).st_size,
        )
        if not os.path.isdir(request.image_store):
            files.make_directories(request.image_store, 0o755)
        published.publish(request.image_store, image, built, any(file.is_private for file in kept), progress)
        staging.remove(progress)
    return image


def _built(
    state: ImageState, wanted: WantedImage, program: ImageProgram, staging: Staging, progress: Progress
) -> tuple[str, list[ChosenFile]]:
    """Build the image in the staging directory; return its path and the files in it."""
    request, chosen = state.request, wanted.files
    reader = _read_release(request, chosen, staging, progress)
    for reason, path in reader.left_out:
        state.left_out.add(reason, path)
    kept = [file for file in chosen.files if file.path in reader.digests]
    if not kept:
        reasons = ", ".join(f"{count.count} {reason}" for reason, count in state.left_out.by_reason.items())
        raise OverlayError(
            f"release {show(os.fsencode(request.release))}: none of the {len(chosen.files)} selected files is as the manifest says"
            f" ({reasons}): check 'root', and check the release with release_manifest and rescan=true"
        )
    staging.finish(kept, reader.digests, progress)
    built = os.path.join(staging.path, _IMAGE)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(built)
    program.build(staging.tree, built, request.compression, progress)
    return built, kept


def _read_release(request: ImageRequest, chosen: Selection, staging: Staging, progress: Progress) -> ReleaseReader:
    """Read the selected files into the staging directory. Raises OverlayError if they do not fit there."""
    staging.prepare(chosen.files, progress)
    missing = sum(file.size for file in chosen.files if not staging.has(file))
    place = os.statvfs(staging.path)
    room = place.f_bavail * place.f_frsize
    if missing > room:
        staging.remove(progress)
        raise OverlayError(
            f"{show(os.fsencode(request.staging))} has {room} bytes free, and reading the selected files needs {missing}: free"
            f" {missing - room} bytes and room for the image, give another 'staging', or a lower 'budget'"
        )
    release_fd = scan.open_release(os.fsencode(request.root), os.fsencode(request.release))
    try:
        reader = ReleaseReader(release_fd, staging, Bandwidth(request.bandwidth))
        reader.read(chosen.files, request.jobs, progress)
    finally:
        os.close(release_fd)
    return reader


@contextlib.contextmanager
def _staging(request: ImageRequest, placement: Placement, wanted: WantedImage, progress: Progress) -> Iterator[Staging]:
    """Hold the lock of the staging directory while the block runs, and provide that of the image."""
    files.make_directories(request.staging, 0o700)
    trust.check_way(os.fsencode(request.staging))
    if os.stat(request.staging).st_mode & 0o077:
        raise OverlayError(
            f"{show(os.fsencode(request.staging))} has a mode that lets others in: it holds content of releases, so chmod it to 0700"
        )
    key = f"{placement.record.root}\0{request.release}\0{wanted.manifest_digest}"
    name = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    fd = files.open_or_make(os.path.join(request.staging, _LOCK), 0o600)
    try:
        files.wait_for_lock(fd, f"the data images in {show(os.fsencode(request.staging))}", _LOCK_SECONDS, progress)
        remove_outdated(request.staging, progress)
        staging = Staging(os.path.join(request.staging, name), placement.source)
        try:
            yield staging
        finally:
            staging.close()
    finally:
        os.close(fd)
