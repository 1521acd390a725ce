#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: data_image
short_description: Build data images, which hold the content of chosen files of a release
version_added: 0.1.0
description:
  - Builds a data image of a release and publishes it in an image store. A data image is one compressed EROFS image with the content of
    chosen files, at their paths on the software root.
  - A view that has the image as a data layer before the software root reads these files from the image, and all others from the file
    server.
  - The files are read from the software root by several processes. Each is compared with the manifest - size, mtime, and SHA-256 if the
    manifest has it. A file that is missing, or differs, is left out and reported.
  - An image that is already published is not built again. The module compares the manifest, the selected files and the compression, and
    reads nothing from the release.
  - The same files and the same version of C(mkfs.erofs) give the same bytes on every host.
  - Run the module on one host only, with O(image_store) on a share that all render nodes read.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  root:
    description: Path of the software root, the directory below which all releases are. It is usually an NFS mount.
    type: path
    required: true
  store:
    description: Directory of the manifests and traces, as in M(renderfarm.overlay.release_manifest) and C(access_trace).
    type: path
    required: true
  image_store:
    description:
      - Directory for images. It may be the same as that of metadata images. The images of release V(houdini/20.5.410) are in
        C(.data/houdini/20.5.410) below it.
      - It must exist, unless it is directly inside O(store).
    type: path
    required: true
  release:
    description: Path of the release below O(root). It must have a manifest in O(store).
    type: str
    required: true
  state:
    description:
      - V(present) makes sure that the image of this selection is the current one of its kind.
      - V(absent) removes all data images of the release from O(image_store), of every kind. Copies on render nodes stay.
    type: str
    choices: [present, absent]
    default: present
  select:
    description:
      - Which files the image has. A release can have one current image of each kind.
      - V(trace) selects the files in the trace of the release.
      - V(globs) selects the files that match O(globs), and V(list) those that O(files) names.
      - V(everything) selects all files.
      - Empty files, directories and symbolic links need no content, so they are never in an image.
    type: str
    choices: [trace, globs, list, everything]
    default: trace
  globs:
    description:
      - Patterns of paths relative to the release. C(*), C(?) and C([...]) match within one name. C(**) matches any number of directories.
      - A pattern that matches a directory selects everything in it.
    type: list
    elements: str
  files:
    description:
      - Paths of files, relative to the release.
      - The task fails if the release does not have one of them, or if one is a directory or symbolic link.
    type: list
    elements: str
  budget:
    description:
      - The most bytes of content in the image, before compression.
      - The hottest files come first - those that most starts opened, then those that were opened most often, then in order of their paths.
        A file that does not fit is left out, and smaller files after it may still fit.
      - Without a trace, files are taken in order of their paths.
    type: int
  compression:
    description:
      - V(lz4hc) can be read by every kernel with EROFS, and is fast to read.
      - V(zstd) makes smaller images. It needs erofs-utils 1.8 on this host, and Linux 6.10 on this host and all render nodes. The module
        tries both on this host before it reads the release.
      - V(none) stores the content as it is.
    type: str
    choices: [lz4hc, zstd, none]
    default: lz4hc
  bandwidth:
    description: The most bytes that are read from O(root) in a second. By default there is no limit.
    type: int
  jobs:
    description: How many files are read at the same time.
    type: int
    default: 4
  keep:
    description:
      - How many images of the release stay in O(image_store) although they are no longer current for any kind. The newest ones stay, so
        that render nodes with an older lock can still install theirs.
      - An image that is in use on this host stays in any case.
    type: int
    default: 2
  staging:
    description:
      - Directory on a local disk of this host for the files of an image while it is built. It needs room for the selected files and the
        image. It is created with mode V(0700), and only root may be able to enter it.
      - An interrupted run leaves the files that it has read, and the next run continues from there. A finished run leaves nothing.
    type: path
    default: /var/lib/renderfarm-overlay/data-staging
notes:
  - The host needs C(mkfs.erofs) (erofs-utils). Versions before 1.8 cannot store names of 255 bytes; such files are left out.
  - An image holds content without the rights of the files. So a file that some users may not read, because of its mode, its ACL, or a
    directory above it, is left out unless O(image_store) belongs to root and has mode V(0700). Such an image can be read by root only.
  - Files with equal content are stored once. So are hard links.
seealso:
  - module: renderfarm.overlay.release_manifest
  - module: renderfarm.overlay.overlay_mount
"""

EXAMPLES = r"""
- name: Build a data image of what starts of the release open
  renderfarm.overlay.data_image:
    root: /net/software
    store: /net/manifests
    image_store: /net/manifests/images
    release: houdini/20.5.410
  run_once: true

- name: Build an image of at most 2 GB, and read at most 50 MB in a second
  renderfarm.overlay.data_image:
    root: /net/software
    store: /net/manifests
    image_store: /net/manifests/images
    release: houdini/20.5.410
    budget: 2000000000
    bandwidth: 50000000
  run_once: true

- name: Build an image of chosen directories
  renderfarm.overlay.data_image:
    root: /net/software
    store: /net/manifests
    image_store: /net/manifests/images
    release: houdini/20.5.410
    select: globs
    globs:
      - bin
      - python/lib/**/*.so
  run_once: true

