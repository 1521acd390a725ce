#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_manifest
short_description: Record the contents of software releases once
version_added: 0.1.0
description:
  - Scans a release on the software root and writes its manifest to a manifest store. A manifest is a gzipped listing in the format
    composefs-dump(5).
  - Any number of hosts can then build layers from manifests without walking the software root again.
  - A release never changes, so a release that has a manifest is not scanned again. O(rescan=true) compares it with the manifest instead.
  - With O(releases) one task scans many releases, one after the other. For a release that has a manifest it reads one small record.
  - Run the module on one host only, with O(store) on a share that all hosts read.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.ready_marker
  - renderfarm.overlay.options.ignore_names
options:
  root:
    description: Path of the software root, the directory below which all releases are. It is usually an NFS mount.
    type: path
    required: true
  root_name:
    description:
      - Identity of the software root. It is recorded in manifests, and is a part of what the name of a generation is computed from.
      - The default is the path O(root).
      - The identity must be the same wherever releases of this root are scanned. If hosts mount the root at another path than the host that
        scans it, give the path at which hosts mount it.
      - Releases of different roots may have equal paths, so each root needs a separate O(store). The module refuses a manifest of a release
        of another root, and does not replace it.
    type: str
  prefix:
    description:
      - What the names of the releases have before their path below O(root). With the prefix V(maya), the release at V(2025) is
        V(maya/2025) in O(release), in O(store), in locks and in views.
      - A view of several software roots needs it, since these may have releases at equal paths. The prefix is the name of the root there.
      - Give O(root_name) with it.
    type: str
    default: ''
  release:
    description:
      - Path of the release below O(root), without symbolic links in it.
      - Give either O(release) or O(releases).
    type: str
  releases:
    description:
      - Paths of several releases, each as in O(release). Duplicates are ignored.
      - If a path leads out of O(root), or O(store) is inside one of the releases, the task fails before anything is written.
      - If one release fails, for example because it is not ready, the others are still scanned. The task fails after the last release and
        names those that failed. Manifests that were written stay, so the next run continues with the rest.
      - The task ends early if O(timeout) expires, and names the release. It also ends early if O(store) is full or read-only.
    type: list
    elements: str
  store:
    description:
      - Directory of the manifests. It must exist, because a missing one is usually a share that is not mounted. Directories in it are
        created.
      - The manifest of release V(houdini/20.5.410) is V(houdini/20.5.410.dump.gz), with the record V(houdini/20.5.410.json) beside it.
      - Hosts trust manifests, including the modes and owners in them. Only those who publish software should be able to write to O(store).
    type: path
    required: true
  state:
    description:
      - V(present) makes sure that the manifest exists.
      - V(absent) removes the manifest, and the trace of M(renderfarm.overlay.access_trace) beside it. The release is not changed.
    type: str
    choices: [present, absent]
    default: present
  checksum:
    description:
      - With V(sha256) the module reads every file and records its SHA-256. This takes as long as reading the whole release.
      - With V(none) it reads no content.
    type: str
    choices: [none, sha256]
    default: none
  rescan:
    description:
      - Scan a release that has a manifest again. The task fails and names the differences if the release has changed.
      - Nothing is written. The option has no effect on a release without a manifest.
    type: bool
    default: false
notes:
  - A release may not have device nodes, named pipes, sockets or mounts in it. The task fails and names them.
  - The manifest has these extended attributes (xattrs) - file capabilities (C(security.capability)) and POSIX ACLs
    (C(system.posix_acl_access) and C(system.posix_acl_default)). For NFSv4 ACLs and other access rights see docs/architecture.md.
  - A directory that root of this host may not list is recorded without its content if users of a view could not enter it either. Otherwise
    the scan fails and names the directory.
  - The manifest depends only on the tree and on what root of this host may read, if all hosts see the same ACLs.
  - A manifest that an older version of the collection wrote lacks information. The module ignores it and scans the release again.
seealso:
  - module: renderfarm.overlay.release_info
  - module: renderfarm.overlay.metadata_layer
"""

EXAMPLES = r"""
- name: Scan a release, once, on one host
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

- name: Scan all releases that are ready, in one task
  renderfarm.overlay.release_manifest:
    root: /net/software
    releases: "{{ software.releases | selectattr('ready') | map(attribute='path') }}"
    store: /net/manifests
    ready_marker: .ready
  run_once: true

