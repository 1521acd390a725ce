#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: view_lock
short_description: Resolve views to generations on the host that scans
version_added: 0.1.0
description:
  - Says for each view which releases it shows, with the digests of their manifests, and which generation they make. Decides which
    releases linger, and builds images in an image store where that is asked for.
  - Does what M(renderfarm.overlay.view_releases) and M(renderfarm.overlay.metadata_layer) do for one view each, for all views in one task.
    All releases must have a manifest. M(renderfarm.overlay.resolved_views) calls it.
  - A view that fails does not keep the others from it.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  views:
    description:
      - The views. Their options are those of M(renderfarm.overlay.view_releases) and M(renderfarm.overlay.metadata_layer) with the same
        names.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the view.
        type: str
        required: true
      root:
        description: Path of the software root on this host. Give either this or O(views[].roots).
        type: path
      roots:
        description:
          - The software roots of a view over several. The name of a release begins with that of its root.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: Name of the root, which is its identity in manifests.
            type: str
            required: true
          path:
            description: Path of the root on this host.
            type: path
            required: true
          pattern:
            description: Path pattern of its releases; see M(renderfarm.overlay.release_info). It may leave out C({package}).
            type: str
            default: '{version}'
          ready_marker:
            description: Path of a file in a release that says that the release is complete.
            type: str
            default: ''
      store:
        description: Directory with the manifests.
        type: path
        required: true
      image_store:
        description: Directory for the image of the view. No image is built without it.
        type: path
      data_images:
        description:
          - The kinds of data images that hosts want of each release. An image that is not published for the manifest of the release is
            built, as M(renderfarm.overlay.data_image) does.
          - A release without a trace has no image of kind V(trace), which is a warning.
        type: list
        elements: str
        choices: [trace, everything]
        default: []
      data_image_store:
        description: Directory for data images. O(views[].data_images) needs it.
        type: path
      data_builds:
        description:
          - The most data images that this task builds for the view; all by default. If more are missing, the result has their releases in
            RV(views[].unbuilt), and what the view declares is not recorded yet. Call the module again to go on.
          - So a caller can show progress while the images of many releases are built.
        type: int
      data_required:
        description: Whether a view fails if an image of kind V(everything) cannot be built. Otherwise that is a warning.
        type: bool
        default: false
      data_staging:
        description: Directory on this host in which data images are built.
        type: path
        default: /var/lib/renderfarm-overlay/data-staging
      releases:
        description: The declared releases.
        type: list
        elements: dict
        required: true
        suboptions:
          release:
            description: Path of the release below the software root.
            type: str
            required: true
          at:
            description: Where the release appears in the view.
            type: str
          source:
            description: Where the data of the release is in the data layer.
            type: str
          include:
            description: Patterns of what of the release the view shows.
            type: list
            elements: str
            default: []
          exclude:
            description: Patterns of what of the release the view does not show.
            type: list
            elements: str
            default: []
      links:
        description: Symbolic links in the view besides those of the releases.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description: Where the link is in the view.
            type: str
            required: true
          target:
            description: Where it leads.
            type: str
            required: true
      ready_marker:
        description: Path of a file in a release that says that the release is complete.
        type: str
        default: ''
      ignore_names:
        description: Names that are no part of a release; see M(renderfarm.overlay.release_manifest).
        type: list
        elements: str
        default:
          - .nfs[0-9a-fA-F]*
          - .snapshot
          - .snapshots
          - ~snapshot
          - '#snapshot'
          - '@Recently-Snapshot'
          - .zfs
          - '#recycle'
          - '@Recycle'
          - '@eaDir'
          - lost+found
          - .DS_Store
          - '*.pyc.[0-9]*'
      linger:
        description: Seconds for which a release that is no longer declared stays in the view.
        type: int
        default: 172800
      sample:
        description: How many entries of each release are compared with its manifest.
        type: int
        default: 20
      xattr_namespace:
        description: The namespace of the overlay xattrs.
        type: str
        choices: [trusted, user]
        default: trusted
      owner:
        description: User who owns everything in the view.
        type: str
      group:
        description: Group of everything in the view.
        type: str
      owner_map:
        description: Users in the manifests, and the users that own their files in the view.
        type: dict
        default: {}
      group_map:
        description: The same for groups.
        type: dict
        default: {}
      mode:
        description: Changes of the modes of all files and directories.
        type: str
      keep_setid:
        description: Keep set-ID bits and capabilities of files whose owner or group changes.
        type: bool
        default: false
      on_conflict:
        description: What to do when releases have different things at one path.
        type: str
        choices: [error, first, last]
        default: error
  now:
    description: The time at which it is decided what lingers, in seconds since 1970. The present time by default.
    type: int
seealso:
  - module: renderfarm.overlay.resolved_views
  - module: renderfarm.overlay.view
