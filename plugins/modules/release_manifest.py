#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_manifest
short_description: Record once what software releases consist of
version_added: 0.1.0
description:
  - Scans a release on the software root and writes its manifest, a gzipped listing in the format composefs-dump(5), to a manifest store.
  - Layers are then built from manifests, on any number of hosts, without walking the software root again.
  - A release never changes, so a release that has a manifest is not scanned again, unless O(rescan=true) asks for a comparison.
  - Many releases are scanned by one task with O(releases), one after the other. Those that have a manifest already cost the reading of a
    small record each.
  - Run it on one host only, with O(store) on a share that all hosts read.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.ready_marker
options:
  root:
    description: The software root, the folder (usually an NFS mount) below which all releases are.
    type: path
    required: true
  root_name:
    description:
      - The identity of the software root, by default O(root) itself. It is recorded in the manifest, and becomes a part of what layers
        are named by, so it has to be the same wherever releases of this root are scanned. Give the path at which hosts mount it where
        it is scanned at another one.
      - Releases of different roots may have the same path, so each root needs a O(store) of its own. A manifest of a release at this path
        below another root is refused, and not replaced.
    type: str
  release:
    description:
      - Path of the release below O(root), without symbolic links in it.
      - One of O(release) and O(releases) is required, and not both.
    type: str
  releases:
    description:
      - Paths of several releases, each as with O(release). One that is given twice counts once.
      - A path that leads out of O(root), or an O(store) inside of one of them, is refused before anything is written.
      - A release that fails, such as one that is not ready or has a device node in it, does not keep the others from being scanned. The
        task fails after the last one, and names those that failed. What was scanned stays, so the next run goes on from there.
      - The task ends earlier when O(timeout) is over, which names the release, or when O(store) is full or read-only.
    type: list
    elements: str
  store:
    description:
      - Directory for the manifests. It has to exist, since one that is missing is usually a share that is not mounted; what is inside it is
        made.
      - The manifest of release V(houdini/20.5.410) is V(houdini/20.5.410.dump.gz) in it, with a record V(houdini/20.5.410.json) beside it.
      - Hosts trust what is in it, modes and owners included. Only those who publish software may be able to write there.
    type: path
    required: true
  state:
    description:
      - V(present) makes sure that there is a manifest.
      - V(absent) removes it. The release itself is not touched.
    type: str
    choices: [present, absent]
    default: present
  checksum:
    description: With V(sha256), the content of every file is read and its SHA-256 recorded. That takes as long as reading the release.
    type: str
    choices: [none, sha256]
    default: none
  rescan:
    description:
      - Scan the release again and fail, naming the differences, when it is no longer what its manifest says.
      - Nothing is written. It has no effect on a release that has no manifest yet.
    type: bool
    default: false
notes:
  - Refused, by name, are releases with device nodes, named pipes, sockets or mounts in them.
  - Of extended attributes file capabilities (C(security.capability)) and POSIX ACLs (C(system.posix_acl_access) and
    C(system.posix_acl_default)) are recorded. What becomes of NFSv4 ACLs and of others that decide access is told in docs/architecture.md.
  - A directory that root of this host may not list is recorded without what is in it, where the readers of a view could not enter it
    either; where they could, the scan fails and names it.
  - The manifest of a tree depends on nothing but the tree and what may be read of it, as long as the file system tells its ACLs alike.
  - A manifest that an older version of the collection made says less, so it counts as none and the release is scanned again.
seealso:
  - module: renderfarm.overlay.release_info
  - module: renderfarm.overlay.metadata_layer
"""

EXAMPLES = r"""
- name: Record a release, once, on one host
  renderfarm.overlay.release_manifest:
    root: /net/software
    release: houdini/20.5.410
    store: /net/manifests
    ready_marker: .ready
  run_once: true

- name: List all releases
  renderfarm.overlay.release_info:
    root: /net/software
    ready_marker: .ready
  register: software
  run_once: true

- name: Record those that are complete, in one task
  renderfarm.overlay.release_manifest:
    root: /net/software
    releases: "{{ software.releases | selectattr('ready') | map(attribute='path') }}"
    store: /net/manifests
    ready_marker: .ready
  run_once: true

- name: Make sure that nobody has changed it since
  renderfarm.overlay.release_manifest:
    root: /net/software
    release: houdini/20.5.410
    store: /net/manifests
    rescan: true

- name: Forget the manifest of a release that was deleted
  renderfarm.overlay.release_manifest:
    root: /net/software
    release: houdini/19.0.383
    store: /net/manifests
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success, and with O(releases) also when some of them have failed
  sample: [scan release houdini/20.5.410]
manifest:
  description: Path of the manifest.
  type: str
  returned: success, with O(release)
  sample: /net/manifests/houdini/20.5.410.dump.gz
