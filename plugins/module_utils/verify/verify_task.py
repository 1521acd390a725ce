# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verify a generation of a view: its record, its image, its layer and its data layers; and repair it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Note, Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_cache, manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import ManifestRecord
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify import (
    recorded_layer,
    subjects,
    verified_files,
    verifying,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.data_places import DataPlaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import LAYER, Findings
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.subjects import Subject
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verified_record import LastVerified
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verifying import CONTENT, METADATA, LayerRequest
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import layer_parameters, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec

_MOST_THREADS = 256
#: The processes that read a layer if their number is not given.
_MOST_WORKERS = 8


@dataclass(frozen=True)
class VerifyOptions:
    """How thoroughly to verify, and with what."""

    level: str = METADATA
    #: The manifest store; None if the layer is not compared with manifests.
    store: str | None = None
    sample: int = 0
    workers: int = 1
    threads: int = 8
    #: Seconds after which no further part is begun, and no further files are opened; 0 for no limit.
    time_limit: float = 0.0
    ready_marker: str = ""
    #: Those of the releases of some software roots, by the name of the root.
    ready_markers: Mapping[str, str] = field(default_factory=dict)
    #: How this host reaches a store that is the address of a web server.
    access: Access = SYSTEM
    #: Whether to go on where an interrupted run ended, and to record the result.
    recorded: bool = True
    #: Whether what is damaged is repaired afterwards.
    repair: bool = False

    @classmethod
    def of(cls, params: Mapping[str, Any], recorded: bool) -> VerifyOptions:
        """Return the options that parameters of overlay_verify give. Raises OverlayError if one is not usable."""
        for option in ("store", "image_store"):
            locations.check(params[option] or "/", option)
        names = ("level", "store", "sample", "threads", "time_limit", "ready_marker", "repair")
        return cls(
            **{name: params[name] for name in names},
            workers=params["workers"] or min(len(os.sched_getaffinity(0)), _MOST_WORKERS),
            access=layer_parameters.access(params),
            ready_markers=params["ready_markers"] or {},
            recorded=recorded,
        )

    def __post_init__(self) -> None:
        """Raise OverlayError if a number is out of range."""
        for option in ("sample", "workers", "time_limit"):
            if getattr(self, option) < 0:
                raise OverlayError(f"{option} must not be negative, but it is {getattr(self, option):g}")
        if self.sample and self.time_limit:
            raise OverlayError(
                "sample and time_limit exclude each other, since each sample is drawn anew: give one of them"
            )
        if not 1 <= self.threads <= _MOST_THREADS:
            raise OverlayError(f"threads must be from 1 to {_MOST_THREADS}, not {self.threads}")


@dataclass
class VerifiedView:
    """The result of a verification."""

    findings: Findings = field(default_factory=Findings)
    #: The name of the view and the ID of its generation; None for an overlay that shows no view.
    view: str | None = None
    generation: str | None = None
    #: Whether the time was enough for everything.
    complete: bool = True
    #: The number of releases that are left.
    left: int = 0
    #: The declaration of the layer; None if there is no store, or no usable manifest.
    spec: LayerSpec | None = None
    warnings: list[str] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """Return what was found as return values of overlay_verify."""
        return {
            "view": self.view,
            "generation": self.generation,
            "complete": self.complete,
            "left": self.left,
            "checked": self.findings.checked,
            "problems": [one.as_dict() for one in self.findings.first],
            "counts": self.findings.counts,
        }


class VerifyTask:
    """The verification of one generation. The work is given up after ``seconds`` without progress."""

    def __init__(
        self, subject: Subject, options: VerifyOptions, seconds: float, progress: Progress, note: Note
    ) -> None:
        self._subject = subject
        self._options = options
        self._seconds = seconds
        self._progress = progress
        self._note = note

    def run(self) -> VerifiedView:
        """Verify the generation. Raises OverlayError if the options do not fit it, or a file server does not answer."""
        self._check_options()
        findings = Findings()
        try:
            view_state.check_view(self._subject.paths)
        except OverlayError as error:
            findings.add(b"/", "writable_by_others", str(error))
        try:
            generation = subjects.generation(self._subject)
        except (OverlayError, FileNotFoundError) as error:
            findings.add(b"/", "record_damaged", str(error))
            return VerifiedView(findings, self._subject.paths.name, self._subject.name.id)
        places = None if self._options.level == METADATA else subjects.data_places(self._subject, generation)
        result = VerifiedView(findings, self._subject.paths.name, generation.id)
        result.spec = self._spec(generation, findings)
        if self._options.level == CONTENT:
            self._warn_of_checksums(result)
            self._verify_data_images(findings)
        # An image that differs from its digest is not mounted.
        if (
            self._verify_image(generation, findings)
            and not {"data_image_differs", "record_damaged"} & findings.counts.keys()
        ):
            self._verify_layer(generation, result, places)
        if self._options.repair and self._options.level != CONTENT and LAYER in findings.mended:
            # The switch to the repaired layer mounts the data images anew, and the kernel may refuse a damaged one.
            self._verify_data_images(findings)
        if result.complete and self._options.recorded:
            self._record(generation, findings)
        return result

    def _check_options(self) -> None:
        options = self._options
        if options.level == CONTENT and options.store is None:
            raise OverlayError("level content compares files with the SHA-256 in manifests: give 'store'")

    def _spec(self, generation: Generation, findings: Findings) -> LayerSpec | None:
        """Return the declaration of the layer, and add the manifests that cannot be used to the findings."""
        if self._options.store is None:
            return None
        known: dict[tuple[str, str], tuple[str, ManifestRecord]] = {}
        for release, digest in ((one["release"], one["digest"]) for one in generation.releases):
            self._note.write(f"the manifest of release {release}")
            try:
                known[release, digest] = self._manifest(release, digest)
            except (OverlayError, FileNotFoundError) as error:
                findings.add(to_bytes(release), "manifest_unusable", str(error))
        if "manifest_unusable" in findings.counts:
            return None
        return recorded_layer.spec_of(self._subject.paths.name, generation, lambda *release: known[release])

    def _manifest(self, release: str, digest: str) -> tuple[str, ManifestRecord]:
        store = locations.check(self._options.store or "", "store")
        if locations.is_address(store):
            cache = os.path.join(self._subject.state_dir, "manifests")
            path = manifest_cache.fetched(store, release, digest, cache, self._progress, self._options.access)
        else:
            manifest_store.check_store(store)
            path = manifest_store.manifest_path(store, release)
        record = manifest_store.read_record(path, release)
        if record.digest != digest:
            raise OverlayError(
                f"the manifest of release {release} has the digest {record.digest}, and the layer was built from {digest}"
            )
        return path, record

    def _warn_of_checksums(self, result: VerifiedView) -> None:
        without = [
            one.record.release for one in (result.spec.placements if result.spec else ()) if not one.record.checksums
        ]
        if without:
            result.warnings.append(
                f"the content of {len(without)} releases is not compared, since their manifests have no checksums: "
                f"{', '.join(without[:5])}; scan them with 'checksum: sha256'"
            )

    def _verify_data_images(self, findings: Findings) -> None:
        for path in map(os.fsdecode, self._subject.data_images):
            self._note.write(path)
            try:
                image = installing.recorded(self._subject.state_dir, os.path.splitext(os.path.basename(path))[0])
            except OverlayError as error:
                findings.add(os.fsencode(path), "record_damaged", str(error))
                continue
            if image is None:
                findings.add(os.fsencode(path), "record_damaged", f"data image {path} has no record")
                continue
            digest = self._digest(path)
            if digest != image.digest:
                findings.add(
                    os.fsencode(path), "data_image_differs", f"{path} has the digest {digest} instead of {image.digest}"
                )

    def _digest(self, path: str) -> str:
        """Return the digest of an image; the reason as text if it is missing, or if its disk or fs-verity refuses to give it."""
        try:
            return erofs_layer.file_digest(path, self._progress)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                raise
            return f"none ({os.strerror(error.errno)})"

    def _verify_image(self, generation: Generation, findings: Findings) -> bool:
        """Compare an image with its digest, and return whether the layer is to be read."""
        if generation.image is None:
            return True
        path = os.fsdecode(self._subject.stored)
        self._note.write(path)
        trust.check_way(self._subject.stored)
        digest = self._digest(path)
        if digest != generation.image.digest:
            findings.add(b"/", "digest_differs", f"{path} has the digest {digest} instead of {generation.image.digest}")
            return False
        if self._options.level == METADATA:
            # What an image with this digest holds was checked when it was built.
            findings.checked += generation.entries.total
            return False
        return True

    def _verify_layer(self, generation: Generation, result: VerifiedView, places: DataPlaces | None) -> None:
        options, subject = self._options, self._subject
        is_resumed = options.recorded and not options.sample
        key = f"{generation.digest} {options.level} {'manifests' if result.spec else 'layer'}"
        if places is None:
            subject = replace(subject, data_images=())
        request = LayerRequest(
            layer=subject.layer,
            xattr_namespace=generation.xattr_namespace,
            strategy=generation.strategy,
            level=options.level,
            entries=generation.entries.total,
            spec=result.spec,
            data=places or DataPlaces.of_one_overlay(()),
            images=subject.images,
            layer_is_image=subject.is_image,
            narrowed=bool(generation.rights.narrowed.count),
            sample=options.sample,
            workers=options.workers,
            threads=options.threads,
            until=time.monotonic() + options.time_limit if options.time_limit else None,
            ready_marker=options.ready_marker,
            ready_markers=options.ready_markers,
        )
        if not is_resumed:
            verified = verifying.verify(request, self._seconds, self._progress, self._note)
        else:
            journal = verified_files.Journal(subject.paths, key)
            with journal.opened() as add:
                request = replace(request, done=frozenset(journal.done), begun=journal.begun, note=add)
                verified = verifying.verify(request, self._seconds, self._progress, self._note)
            for findings in journal.done.values():
                result.findings.merge(findings)
            if verified.complete:
                journal.remove()
        result.findings.merge(verified.findings)
        result.complete, result.left = verified.complete, verified.left
        if result.complete and result.spec is None and not options.sample:
            self._compare_count(generation, result.findings)

    @staticmethod
    def _compare_count(generation: Generation, findings: Findings) -> None:
        """Compare a layer with its record alone, since there are no manifests to compare it with."""
        if findings.checked != generation.entries.total:
            counts = f"{findings.checked} entries, and its record says {generation.entries.total}"
            findings.add(b"/", "entry_differs", f"the layer has {counts}")

    def _record(self, generation: Generation, findings: Findings) -> None:
        options = self._options
        now = int(time.time())
        last = LastVerified(generation.id, options.level, options.sample, now, findings.checked, findings.counts)
        verified_files.write(self._subject.paths, last)