- name: Build an image of everything, for render nodes without a file server
  renderfarm.overlay.data_image:
    root: /net/software
    store: /net/manifests
    image_store: /net/manifests/images
    release: houdini/20.5.410
    select: everything
    compression: zstd
  run_once: true

- name: Remove the data images of a deleted release
  renderfarm.overlay.data_image:
    root: /net/software
    store: /net/manifests
    image_store: /net/manifests/images
    release: houdini/19.0.383
    state: absent
"""

RETURN = r"""
actions:
  description: The changes that were made, or in check mode would be made.
  type: list
  elements: str
  returned: success
  sample: ["build data image trace of release houdini/20.5.410 (776 files, 417333248 bytes)"]
image:
  description: Path of the image. None if no file is selected, if the image would be built in check mode, and with O(state=absent).
  type: str
  returned: success
  sample: /net/manifests/images/.data/houdini/20.5.410/9f2c5e0c1f0a6c0e.erofs
digest:
  description: SHA-256 of the image. None if there is no image.
  type: str
  returned: success
  sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
files:
  description: Number of files in the image. A file with several names counts once. In check mode, the number of selected files.
  type: int
  returned: success
  sample: 776
bytes:
  description: Bytes of content in the image, before compression.
  type: int
  returned: success
  sample: 417333248
bytes_on_disk:
  description: Size of the image in bytes. None if there is no image.
  type: int
  returned: success
  sample: 165675008
complete:
  description: Whether the image has every file of the release that has content.
  type: bool
  returned: success
  sample: false
left_out:
  description:
    - The selected files that are not in the image, by reason. Each reason has the number of files, and the paths of the first 10.
    - V(private) files are kept from some users by their mode or ACL, or by a directory above them. V(unstorable) files have a name or mtime
      that C(mkfs.erofs) cannot store. V(budget) files do not fit into O(budget). V(unknown) paths are in the trace and not in the
      manifest.
    - V(missing), V(changed) and V(unreadable) files were found while the release was read, so they are reported by the run that builds the
      image. A warning names them.
  type: dict
  returned: success
  sample: {"private": {"count": 1, "paths": ["licenses/site.lic"]}}
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import building
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path

#: The lowest and highest value of options that are numbers.
RANGES = {"budget": (0, 1 << 62), "bandwidth": (1, 1 << 40), "jobs": (1, 64), "keep": (0, 1000)}


def main() -> None:
    runner.run(
        {
            "root": {"type": "path", "required": True},
            "store": {"type": "path", "required": True},
            "image_store": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "select": {"type": "str", "choices": ["trace", "globs", "list", "everything"], "default": "trace"},
            "globs": {"type": "list", "elements": "str"},
            "files": {"type": "list", "elements": "str"},
            "budget": {"type": "int"},
            "compression": {"type": "str", "choices": ["lz4hc", "zstd", "none"], "default": "lz4hc"},
            "bandwidth": {"type": "int"},
            "jobs": {"type": "int", "default": 4},
            "keep": {"type": "int", "default": 2},
            "staging": {"type": "path", "default": "/var/lib/renderfarm-overlay/data-staging"},
        },
        work,
        required_if=[("select", "globs", ["globs"]), ("select", "list", ["files"])],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Observe the images of the release, change them, and return the outcome."""
    request = request_of(params)
    context.note.write(f"release {request.release}")
    wanted = params["state"] == "present"
    state = building.observe(request, context.progress) if wanted else building.observe_absent(request)
    context.carry_out(state.plan, building.handlers(state, context.progress))
    return runner.Outcome(state.values(), state.plan, state.diff(state.before), state.diff_after(), state.warnings())


def request_of(params: dict[str, Any]) -> building.ImageRequest:
    """Return what the options ask for. Raises OverlayError naming an option that is out of range, or that is for another ``select``."""
    for option in ("root", "store", "image_store", "staging"):
        runner.check_absolute(params[option], option)
    for option, (low, high) in RANGES.items():
        if params[option] is not None and not low <= params[option] <= high:
            raise OverlayError(f"{option} has to be from {low} to {high}, and is {params[option]}")
    for option, select in (("globs", "globs"), ("files", "list")):
        if params[option] is not None and params["select"] != select:
            raise OverlayError(f"{option} is for select={select}: remove it, or choose select={select}")
    release = os.fsdecode(relative_path(os.fsencode(params["release"]), "release"))
    if not release:
        raise OverlayError("release is empty: give the path of a release below 'root'")
    chosen = params["globs"] if params["select"] == "globs" else params["files"] or []
    return building.ImageRequest(
        root=params["root"],
        store=params["store"],
        image_store=params["image_store"],
        release=release,
        kind=params["select"],
        chosen=tuple(os.fsencode(one) for one in chosen),
        compression=params["compression"],
        staging=params["staging"],
        budget=params["budget"],
        bandwidth=params["bandwidth"],
        jobs=params["jobs"],
        keep=params["keep"],
    )


if __name__ == "__main__":
    main()
