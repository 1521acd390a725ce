#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_usage_info
short_description: Report what uses releases on a host
version_added: 0.1.0
description:
  - Returns for each release which views and generations on the host show it, where, and which processes use it.
  - A process uses a release if its working directory, its root directory, its program, or a file that it has open or mapped is in the
    release. It may use a view in any mount namespace, such as that of a container, an earlier generation that a switch has detached, or
    the software root itself.
  - Where it is unknown what a process uses in a view, the process counts as using every release that the view shows.
  - Returns also what is at a path, in both directions. For a file in a view, these are the release and the file behind it. For a file on
    the software root, these are all places where it appears in the views of the host.
  - Reads the state directory, the layers, and what the kernel says about mounts and processes. It looks up no path on a data layer, so it
    answers although a file server does not.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes.info
  - renderfarm.overlay.options
options:
  releases:
    description:
      - Paths of releases below the software root.
      - Without this option and O(paths), these are all releases that generations on the host show.
    type: list
    elements: str
  paths:
    description:
      - Absolute paths in views, or on a software root. Symbolic links on file systems other than local ones are not followed.
    type: list
    elements: path
    default: []
  processes:
    description: Whether to find the processes that use a release.
    type: bool
    default: true
  roots:
    description:
      - Paths of software roots on the host. Processes that use a release there, not through a view, are found too.
      - The data layers of mounted views need not be given.
    type: list
    elements: path
    default: []
  root_name:
    description:
      - Name of a software root in manifests, usually its path. See M(renderfarm.overlay.release_manifest).
      - Only releases of this root count. Without it, a release is known by its path alone, whatever root it is of.
    type: str
  named_roots:
    description:
      - The software roots of views over several, as a dictionary of their names and their paths on the host. The name of a release begins
        with that of its root.
      - Processes that use a release there, not through a view, are found too. Only releases of these roots, and of O(root_name), count.
    type: dict
    default: {}
  state_dirs:
    description:
      - Directories on the host that hold the layers of views.
      - Those of views that are mounted need not be given.
    type: list
    elements: path
    default: [/var/lib/renderfarm-overlay]
notes:
  - Run it as root, since other users see only their own processes.
  - Several releases can be merged at one place. A layer that is a directory says to which of them a file belongs. A directory that
    several of them have, and any file of a layer that is an image, counts as used for all of them.
seealso:
  - module: renderfarm.overlay.view_info
  - module: renderfarm.overlay.overlay_prune
"""

EXAMPLES = r"""
- name: Find out what uses a release
  renderfarm.overlay.release_usage_info:
    releases:
      - houdini/19.5.805
  register: found

- name: Find the release and the file behind a path in a view
  renderfarm.overlay.release_usage_info:
    paths:
      - /software/houdini/19.5.805/bin/hython
    processes: false

- name: Find out what uses a release of one of several software roots
  renderfarm.overlay.release_usage_info:
    releases:
      - maya/2025
    named_roots:
      houdini: /net/houdini
      maya: /net/maya
"""

RETURN = r"""
releases:
  description: What uses each release.
  type: list
  elements: dict
  returned: success
  contains:
    release:
      description: Path of the release below the software root.
      type: str
      sample: houdini/19.5.805
    in_use:
      description: Whether a process uses the release, or RV(unknown) is not empty.
      type: bool
      sample: true
    shown:
      description: Whether an overlay that is mounted in any mount namespace shows the release.
      type: bool
      sample: true
    views:
      description: The generations that show the release.
      type: list
      elements: dict
      contains:
        view:
          description: Name of the view.
          type: str
          sample: software
        generation:
          description: ID of the generation.
          type: str
          sample: 0123456789abcdef
        state:
          description: V(current), V(previous), or V(other) for another generation that is on the host.
          type: str
          sample: current
        mounted:
          description: Whether it is mounted in any mount namespace.
          type: bool
          sample: true
        mountpoints:
          description: Where it is mounted.
          type: list
          elements: str
          sample: [/software]
        at:
          description: Where the release appears in the view.
          type: list
          elements: str
          sample: [/houdini/19.5.805]
    data_images:
      description: The data images of the release on the host.
      type: list
      elements: dict
      sample: [{"id": "9f2c5e0c1f0a6c0e", "kind": "trace", "bytes_on_disk": 165675008}]
    processes:
      description: The processes that use the release, once for each generation.
      type: list
      elements: dict
      contains:
        pid:
          description: Process ID.
          type: int
          sample: 4711
        name:
          description: Name of the command.
          type: str
          sample: hython
        view:
          description: Name of the view; none for a file on the software root itself.
          type: str
          sample: software
        generation:
          description: ID of the generation; none for a file on the software root itself.
          type: str
          sample: 0123456789abcdef
        how:
          description: V(mapped), V(open), V(program), V(root), V(working directory), or V(unknown).
          type: list
          elements: str
          sample: [mapped, open]
        paths:
          description: The first 10 paths, relative to the release.
          type: list
          elements: str
          sample: [bin/hython-bin]
        path_count:
          description: Number of paths.
          type: int
          sample: 1