digest:
  description: SHA-256 of the uncompressed manifest; none where there is no manifest, as after O(state=absent).
  type: str
  returned: success, with O(release)
  sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
entries:
  description: Number of entries of each kind; C(hardlinks) counts the further names of files that have several.
  type: dict
  returned: when there is a manifest, with O(release)
  sample: {"directories": 812, "files": 20412, "symlinks": 390, "hardlinks": 12}
bytes:
  description: Content of all files, in bytes.
  type: int
  returned: when there is a manifest, with O(release)
  sample: 3421776512
unreadable:
  description:
    - The first 100 files with content that not everybody may read, and directories that not everybody may enter, these with a slash at
      the end and without what is in them.
    - No view can read them from an export with C(root_squash), as the kernel reads them as a user without rights. Mode and ACL tell, so
      a scan on the file server finds the same. A warning names the first ones.
  type: list
  elements: str
  returned: when the release was scanned, with O(release)
  sample: [/licenses/site.lic, /internal/]
unreadable_count:
  description: How many there are in all.
  type: int
  returned: when the release was scanned, with O(release)
  sample: 2
unlisted:
  description:
    - The first 10 directories that are recorded without what is in them, since root of this host may not list them. The readers of a
      view could not enter them either. A warning names them.
  type: list
  elements: str
  returned: when the release was scanned, with O(release)
  sample: []
unlisted_count:
  description: How many there are in all.
  type: int
  returned: when the release was scanned, with O(release)
  sample: 0
narrowed:
  description:
    - The first 10 files and directories whose ACL a layer cannot hold, such as NFSv4 ACLs that name users or groups. Their mode in the
      manifest gives nobody more than the ACL does, and may give somebody less. A warning names them.
  type: list
  elements: str
  returned: when the release was scanned, with O(release)
  sample: []
narrowed_count:
  description: How many there are in all.
  type: int
  returned: when the release was scanned, with O(release)
  sample: 0
manifests:
  description: The same of each of the O(releases) that has not failed, in the order in which they were given.
  type: list
  elements: dict
  returned: with O(releases), also when some of them have failed
  contains:
    release:
      description: Path of the release below O(root).
      type: str
      sample: houdini/20.5.410
    manifest:
      description: Path of the manifest.
      type: str
      sample: /net/manifests/houdini/20.5.410.dump.gz
    digest:
      description: SHA-256 of the uncompressed manifest; none where there is no manifest.
      type: str
      sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
    entries:
      description: Number of entries of each kind, when there is a manifest.
      type: dict
      sample: {"directories": 812, "files": 20412, "symlinks": 390, "hardlinks": 12}
    bytes:
      description: Content of all files, in bytes, when there is a manifest.
      type: int
      sample: 3421776512
    unreadable:
      description: The first 100 files and directories that not everybody may read or enter, when the release was scanned.
      type: list
      elements: str
      sample: []
    unreadable_count:
      description: How many there are in all, when the release was scanned.
      type: int
      sample: 0
    unlisted:
      description: The first 10 directories that are recorded without what is in them, when the release was scanned.
      type: list
      elements: str
      sample: []
    unlisted_count:
      description: How many there are in all, when the release was scanned.
      type: int
      sample: 0
    narrowed:
      description: The first 10 files and directories whose ACL a layer cannot hold, when the release was scanned.
      type: list
      elements: str
      sample: []
    narrowed_count:
      description: How many there are in all, when the release was scanned.
      type: int
      sample: 0