- name: Check that a release has not changed since it was scanned
  renderfarm.overlay.release_manifest:
    root: /net/software
    release: houdini/20.5.410
    store: /net/manifests
    rescan: true

- name: Remove the manifest of a deleted release
  renderfarm.overlay.release_manifest:
    root: /net/software
    release: houdini/19.0.383
    store: /net/manifests
    state: absent
"""

RETURN = r"""
actions:
  description: The changes that were made, or in check mode would be made.
  type: list
  elements: str
  returned: success, and with O(releases) also if some of them failed
  sample: [scan release houdini/20.5.410]
manifest:
  description: Path of the manifest.
  type: str
  returned: success, with O(release)
  sample: /net/manifests/houdini/20.5.410.dump.gz
digest:
  description: SHA-256 of the uncompressed manifest. None if there is no manifest, for example after O(state=absent).
  type: str
  returned: success, with O(release)
  sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
entries:
  description: Number of entries of each kind. C(hardlinks) counts every name of a file but its first.
  type: dict
  returned: if there is a manifest, with O(release)
  sample: {"directories": 812, "files": 20412, "symlinks": 390, "hardlinks": 12}
bytes:
  description: Size of the content of all files, in bytes.
  type: int
  returned: if there is a manifest, with O(release)
  sample: 3421776512
unreadable:
  description:
    - Paths of the first 100 files with content that not everybody may read, and directories that not everybody may enter. The path of a
      directory has a trailing slash, and files in it are not listed.
    - Views cannot read these files from an export with C(root_squash), because the kernel reads them as an unprivileged user. They are
      found by mode and ACL, so a scan on the file server reports the same files. A warning names the first ones.
  type: list
  elements: str
  returned: if the release was scanned, with O(release)
  sample: [/licenses/site.lic, /internal/]
unreadable_count:
  description: Number of all such files and directories.
  type: int
  returned: if the release was scanned, with O(release)
  sample: 2
unlisted:
  description:
    - Paths of the first 10 directories that root of this host may not list. They are recorded without their content. Users of a view could
      not enter them either. A warning names them.
  type: list
  elements: str
  returned: if the release was scanned, with O(release)
  sample: []
unlisted_count:
  description: Number of all such directories.
  type: int
  returned: if the release was scanned, with O(release)
  sample: 0
narrowed:
  description:
    - Paths of the first 10 files and directories with an ACL that a layer cannot hold, such as an NFSv4 ACL that names users or groups.
      Their mode in the manifest grants no more than the ACL, and may grant less to some users. A warning names them.
  type: list
  elements: str
  returned: if the release was scanned, with O(release)
  sample: []
narrowed_count:
  description: Number of all such files and directories.
  type: int
  returned: if the release was scanned, with O(release)
  sample: 0
ignored:
  description: Paths of the first 10 files and directories that were left out because of their names, as O(ignore_names) says.
  type: list
  elements: str
  returned: if the release was scanned, with O(release)
  sample: [/lib/.nfs000000000a1b2c3d]
ignored_count:
  description: Number of all such files and directories. What is in such a directory is not counted.
  type: int
  returned: if the release was scanned, with O(release)
  sample: 1
manifests:
  description: The values above for each of the O(releases) that did not fail, in the given order.
  type: list
  elements: dict
  returned: with O(releases), also if some of them failed
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
      description: SHA-256 of the uncompressed manifest. None if there is no manifest.
      type: str
      sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
    entries:
      description: Number of entries of each kind, if there is a manifest.
      type: dict
      sample: {"directories": 812, "files": 20412, "symlinks": 390, "hardlinks": 12}
    bytes:
      description: Size of the content of all files in bytes, if there is a manifest.
      type: int
      sample: 3421776512
    unreadable:
      description: Paths of the first 100 files and directories that not everybody may read or enter, if the release was scanned.
      type: list
      elements: str
      sample: []
    unreadable_count:
      description: Number of all such files and directories, if the release was scanned.
      type: int
      sample: 0
    unlisted:
      description: Paths of the first 10 directories that are recorded without their content, if the release was scanned.
      type: list
      elements: str
      sample: []
    unlisted_count:
      description: Number of all such directories, if the release was scanned.
      type: int
      sample: 0
    narrowed:
      description: Paths of the first 10 files and directories with an ACL that a layer cannot hold, if the release was scanned.
      type: list
      elements: str
      sample: []
    narrowed_count:
      description: Number of all such files and directories, if the release was scanned.
      type: int
      sample: 0
    ignored:
      description: Paths of the first 10 files and directories that were left out because of their names, if the release was scanned.
      type: list
      elements: str
      sample: []
    ignored_count:
      description: Number of all such files and directories, if the release was scanned.
      type: int
      sample: 0
