#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_manifest
short_description: Record once what a software release consists of
version_added: 0.1.0
description:
  - Scans a release on the software root and writes its manifest, a gzipped listing in the format composefs-dump(5), to a manifest store.
  - Layers are then built from manifests, on any number of hosts, without walking the software root again.
  - A release never changes, so a release that has a manifest is not scanned again, unless O(rescan=true) asks for a comparison.
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
  release:
    description: Path of the release below O(root), without symbolic links in it.
    type: str
    required: true
  store:
    description:
      - Folder for the manifests; created when it does not exist.
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
  - Of extended attributes only file capabilities (C(security.capability)) are recorded.
  - The manifest of a tree depends on nothing but the tree; the file system that it is scanned on makes no difference.
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
  returned: success
  sample: [scan release houdini/20.5.410]
manifest:
  description: Path of the manifest.
  type: str
  returned: success
  sample: /net/manifests/houdini/20.5.410.dump.gz
digest:
  description: SHA-256 of the uncompressed manifest; none where there is no manifest, as after O(state=absent).
  type: str
  returned: success
  sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
entries:
  description: Number of entries of each kind; C(hardlinks) counts the further names of files that have several.
  type: dict
  returned: when there is a manifest
  sample: {"directories": 812, "files": 20412, "symlinks": 390, "hardlinks": 12}
bytes:
  description: Content of all files, in bytes.
  type: int
  returned: when there is a manifest
  sample: 3421776512
unreadable:
  description:
    - Files that the scan was not allowed to read, as happens to files that are not world-readable on an export with C(root_squash).
    - No view can read them either. A warning names the first ones.
  type: list
  elements: str
  returned: when the release was scanned
  sample: []
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import (
    ManifestRecord,
    Placement,
    relative_path,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.plan import Action, ScanRelease, plan_manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import manifest_store, scan


def main() -> None:
    runner.run(
        {
            "root": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "store": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "ready_marker": runner.READY_MARKER,
            "checksum": {"type": "str", "choices": ["none", "sha256"], "default": "none"},
            "rescan": {"type": "bool", "default": False},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    root, store = params["root"], params["store"]
    release = os.fsdecode(relative_path(os.fsencode(params["release"]), "release"))
    wanted = params["state"] == "present"
    _check_places(root, release, store)
    manifest = manifest_store.manifest_path(store, release)
    record = manifest_store.find_record(manifest)
    if record and wanted:
        record = manifest_store.read_record(manifest)
    plan = plan_manifest(release, wanted, record, manifest_store.remains(manifest))
    if wanted:
        _check_release(root, release, params["ready_marker"])
    if record and wanted and params["rescan"]:
        _compare(manifest, record, root, context)

    unreadable: list[str] = []
    after = record if wanted else None

    def apply(action: Action) -> None:
        nonlocal after
        if isinstance(action, ScanRelease):
            written = manifest_store.write(store, root, release, params["checksum"] == "sha256", context.progress)
            after = written.record
            unreadable.extend(show(path) for path in written.report.unreadable)
        else:
            manifest_store.remove(store, release)

    context.carry_out(plan, apply)
    return _outcome(plan, manifest, record, after, unreadable)


def _outcome(
    plan: tuple[Action, ...],
    manifest: str,
    before: ManifestRecord | None,
    after: ManifestRecord | None,
    unreadable: list[str],
) -> runner.Outcome:
    values: dict[str, Any] = {"manifest": manifest, "digest": after.digest if after else None}
    if after:
        values.update(entries=after.entries.as_dict(), bytes=after.bytes)
    outcome = runner.Outcome(values, plan, _shown(before), _shown(after))
    scans = any(isinstance(action, ScanRelease) for action in plan)
    if scans:
        values["unreadable"] = unreadable
        if not after:
            outcome.after = {"digest": "known after the scan"}
    if unreadable:
        outcome.warnings.append(
            f"{len(unreadable)} files may not be read on this host, so no view can read them either (on an export with root_squash"
            f" they have to be world-readable): {', '.join(unreadable[:5])}{', ...' if len(unreadable) > 5 else ''}"
        )
    return outcome


def _shown(record: ManifestRecord | None) -> dict[str, Any]:
    return {"digest": record.digest, "entries": record.entries.as_dict()} if record else {}


def _check_places(root: str, release: str, store: str) -> None:
    if not release:
        raise OverlayError("release is empty; give the path of a release below the software root")
    for name, path in (("root", root), ("store", store)):
        runner.check_absolute(path, name)
    inside = os.path.join(os.path.realpath(root), release, "")
    if os.path.join(os.path.realpath(store), "").startswith(inside):
        raise OverlayError(
            f"store {store} is inside of the release {inside[:-1]}: a release never changes, so keep manifests elsewhere"
        )


def _check_release(root: str, release: str, ready_marker: str) -> None:
    os.close(scan.open_release(os.fsencode(root), os.fsencode(release)))
    if not scan.is_ready(os.fsencode(root), os.fsencode(release), os.fsencode(ready_marker)):
        raise OverlayError(
            f"release {release} is not ready: it has no {ready_marker}, so it is still being written or was broken off"
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