failures:
  description: Those of the O(releases) that have failed, with the reason of each. The message of the task names the first ones.
  type: list
  elements: dict
  returned: with O(releases), also when some of them have failed
  contains:
    release:
      description: Path of the release below O(root).
      type: str
      sample: houdini/20.5.487
    msg:
      description: Why it failed.
      type: str
      sample: "release houdini/20.5.487 is not ready: it has no .ready, so it is still being written or was broken off"
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    ManifestRecord,
    Placement,
    relative_path,
    root_identity,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest_plan import (
    RemoveManifest,
    ScanRelease,
    plan_manifest,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan import ScanReport

#: Errors of a store that is full or may not be written to: whatever is scanned after one, it has no place.
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

#: How many failed releases, or unreadable files of one, a message names.
_NAMED = 5


@dataclass
class _Manifest:
    """The manifest of one release: what is there, what is to be done, and what came of it."""

    release: str
    path: str
    plan: Plan = ()
    before: ManifestRecord | None = None
    after: ManifestRecord | None = None
    report: ScanReport = field(default_factory=ScanReport)
    failure: OverlayError | OSError | None = None


def main() -> None:
    runner.run(
        {
            "root": {"type": "path", "required": True},
            "release": {"type": "str"},
            "releases": {"type": "list", "elements": "str"},
            "root_name": {"type": "str"},
            "store": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "ready_marker": runner.READY_MARKER,
            "checksum": {"type": "str", "choices": ["none", "sha256"], "default": "none"},
            "rescan": {"type": "bool", "default": False},
        },
        work,
        required_one_of=[("release", "releases")],
        mutually_exclusive=[("release", "releases")],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    releases = _clean([params["release"]] if params["releases"] is None else params["releases"])
    _check_places(params["root"], releases, params["store"])
    manifest_store.check_store(params["store"])
    if params["state"] == "present":
        # Without it all of them would fail for the same reason.
        os.close(scan.open_root(os.fsencode(params["root"])))
    is_empty = not manifest_store.is_used(params["store"])
    manifests = [_Manifest(release, manifest_store.manifest_path(params["store"], release)) for release in releases]
    for step in (_observe, _change):
        _each(manifests, step, params, context)
    outcome = _outcome(manifests) if params["releases"] is not None else _outcome_of_one(*manifests)
    if is_empty and params["state"] == "present" and manifests:
        outcome.warnings.append(
            f"manifest store {params['store']} was empty: if it is not a new one, the share is not mounted there"
        )
    return outcome


def _each(
    manifests: Sequence[_Manifest],
    step: Callable[[_Manifest, dict[str, Any], runner.Context], None],
    params: dict[str, Any],
    context: runner.Context,
) -> None:
    """Take a step with each manifest. One that fails is taken no further, and does not keep the others from it."""
    for number, manifest in enumerate(manifests):
        if manifest.failure:
            continue
        try:
            context.note.write(f"release {manifest.release}")
            step(manifest, params, context)
        except (OverlayError, OSError) as error:
            manifest.failure = error
            if isinstance(error, OSError) and error.errno in _NO_PLACE:
                for later in manifests[number + 1 :]:
                    if later.plan:
                        later.failure = OverlayError(
                            f"release {later.release} was not tried after that: {error.strerror}"
                        )


def _observe(manifest: _Manifest, params: dict[str, Any], context: runner.Context) -> None:
    wanted = params["state"] == "present"
    try:
        record = manifest_store.find_record(manifest.path, manifest.release)
    except OverlayError:
        if wanted:
            raise
        # It is removed whatever it is.
        record = None
    if record:
        _check_root(manifest, record, params)
    if wanted:
        if record:
            record = manifest_store.read_record(manifest.path, manifest.release)
        _check_release(params["root"], manifest.release, params["ready_marker"])
        if record and params["rescan"]:
            _compare(manifest.path, record, params["root"], context)
    manifest.before = record
    manifest.after = record if wanted else None
    remains = manifest_store.remains(manifest.path)
    outdated = record is None and remains and manifest_store.is_outdated(manifest.path)
    manifest.plan = plan_manifest(manifest.release, wanted, record, remains, outdated)
    context.progress()


def _change(manifest: _Manifest, params: dict[str, Any], context: runner.Context) -> None:
    store, release = params["store"], manifest.release

    def scan_release(_action: ScanRelease) -> None:
        checksum = params["checksum"] == "sha256"
        name = _root_name(params)
        written = manifest_store.write(store, params["root"], release, checksum, context.progress, name)
        manifest.after = written.record
        manifest.report = written.report

    handlers: Handlers = {
        ScanRelease: scan_release,
        RemoveManifest: lambda _action: manifest_store.remove(store, release),
    }
    context.carry_out(manifest.plan, handlers)


def _outcome_of_one(manifest: _Manifest) -> runner.Outcome:
    if manifest.failure:
        raise manifest.failure
    return runner.Outcome(
        _values(manifest), manifest.plan, _shown(manifest.before), _shown_after(manifest), _warnings([manifest])
    )


def _outcome(manifests: Sequence[_Manifest]) -> runner.Outcome:
    done = [manifest for manifest in manifests if not manifest.failure]
    changed = [manifest for manifest in done if manifest.plan]
    failed = [
        {"release": manifest.release, "msg": runner.explain(manifest.failure)}
        for manifest in manifests
        if manifest.failure
    ]
    values: dict[str, Any] = {
        "manifests": [{"release": manifest.release, **_values(manifest)} for manifest in done],
        "failures": failed,
    }
    return runner.Outcome(
        values,
        tuple(action for manifest in changed for action in manifest.plan),
        {manifest.release: _shown(manifest.before) for manifest in changed},
        {manifest.release: _shown_after(manifest) for manifest in changed},
        _warnings(done),
        _failure(failed, len(manifests)),
    )


def _values(manifest: _Manifest) -> dict[str, Any]:
    after = manifest.after
    values: dict[str, Any] = {"manifest": manifest.path, "digest": after.digest if after else None}
    if after:
        values.update(entries=after.entries.as_dict(), bytes=after.bytes)
    if _is_scanned(manifest):
        report = manifest.report
        values["unreadable"] = list(report.unreadable.first)
        values["unreadable_count"] = report.unreadable.count
        values["unlisted"] = list(report.unlisted.first)
        values["unlisted_count"] = report.unlisted.count
        values["narrowed"] = list(report.narrowed.first)
        values["narrowed_count"] = report.narrowed.count
    return values


def _is_scanned(manifest: _Manifest) -> bool:
    return any(isinstance(action, ScanRelease) for action in manifest.plan)


def _shown(record: ManifestRecord | None) -> dict[str, Any]:
    return {"digest": record.digest, "entries": record.entries.as_dict()} if record else {}


def _shown_after(manifest: _Manifest) -> dict[str, Any]:
    if _is_scanned(manifest) and not manifest.after:
        return {"digest": "known after the scan"}
    return _shown(manifest.after)


def _warnings(manifests: Sequence[_Manifest]) -> list[str]:
    warnings = []
    for manifest in manifests:
        report = manifest.report
        count = report.unreadable.count
        if count:
            named = report.unreadable.listed(_NAMED)
            warnings.append(
                f"release {manifest.release}: not everybody may read {count} of its files and directories, so no view can read them from"
                f" an export with root_squash: {named}; let everybody read the release (chmod -R o+rX)"
            )
        if report.unlisted.count:
            warnings.append(
                f"release {manifest.release}: root of this host may not list {report.unlisted.count} directories, which are recorded"
                f" without what is in them: {report.unlisted.listed()}; scan on the file server, or let everybody list them, if views are"
                " to show it"
            )
        if report.narrowed.count:
            warnings.append(
                f"release {manifest.release}: the ACLs of {report.narrowed.count} files and directories cannot be kept in a layer; in views"
                f" nobody may do more with them, and some may do less: {report.narrowed.listed()}"
            )
    return warnings


def _failure(failed: Sequence[dict[str, str]], count: int) -> str:
    """Return the message for the releases that failed, of so many; empty when there are none."""
    said = [one["msg"] if one["release"] in one["msg"] else f"{one['release']}: {one['msg']}" for one in failed]
    if count == 1 or not said:
        return "".join(said)
    more = f" (and {len(said) - _NAMED} more)" if len(said) > _NAMED else ""
    return f"{len(said)} of {count} releases failed: {'; '.join(said[:_NAMED])}{more}"


def _clean(releases: Sequence[str]) -> list[str]:
    """Return the paths of releases below the software root in one form, each once."""
    clean = [os.fsdecode(relative_path(os.fsencode(release), "release")) for release in releases]
    if "" in clean:
        raise OverlayError("release is empty; give the path of a release below the software root")
    return list(dict.fromkeys(clean))


def _check_places(root: str, releases: Sequence[str], store: str) -> None:
    for name, path in (("root", root), ("store", store)):
        runner.check_absolute(path, name)
    real_root, real_store = os.path.realpath(root), os.path.join(os.path.realpath(store), "")
    for release in releases:
        inside = os.path.join(real_root, release, "")
        if real_store.startswith(inside):
            raise OverlayError(
                f"store {store} is inside of the release {inside[:-1]}: a release never changes, so keep manifests elsewhere"
            )


def _check_release(root: str, release: str, ready_marker: str) -> None:
    os.close(scan.open_release(os.fsencode(root), os.fsencode(release)))
    if not scan.is_ready(os.fsencode(root), os.fsencode(release), os.fsencode(ready_marker)):
        raise OverlayError(
            f"release {release} is not ready: it has no {ready_marker}, so it is still being written or was broken off"
        )


def _root_name(params: dict[str, Any]) -> str:
    """Return the identity of the software root: the path at which it is mounted, unless it is given."""
    return root_identity(params["root_name"] or params["root"])


def _check_root(manifest: _Manifest, record: ManifestRecord, params: dict[str, Any]) -> None:
    """Raises OverlayError for a manifest of a release at the same path below another software root."""
    name = _root_name(params)
    if record.root != name:
        recorded, asked_for = (show(os.fsencode(root)) for root in (record.root, name))
        raise OverlayError(
            f"store {params['store']} has a manifest of release {manifest.release} of the software root {recorded}, and this is the root"
            f" {asked_for}: each software root needs a store of its own; where they are the same root, 'root_name' has to be the same"
        )


def _compare(manifest: str, record: ManifestRecord, root: str, context: runner.Context) -> None:
    place = os.fsencode(record.release)
    listed, count = manifest_store.differences(Placement(manifest, record, place, place), root, context.progress)
    if count:
        more = f" (and {count - len(listed)} more)" if count > len(listed) else ""
        raise OverlayError(
            f"release {record.release} is no longer what its manifest says, in {count} places; a release must never change:"
            f" {'; '.join(listed)}{more}"
        )


if __name__ == "__main__":
    main()