paths:
  description: What is at each of O(paths).
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: The path as given.
      type: str
      sample: /software/houdini/19.5.805/bin/hython
    release:
      description: The release; none if the path is in no release that a view on the host shows.
      type: str
      sample: houdini/19.5.805
    root:
      description: The software root, as the manifest names it.
      type: str
      sample: /net/software
    source:
      description: Path relative to the software root. For a further name of a file with several names, this is its first name.
      type: str
      sample: houdini/19.5.805/bin/hython
    places:
      description:
        - Where it appears, with C(view), C(generation), C(state), the C(path) in the view, and its C(paths) at each mountpoint.
        - The layers that are images are not asked whether patterns or conflicts hide it.
      type: list
      elements: dict
      sample:
        - view: software
          generation: 0123456789abcdef
          state: current
          path: /houdini/19.5.805/bin/hython
          paths: [/software/houdini/19.5.805/bin/hython]
    processes:
      description: The processes that use the path or what is inside of it, as in C(processes) of a release.
      type: list
      elements: dict
      sample: [{"pid": 4711, "name": "hython", "how": ["program"]}]
generations:
  description: All generations on the host.
  type: list
  elements: dict
  returned: success
  sample: [{"view": "software", "generation": "0123456789abcdef", "state": "current", "mounted": true}]
unknown:
  description: Sentences about generations and processes of which it is unknown which releases they show or use.
  type: list
  elements: str
  returned: success
  sample: []
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path, root_identity
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement import release_use
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.release_roots import (
    ReleaseRoot,
    named_roots,
)


def main() -> None:
    runner.run(
        {
            "releases": {"type": "list", "elements": "str"},
            "paths": {"type": "list", "elements": "path", "default": []},
            "processes": {"type": "bool", "default": True},
            "roots": {"type": "list", "elements": "path", "default": []},
            "root_name": {"type": "str"},
            "named_roots": {"type": "dict", "default": {}},
            "state_dirs": {"type": "list", "elements": "path", "default": [runner.DEFAULT_STATE_DIR]},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Observe the host once, and answer for each release and path."""
    for option in ("paths", "roots", "state_dirs"):
        for path in params[option]:
            runner.check_absolute(path, option)
    releases = [_checked(release) for release in params["releases"] or ()]
    roots = _named_roots(params["named_roots"])
    identities = [root.identity for root in roots]
    if params["root_name"]:
        identities.append(root_identity(params["root_name"]))
    roots += [ReleaseRoot(path, path) for path in params["roots"]]
    use = release_use.observe(params["state_dirs"], roots, identities, params["processes"], context.progress)
    if params["releases"] is None and not params["paths"]:
        releases = use.releases()
    return runner.Outcome(
        {
            "releases": [use.of_release(release) for release in dict.fromkeys(releases)],
            "paths": [use.of_path(path) for path in params["paths"]],
            "generations": [one.as_dict() for one in use.generations.all],
            "unknown": use.unknown,
        }
    )


def _named_roots(given: dict[Any, Any]) -> list[ReleaseRoot]:
    """Return the roots that have names. Raises OverlayError if a name or a path is wrong."""
    for name, path in given.items():
        if not isinstance(path, str):
            raise OverlayError(f"named_roots must have the path of root {name!r}, not {path!r}")
        runner.check_absolute(path, "named_roots")
    return list(named_roots((str(name), path, "") for name, path in given.items()))


def _checked(release: str) -> str:
    """Return the path of a release in its normal form. Raises OverlayError if it is not a relative path."""
    path = os.fsdecode(relative_path(os.fsencode(release), "release"))
    if not path or release.startswith("/"):
        raise OverlayError(
            f"release {release!r} is not a path below the software root: give one such as houdini/20.5.410"
        )
    return path


if __name__ == "__main__":
    main()