"""

EXAMPLES = r"""
- name: Find out which generation a view is
  renderfarm.overlay.view_lock:
    views:
      - name: software
        root: /net/software
        store: /net/manifests
        releases:
          - release: houdini/20.5.410
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success
  sample: [record the releases of view software]
views:
  description: The result for each view.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Name of the view.
      type: str
      sample: software
    msg:
      description: Why the view cannot be resolved; empty if it can.
      type: str
      sample: ''
    of_host:
      description: Whether another host may be able to resolve the view, if this one cannot.
      type: bool
      returned: when the view cannot be resolved
      sample: false
    generation:
      description: The generation that the releases make.
      type: str
      sample: 0123456789abcdef
    releases:
      description: The declared releases and then those that linger, each with the digest of its manifest.
      type: list
      elements: dict
      sample: [{"release": "houdini/20.5.410", "digest": "sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b"}]
    leaving:
      description: The releases that linger, each with the time after which it leaves the view.
      type: list
      elements: dict
      sample: []
    data_images:
      description: The data images of the releases.
      type: list
      elements: dict
      returned: when O(views[].data_images) is not empty
      sample:
        - release: houdini/20.5.410
          kind: trace
          digest: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
          bytes_on_disk: 165675008
          opens: 4656
          complete: false
    unbuilt:
      description: The releases with data images that are still to be built. The other values are then not final.
      type: list
      elements: str
      returned: when O(views[].data_builds) was not enough
      sample: [houdini/20.5.410]
    image_digest:
      description: The digest of the image; none if no image is built.
      type: str
      sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
"""

import copy
import time
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import view_locking, view_parameters
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_view import Run
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import patterns
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import layer_parameters

#: The options of metadata_layer that decide which generation a view is.
_OF_GENERATION = (
    *("links", "xattr_namespace", "owner", "group", "owner_map", "group_map", "mode", "keep_setid", "on_conflict"),
)


def main() -> None:
    runner.run(
        {
            "views": {"type": "list", "elements": "dict", "required": True, "options": _view_options()},
            "now": {"type": "int"},
        },
        work,
    )


def _view_options() -> dict[str, Any]:
    layer = copy.deepcopy(layer_parameters.OPTIONS)
    release = {name: layer["releases"]["options"][name] for name in ("at", "source", "include", "exclude")}
    return {
        **{name: layer[name] for name in _OF_GENERATION},
        "name": {"type": "str", "required": True},
        "root": {"type": "path"},
        "roots": {"type": "list", "elements": "dict", "default": [], "options": _root_options()},
        "store": {"type": "path", "required": True},
        "image_store": {"type": "path"},
        "releases": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {**release, "release": {"type": "str", "required": True}},
        },
        "data_images": {"type": "list", "elements": "str", "choices": ["trace", "everything"], "default": []},
        "data_image_store": {"type": "path"},
        "data_builds": {"type": "int"},
        "data_required": {"type": "bool", "default": False},
        "data_staging": {"type": "path", "default": "/var/lib/renderfarm-overlay/data-staging"},
        "ready_marker": runner.READY_MARKER,
        "ignore_names": patterns.IGNORE_NAMES,
        "linger": {"type": "int", "default": 172800},
        "sample": {"type": "int", "default": 20},
    }


def _root_options() -> dict[str, Any]:
    roots: dict[str, Any] = view_parameters.options()["roots"]["options"]
    return {**roots, "ready_marker": runner.READY_MARKER}


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Resolve the views, one after the other."""
    for view in params["views"]:
        _check(view)
    now = int(time.time()) if params["now"] is None else params["now"]
    run = Run(context.check_mode, context.timeout, context.progress, context.carry_out, runner.explain)
    # The format and strategy are no part of a generation's name.
    fixed = {"strategy": "data_only", "format": "auto"}
    locked = [view_locking.lock({**view, **fixed}, now, context.note.write, run) for view in params["views"]]
    return runner.Outcome(
        {"views": [{"name": one.name, "msg": one.failure, **one.values} for one in locked]},
        tuple(action for one in locked for action in one.actions),
        warnings=list(dict.fromkeys(warning for one in locked for warning in one.warnings)),
    )


def _check(view: dict[str, Any]) -> None:
    if bool(view["roots"]) == (view["root"] is not None):
        raise OverlayError(f"view {view['name']}: give either root or roots")
    for root in view["roots"]:
        runner.check_absolute(root["path"], f"view {view['name']}: path of root {root['name']}")
    for option in ("root", "store", "image_store", "data_image_store", "data_staging"):
        if view[option] is not None:
            runner.check_absolute(view[option], f"view {view['name']}: {option}")
    if view["data_images"] and view["data_image_store"] is None:
        raise OverlayError(
            f"view {view['name']}: data_images needs data_image_store, the directory of the images: give it"
        )
    for option in ("linger", "sample", "data_builds"):
        if view[option] is not None and view[option] < 0:
            raise OverlayError(f"view {view['name']}: {option} must be 0 or more, not {view[option]}")


if __name__ == "__main__":
    main()