failures:
  description: The O(releases) that failed, each with the reason. The message of the task names the first ones.
  type: list
  elements: dict
  returned: with O(releases), also if some of them failed
  contains:
    release:
      description: Path of the release below O(root).
      type: str
      sample: houdini/20.5.487
    msg:
      description: Why the release failed.
      type: str
      sample: "release houdini/20.5.487 is not ready: it has no .ready, so it is still being written or was interrupted"
    of_host:
      description: Whether another host may be able to do it.
      type: bool
      sample: false
"""

from collections.abc import Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import is_of_host
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, patterns, recording
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import root_identity
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest_plan import (
    ReleaseManifest,
    failure_message,
)


def main() -> None:
    runner.run(
        {
            "root": {"type": "path", "required": True},
            "release": {"type": "str"},
            "releases": {"type": "list", "elements": "str"},
            "root_name": {"type": "str"},
            "prefix": {"type": "str", "default": ""},
            "store": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "ready_marker": runner.READY_MARKER,
            "ignore_names": patterns.IGNORE_NAMES,
            "checksum": {"type": "str", "choices": ["none", "sha256"], "default": "none"},
            "rescan": {"type": "bool", "default": False},
        },
        work,
        required_one_of=[("release", "releases")],
        mutually_exclusive=[("release", "releases")],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Observe all manifests, then change all, and return the outcome."""
    for option in ("root", "store"):
        runner.check_absolute(params[option], option)
    request = recording.ManifestRequest(
        params["root"],
        params["store"],
        root_identity(params["root_name"] or params["root"]),
        params["state"] == "present",
        params["checksum"] == "sha256",
        params["ready_marker"],
        params["rescan"],
        patterns.IgnoredNames(params["ignore_names"]),
        params["prefix"],
    )
    single = params["releases"] is None
    manifests = recording.requested_manifests(request, [params["release"]] if single else params["releases"])
    was_empty = not manifest_store.is_used(request.store)

    def observe(manifest: ReleaseManifest) -> None:
        recording.observe(manifest, request, context.progress)

    def change(manifest: ReleaseManifest) -> None:
        context.carry_out(manifest.plan, recording.handlers(manifest, request, context.progress))

    for step in (observe, change):
        recording.for_each(manifests, step, context.note.write)
    outcome = _outcome_of_one(*manifests) if single else _outcome(manifests)
    if was_empty and request.wanted and manifests:
        outcome.warnings.append(manifest_store.empty_warning(request.store))
    return outcome


def _outcome_of_one(manifest: ReleaseManifest) -> runner.Outcome:
    if manifest.failure:
        raise manifest.failure
    warnings = list(manifest.report.warnings(manifest.release))
    return runner.Outcome(manifest.values(), manifest.plan, manifest.diff_before(), manifest.diff_after(), warnings)


def _outcome(manifests: Sequence[ReleaseManifest]) -> runner.Outcome:
    done = [manifest for manifest in manifests if not manifest.failure]
    changed = [manifest for manifest in done if manifest.plan]
    failed = [(manifest.release, manifest.failure) for manifest in manifests if manifest.failure]
    failures = [(release, runner.explain(error)) for release, error in failed]
    return runner.Outcome(
        {
            "manifests": [{"release": manifest.release, **manifest.values()} for manifest in done],
            "failures": [
                {"release": release, "msg": runner.explain(error), "of_host": is_of_host(error)}
                for release, error in failed
            ],
        },
        tuple(action for manifest in changed for action in manifest.plan),
        {manifest.release: manifest.diff_before() for manifest in changed},
        {manifest.release: manifest.diff_after() for manifest in changed},
        [warning for manifest in done for warning in manifest.report.warnings(manifest.release)],
        failure_message(failures, len(manifests)),
    )


if __name__ == "__main__":
    main()
