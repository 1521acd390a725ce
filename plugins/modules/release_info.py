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
  - The filter P(renderfarm.overlay.select_releases#filter) chooses releases from this list.
  - The module lists only directories that O(pattern) matches. It does not walk releases.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes.info
  - renderfarm.overlay.options
  - renderfarm.overlay.options.ready_marker
  - renderfarm.overlay.options.ignore_names
options:
  root:
    description:
      - Path of the software root.
      - Without it, the module reads only the manifest store and lists every release that has a manifest.
    type: path
  mounted:
    description:
      - Whether O(root) has to be a mountpoint. The module then fails if nothing is mounted there.
      - Otherwise a software root that is not mounted has no releases.
    type: bool
    default: false
  root_name:
    description:
      - Identity of the software root, as in M(renderfarm.overlay.release_manifest).
      - With it, the module ignores manifests of releases of other roots. Without it, it accepts manifests of any root.
    type: str
  prefix:
    description: What the names of the releases have before their path below O(root); see M(renderfarm.overlay.release_manifest).
    type: str
    default: ''
  package:
    description: The package of all releases if O(pattern) has no C({package}), as on a software root that has one package.
    type: str
    default: ''
  named_roots:
    description:
      - Other software roots that symbolic links on O(root) may lead to, as a dictionary of their names and their paths on the host.
      - RV(links[].elsewhere) says where such a link leads.
      - Their paths are resolved only if a link does not lead to a release on O(root), since an automounter would mount them.
    type: dict
    default: {}
  store:
    description:
      - Directory of the manifests; see M(renderfarm.overlay.release_manifest).
      - Without it, the module lists the releases on O(root) without manifests.
    type: path
  pattern:
    description:
      - Path pattern of releases, relative to the software root.
      - C({package}) and C({version}) match the package and the version of a release. C(*) matches any text. None of them matches a slash.
      - C({variant}) matches one of several variants of a version. C({vendor}) matches the vendor of a package. The package is then
        V(VENDOR/PACKAGE), since two vendors may have packages of one name.
      - In a name that has a package before its version, as with V({package}-{version}), the version begins at the last number that the
        pattern allows, but not inside of a date. V(boost-1.87.0-beta1) is version V(1.87.0-beta1) of V(boost). Without such a number, the
        package is as long as possible. V(llvm-main) is version V(main) of V(llvm).
      - A name that starts with a dot matches only if the pattern has this dot.
      - Symbolic links are not followed to find releases. RV(links) has those that O(pattern) matches.
    type: str
    default: '{package}/{version}'
  version_order:
    description: The order in which versions are sorted; see the option O(renderfarm.overlay.select_releases#filter:order).
    type: str
    choices: [vendor, pep440, rez]
    default: vendor
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

- name: Print the newest release of each package
  ansible.builtin.debug:
    msg: "{{ software.releases | renderfarm.overlay.select_releases('newest(@)') | map(attribute='path') }}"

- name: List releases in directories for package, version and platform
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
      description: The text that C({package}) in O(pattern) matches.
      type: str
      sample: houdini
    version:
      description: The text that C({version}) in O(pattern) matches.
      type: str
      sample: 20.5.410
    variant:
      description: The text that C({variant}) in O(pattern) matches. None if the pattern has no variants.
      type: str
      sample: python-3.11
    path:
      description:
        - Path of the release below the software root, after O(prefix), as for the option C(release) of
          M(renderfarm.overlay.release_manifest).
      type: str
      sample: houdini/20.5.410
    ready:
      description:
        - Whether the release has its O(ready_marker), and no RV(releases[].held_back_by). Always true without O(root).
      type: bool
      sample: true
    not_ready_since:
      description:
        - When the directory of a release that is not ready last changed, in UTC. That is when something was last added at its top, or
          when the ready marker was removed. None if the release is ready.
      type: str
      sample: "2026-11-27T15:00:00Z"
    held_back_by:
      description:
        - The name beside the version that says the release is being written or is to be ignored. rez leaves C(.building) and C(.ignore),
          followed by the version.
        - None if there is none.
      type: str
      sample: .building20.5.410
    exists:
      description: Whether the release is on the software root. None without O(root).
      type: bool
      sample: true
    manifest:
      description: Path of the manifest. None if there is no manifest.
      type: str
      sample: /net/manifests/houdini/20.5.410.dump.gz
    digest:
      description: SHA-256 of the uncompressed manifest. None if there is no manifest.
      type: str
      sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
    root:
      description: Identity of the software root in the manifest. None if there is no manifest.
      type: str
      sample: /net/software
    entries:
      description: Number of entries of each kind. None if there is no manifest.
      type: dict
      sample: {"directories": 812, "files": 20412, "symlinks": 390, "hardlinks": 12}
    bytes:
      description: Size of the content of all files in bytes. None if there is no manifest.
      type: int
      sample: 3421776512
links:
  description:
    - The symbolic links on the software root at places where O(pattern) would find a release, or a directory of releases, sorted by path.
    - Each link is followed once. It may lead to a release that is on the same software root, or to one of O(named_roots).
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: Path of the link below the software root.
      type: str
      sample: houdini/current
    target:
      description: The target of the link.
      type: str
      sample: 20.5.410
    release:
      description: The path of the release that the link leads to. None if it leads to none.
      type: str
      sample: houdini/20.5.410
    elsewhere:
      description:
        - The name that a release at this place of one of O(named_roots) has. Whether there is a release, a list of that root says.
        - None if the link does not lead to another root.
      type: str
      sample: maya/2025
    reason:
      description: Why the link is passed over. None if it leads to a release, or to another root.
      type: str
      sample: it leads to /vol2/houdini-20.5.410, which is outside of the software root
    link:
      description:
        - The same link for the option O(renderfarm.overlay.metadata_layer#module:links), in a view that shows the release at its path.
        - None if the link leads to no release.
      type: dict
      sample: {"path": "houdini/current", "target": "20.5.410"}
unversioned:
  description:
    - The rez packages on the software root that have no version, sorted by path. C({version}) in O(pattern) matches none of them.
    - To show one in a view, name it in the releases of the view.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: Path of the package below the software root, after O(prefix).
      type: str
      sample: site
    definition:
      description: The file in it that defines the package.
      type: str
      sample: package.py
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import release_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountpoints
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import (
    manifest_store,
    patterns,
    scan,
    versions,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import root_identity
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern, Release


def main() -> None:
    runner.run(
        {
            "root": {"type": "path"},
            "root_name": {"type": "str"},
            "prefix": {"type": "str", "default": ""},
            "package": {"type": "str", "default": ""},
            "named_roots": {"type": "dict", "default": {}},
            "mounted": {"type": "bool", "default": False},
            "store": {"type": "path"},
            "pattern": {"type": "str", "default": "{package}/{version}"},
            "ready_marker": runner.READY_MARKER,
            "ignore_names": patterns.IGNORE_NAMES,
            "version_order": {"type": "str", "choices": list(versions.ORDERS), "default": "vendor"},
        },
        work,
        required_one_of=[("root", "store")],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Return the releases on the software root and in the store, sorted by package and version."""
    root, store = params["root"], params["store"]
    for path in params["named_roots"].values():
        runner.check_absolute(path, "named_roots")
    pattern, prefix = Pattern.parse(params["pattern"], params["package"]), params["prefix"]
    on_root: dict[str, Release] = {}
    passed_over = scan.PassedOver()
    if root is not None:
        if not os.path.isdir(root):
            raise OverlayError(f"software root {root} does not exist or is not a directory: is it mounted?")
        if params["mounted"] and not mountpoints.is_mounted(os.fsencode(root)):
            raise OverlayError(f"software root {root} is not mounted, and its releases would seem to be gone: mount it")
        ignored = patterns.IgnoredNames(params["ignore_names"])
        listing = scan.find_releases(root, pattern, passed_over, context.progress, ignored)
        on_root = {release.path: release for release in listing}
    found, manifests = dict(on_root), dict[str, str]()
    if store is not None:
        for release in manifest_store.find_manifests(store, pattern, context.progress, prefix):
            manifests[release.path] = manifest_store.manifest_path(store, release.name(prefix))
            found.setdefault(release.path, release)
    listed: list[dict[str, Any]] = []
    for release in sorted(found.values(), key=lambda one: one.sort_key(params["version_order"])):
        exists = None if root is None else release.path in on_root
        ready = exists is None or (exists and scan.is_shown_ready(root, release, params["ready_marker"]))
        listed.append(
            {
                **release.as_dict(prefix),
                "variant": release.variant or None,
                "ready": ready,
                "held_back_by": release.held_back_by or None,
                "not_ready_since": None if ready or not exists else scan.last_change(root, release.path),
                "exists": exists,
                **_manifest(manifests.get(release.path), release.name(prefix), params["root_name"]),
            }
        )
        context.progress()
    warnings = [f"releases in {one} are not listed, since this host may not list it" for one in passed_over.unlisted]
    roots = (os.path.realpath(root), root, params["root_name"] or root) if root else ()  # also its path on other hosts
    links = release_links(passed_over.links, on_root, roots, params["named_roots"], os.path.realpath)
    values = {"releases": listed, "links": [link.as_dict(prefix) for link in links]}
    values["unversioned"] = passed_over.unversioned_values(prefix)
    return runner.Outcome(values, warnings=warnings)


def _manifest(path: str | None, release: str, root_name: str | None) -> dict[str, Any]:
    """Return the values of a release's manifest, each None if there is no manifest of this software root."""
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
