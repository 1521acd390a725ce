#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_info
short_description: List the releases on a software root and in a manifest store
version_added: 0.1.0
description:
  - Lists the releases that are on a software root, that have a manifest, or both.
  - The list is what the filter P(renderfarm.overlay.select_releases#filter) chooses from.
  - Only the directories that O(pattern) names are listed; the releases themselves are not walked.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes.info
  - renderfarm.overlay.options
  - renderfarm.overlay.options.ready_marker
options:
  root:
    description:
      - The software root.
      - Without it only the manifest store is read, and every release that has a manifest is listed.
    type: path
  root_name:
    description:
      - The identity of the software root, as M(renderfarm.overlay.release_manifest) has it.
      - With it, a manifest of a release at the same path below another root counts as none.
    type: str
  store:
    description: Folder with the manifests; see M(renderfarm.overlay.release_manifest).
    type: path
  pattern:
    description:
      - Where releases are below the software root.
      - C({package}) and C({version}) stand for the text that becomes the release's package and version, C(*) for any text;
        none of them matches a slash.
      - Symbolic links are passed over, and names that start with a dot are matched only by a dot in the pattern.
    type: str
    default: '{package}/{version}'
seealso:
  - module: renderfarm.overlay.release_manifest
  - plugin: renderfarm.overlay.select_releases
    plugin_type: filter
"""

EXAMPLES = r"""
- name: List all releases
  renderfarm.overlay.release_info:
    root: /net/software
    store: /net/manifests
    ready_marker: .ready
  register: software

- name: Show the newest release of each package
  ansible.builtin.debug:
    msg: "{{ software.releases | renderfarm.overlay.select_releases('newest(@)') | map(attribute='path') }}"

- name: List releases that are laid out as package, version and platform
  renderfarm.overlay.release_info:
    root: /net/software
    pattern: '{package}/{version}/linux-x86_64'
"""

RETURN = r"""
releases:
  description: The releases, sorted by package and then by version, oldest first.
  type: list
  elements: dict
  returned: success
  contains:
    package:
      description: What C({package}) in the pattern stands for.
      type: str
      sample: houdini
    version:
      description: What C({version}) in the pattern stands for.
      type: str
      sample: 20.5.410
    path:
      description: Path of the release below the software root; what M(renderfarm.overlay.release_manifest) takes as C(release).
      type: str
      sample: houdini/20.5.410
    ready:
      description: Whether the release is complete. Without O(root) every release that has a manifest is.
      type: bool
      sample: true
    exists:
      description: Whether the release is on the software root; none without O(root).
      type: bool
      sample: true
    manifest:
      description: Path of the manifest; none when there is none.
      type: str
      sample: /net/manifests/houdini/20.5.410.dump.gz
    digest:
      description: Digest of the manifest; none when there is none.
      type: str
      sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
    root:
      description: The software root that the manifest says it is of; none when there is none.
      type: str
      sample: /net/software
    entries:
      description: Number of entries of each kind; none when there is no manifest.
      type: dict
      sample: {"directories": 812, "files": 20412, "symlinks": 390, "hardlinks": 12}
    bytes:
      description: Content of all files, in bytes; none when there is no manifest.
      type: int
      sample: 3421776512
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import root_identity
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern, Release


def main() -> None:
    runner.run(
        {
            "root": {"type": "path"},
            "root_name": {"type": "str"},
            "store": {"type": "path"},
            "pattern": {"type": "str", "default": "{package}/{version}"},
            "ready_marker": runner.READY_MARKER,
        },
        work,
        required_one_of=[("root", "store")],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    root, store = params["root"], params["store"]
    pattern = Pattern.parse(params["pattern"])
    found: dict[str, Release] = {}
    on_root = set()
    unlisted: list[str] = []
    if root is not None:
        if not os.path.isdir(root):
            raise OverlayError(f"software root {root} does not exist or is not a directory: is it mounted?")
        for release in scan.find_releases(root, pattern, unlisted, context.progress):
            found[release.path] = release
            on_root.add(release.path)
    manifests = {}
    if store is not None:
        for release in manifest_store.find_manifests(store, pattern, context.progress):
            manifests[release.path] = manifest_store.manifest_path(store, release.path)
            found.setdefault(release.path, release)

    def described(release: Release) -> dict[str, Any]:
        exists = None if root is None else release.path in on_root
        ready = exists is None or (exists and _is_ready(root, release.path, params["ready_marker"]))
        return {
            "package": release.package,
            "version": release.version,
            "path": release.path,
            "ready": ready,
            "exists": exists,
            **_manifest(manifests.get(release.path), release.path, params["root_name"]),
        }

    listed: list[dict[str, Any]] = []
    for release in sorted(found.values(), key=Release.sort_key):
        listed.append(described(release))
        context.progress()
    warnings = [f"{folder} may not be listed, so releases in it are not known" for folder in unlisted]
    return runner.Outcome({"releases": listed}, warnings=warnings)


def _is_ready(root: str, release: str, marker: str) -> bool:
    return scan.is_ready(os.fsencode(root), os.fsencode(release), os.fsencode(marker))


def _manifest(path: str | None, release: str, root_name: str | None) -> dict[str, Any]:
    record = manifest_store.find_record(path, release) if path else None
    if record is None or (root_name and root_identity(root_name) != record.root):
        return {"manifest": None, "digest": None, "root": None, "entries": None, "bytes": None}
    return {
        "manifest": path,
        "digest": record.digest,
        "root": record.root,
        "entries": record.entries.as_dict(),
        "bytes": record.bytes,
    }


if __name__ == "__main__":
    main()
