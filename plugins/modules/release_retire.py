#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_retire
short_description: Remove releases that are not used any more from stores and from the software root
version_added: 0.1.0
description:
  - Removes the manifest and the trace of each release from the manifest store. With O(image_store), it also removes the data images of the
    release, and all metadata images that show it.
  - With O(delete=true), it also deletes the release from the software root.
  - The task fails, and removes nothing, if this host uses one of the releases or shows it in a view that is mounted. It knows nothing of
    other hosts, so ask them with M(renderfarm.overlay.release_usage_info) first. The playbook C(retire) does both.
  - Only a directory with a manifest is deleted, and only if a sample of its entries is as the manifest says. It has to be beneath
    its root on the same mount, without symbolic links in its path, with no mount and no other release inside of it, and not inside of
    another release.
  - Before a release is deleted, its ready marker is removed, so that no run uses it. Then its directory gets a name beside itself that
    begins with C(.retired-), then its manifest is removed. A run that was interrupted is continued by the next one.
    If another directory is put in the place of the release meanwhile, it is not deleted.
  - Run it on one host only, which may write to the stores and, with O(delete=true), to the software root.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.ready_marker
options:
  root:
    description: Path of the software root. Give this option or O(roots).
    type: path
  roots:
    description:
      - The software roots of views over several. The name of a release begins with that of its root.
      - Give all of them, since one may be inside of another.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the root, which is its identity in manifests.
        type: str
        required: true
      path:
        description: Path of the root on this host.
        type: path
        required: true
      ready_marker:
        description: The ready marker of its releases, if it is not O(ready_marker).
        type: str
  store:
    description: Directory of the manifests, as in M(renderfarm.overlay.release_manifest).
    type: path
    required: true
  image_store:
    description: Directory of metadata images and data images. Without it, images stay.
    type: path
  releases:
    description:
      - Paths of the releases below O(root).
      - With O(roots), each begins with the name of its root. A release of another root is refused.
    type: list
    elements: str
    required: true
  root_name:
    description: Name of the software root in manifests, if it is not O(root). See M(renderfarm.overlay.release_manifest).
    type: str
  delete:
    description: Whether to delete the releases from the software root.
    type: bool
    default: false
  state_dirs:
    description: Directories on this host that hold the layers of views. Those of views that are mounted need not be given.
    type: list
    elements: path
    default: [/var/lib/renderfarm-overlay]
notes:
  - A release that is not deleted is found again by the next run that lists the software root.
  - Files that the release shares with other releases as hard links keep their other names.
seealso:
  - module: renderfarm.overlay.release_usage_info
  - module: renderfarm.overlay.release_manifest
"""

EXAMPLES = r"""
- name: Remove manifest and images of a release
  renderfarm.overlay.release_retire:
    root: /net/software
    store: /net/manifests
    image_store: /net/manifests/images
    releases: [houdini/19.5.805]
  run_once: true

- name: Delete a release
  renderfarm.overlay.release_retire:
    root: /net/software
    store: /net/manifests
    image_store: /net/manifests/images
    releases: [houdini/19.5.805]
    ready_marker: .ready
    delete: true
  run_once: true

- name: Delete a release of one of several software roots
  renderfarm.overlay.release_retire:
    roots:
      - {name: houdini, path: /net/houdini}
      - {name: maya, path: /net/maya}
    store: /net/manifests
    releases: [maya/2025]
    delete: true
  run_once: true
"""

RETURN = r"""
actions:
  description: What was done. In check mode, what would be done.
  type: list
  elements: str
  returned: success
  sample:
    - remove the ready marker of release houdini/19.5.805
    - rename release houdini/19.5.805 on the software root
    - remove the manifest of release houdini/19.5.805
    - delete release houdini/19.5.805 from the software root
"""

from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path, root_identity
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement import retire_plan, retiring
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.release_roots import (
    ReleaseRoot,
    named_roots,
)


def main() -> None:
    runner.run(
        {
            "root": {"type": "path"},
            "roots": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "path": {"type": "path", "required": True},
                    "ready_marker": {"type": "str"},
                },
            },
            "store": {"type": "path", "required": True},
            "image_store": {"type": "path"},
            "releases": {"type": "list", "elements": "str", "required": True},
            "root_name": {"type": "str"},
            "ready_marker": runner.READY_MARKER,
            "delete": {"type": "bool", "default": False},
            "state_dirs": {"type": "list", "elements": "path", "default": [runner.DEFAULT_STATE_DIR]},
        },
        work,
        mutually_exclusive=[("root", "roots"), ("root_name", "roots")],
        required_one_of=[("root", "roots")],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Check that the releases may be retired, and retire them."""
    for option in ("store", *(["image_store"] if params["image_store"] else [])):
        runner.check_absolute(params[option], option)
    for path in params["state_dirs"]:
        runner.check_absolute(path, "state_dirs")
    releases = list(dict.fromkeys(map(_checked, params["releases"])))
    request = retiring.RetireRequest(_roots(params), params["store"], params["image_store"], params["delete"])
    retiring.check_unused(request, releases, params["state_dirs"])
    found = retiring.observe(request, releases, context.progress)
    plan = retire_plan.unique_plan(found)
    context.carry_out(plan, retiring.handlers(request, context.progress))
    changed = [one for one in found if one.plan()]
    before = {one.release: one.diff() for one in changed}
    return runner.Outcome({}, plan, before, {one.release: one.diff_after() for one in changed})


def _roots(params: dict[str, Any]) -> tuple[ReleaseRoot, ...]:
    """Return the software roots. Raises OverlayError if an option is wrong."""
    common = params["ready_marker"]
    if params["root"] is not None:
        runner.check_absolute(params["root"], "root")
        return (ReleaseRoot(params["root"], root_identity(params["root_name"] or params["root"]), _marker(common)),)
    if not params["roots"]:
        raise OverlayError("roots is empty: give the software roots")
    given = []
    for root in params["roots"]:
        runner.check_absolute(root["path"], "roots")
        marker = common if root["ready_marker"] is None else root["ready_marker"]
        given.append((root["name"], root["path"], _marker(marker)))
    return named_roots(given)


def _marker(path: str) -> str:
    return to_text(relative_path(to_bytes(path), "ready_marker"))


def _checked(release: str) -> str:
    """Return the path of a release in its normal form. Raises OverlayError if it is not a relative path."""
    path = to_text(relative_path(to_bytes(release), "release"))
    if not path or release.startswith("/"):
        raise OverlayError(
            f"release {release!r} is not a path below the software root: give one such as houdini/20.5.410"
        )
    return path


if __name__ == "__main__":
    main()
