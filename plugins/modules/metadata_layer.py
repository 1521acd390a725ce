#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: metadata_layer
short_description: Build or install the metadata layer of a view
version_added: 0.1.0
description:
  - Builds the layer of a view from the manifests of its releases. The software root is not read.
  - The layer holds directories, symbolic links, and an empty file for each file of a release. An empty file has the size, mode, owner and
    mtime of the original, and tells the kernel where in the data layer the content is. M(renderfarm.overlay.overlay_mount) mounts the
    layer over the data layer.
  - Each build is a generation. Its name is a digest of its input, so the same declaration gives the same name on every host and in every
    format. A generation that exists is not built again.
  - A generation is built aside, synced, and then renamed. An interrupted run never leaves a partial generation visible.
  - O(image) installs a generation that another host has built as an image. O(generation) makes an earlier generation the current one again.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.state_dir
options:
  name:
    description: Name of the view, made of letters, digits, V(.), V(_) and V(-). It starts with a letter or digit.
    type: str
    required: true
  releases:
    description:
      - The releases that the view shows, and where each appears.
      - Releases at the same place, or at a place inside another one, are merged. O(on_conflict) decides which file is shown if several
        releases have one at the same path.
      - All releases must belong to one software root, the C(root_name) of M(renderfarm.overlay.release_manifest). The kernel cannot tell
        two roots apart, and would read a path of one root from the other.
      - Not allowed with O(image) and O(generation), which determine the releases.
    type: list
    elements: dict
    default: []
    suboptions:
      manifest:
        description:
          - Path of the manifest of the release, as M(renderfarm.overlay.release_manifest) returns it. Its end is the path of the release.
          - Either this or O(releases[].release) is required.
        type: path
      release:
        description: Path of the release below the software root, such as V(houdini/20.5.410). Its manifest is read from O(store).
        type: str
      at:
        description:
          - Where the release appears, relative to the root of the view. V(/) is the root of the view.
          - Defaults to the path of the release below the software root.
        type: str
      source:
        description:
          - Where the content of the release is, relative to the root of the data layer that will be mounted.
          - Defaults to the path of the release below the software root.
        type: str
      include:
        description:
          - Patterns of the paths that the view shows. Directories above a match, and everything in a directory that matches, are shown too.
          - By default everything is shown. If no path matches, nothing of the release is shown.
          - At most 256 patterns, each with at most 8 V(**).
          - Patterns are relative to the release. V(*), V(?) and V([...]) match characters within a name, V(**) matches any number of
            directories, including none. There is no escape character; V([*]) matches an asterisk.
        type: list
        elements: str
        default: []
      exclude:
        description:
          - Patterns of the paths that the view does not show, with everything in them. The syntax is that of O(releases[].include). If both
            match, the path is not shown.
          - V(doc) and V(doc/**) exclude the directory C(doc). V(doc/*) excludes only its content.
        type: list
        elements: str
        default: []
  on_conflict:
    description:
      - What to do if releases of the view have different files at one path.
      - V(error) fails before anything is written, and names the conflicts.
      - V(first) shows the file of the release that comes first in O(releases), V(last) that of the last one. A link of O(links) is always
        shown. A file or link that is shown hides a directory at its path with everything in it.
      - Directories do not conflict. They are merged, and have the owner, mode and mtime of the first or last release. With V(error), these
        are of the release with the outermost place, or else of the one whose path below the software root sorts first.
      - Symbolic links with the same target do not conflict. Neither do files of the same size and mode if the manifests record the same
        SHA-256 for them. Empty files need no SHA-256.
    type: str
    choices: [error, first, last]
    default: error
  links:
    description:
      - Symbolic links that the view shows besides those of the releases.
      - Missing directories above them are created. Their mtime is the latest mtime of the releases themselves.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path of the link, relative to the root of the view.
        type: str
        required: true
      target:
        description: Target of the link, 1 to 4095 bytes. It may be absolute or relative to the link, and need not exist.
        type: str
        required: true
  store:
    description: Directory with the manifests of the releases that O(releases[].release) names.
    type: path
  state:
    description:
      - V(present) makes sure that the generation exists and is the current one.
      - V(absent) removes all generations of the view. If one of them is in use, the module fails with the reasons and removes nothing.
        M(renderfarm.overlay.overlay_prune) describes what counts as in use.
    type: str
    choices: [present, absent]
    default: present
  format:
    description:
      - Format of the layer. It has no effect on what the view shows.
      - V(directory) is a directory tree with overlayfs xattrs.
      - V(erofs) is one EROFS image. It is built by C(mkcomposefs) (composefs), or by C(mkfs.erofs) (erofs-utils 1.8 or later) if that is
        missing. It cannot hold a layer with O(strategy=redirect).
      - V(auto) keeps the format in which the generation exists. A new generation is an image if this host can build and mount images, else
        a directory. C(format_reason) tells why.
    type: str
    choices: [auto, directory, erofs]
    default: auto
  image_store:
    description:
      - Directory in which to publish the view as an image for other hosts. The image is C(GENERATION.erofs), with a small record beside it.
      - With this option, O(state=present) only makes sure that the image is in this directory. O(state_dir) is not used.
      - The directory has to exist, because a missing one is usually a share that is not mounted. It is created only if it is directly
        inside O(store).
    type: path
  image:
    description:
      - Path of an image in an image store. The module copies it to this host, checks it against O(image_digest), and makes it the current
        generation.
      - If the kernel of this host cannot mount the image, the module fails before it copies anything.
      - An interrupted copy continues where it ended. A generation that exists on this host is not copied again, and the image need not
        exist any more.
    type: path
  image_digest:
    description: Digest that the image must have, as returned by the task that built it.
    type: str
  require_verity:
    description:
      - Fail unless the layer is an image with fs-verity. The kernel then compares each block that it reads with a hash, so a bit that rots
        on the disk gives an error (C(EIO)) and never a wrong byte.
      - An image that is installed gets fs-verity wherever its file system has it, also without this option. These are btrfs, and ext4 and
        f2fs with the feature C(verity) (C(tune2fs -O verity)).
      - It is for layers that are installed with O(image), or that O(generation) makes current. It cannot be used for a layer that is built
        on this host.
    type: bool
    default: false
  generation:
    description:
      - Makes a generation on this host the current one and builds nothing. This is the name of a generation, or V(previous) for the one
        that was current before.
    type: str
  strategy:
    description:
      - How the layer will be mounted. Give M(renderfarm.overlay.overlay_mount) the same C(strategy). It has no effect on the name of the
        generation.
      - V(data_only) builds a layer for a mount with data-only lower layers.
      - V(redirect) builds a layer for kernels without them (before Linux 6.5), mounted over the software root as an ordinary lower layer.
        It requires the format V(directory) and O(xattr_namespace=trusted).
      - V(auto) tries what the kernel of this host can do. It is V(redirect) only if the kernel has no data-only layers, and always
        V(data_only) with O(image_store) or O(xattr_namespace=user). With O(generation), it only chooses between several layers of that
        generation.
    type: str
    choices: [auto, data_only, redirect]
    default: auto
  xattr_namespace:
    description:
      - Namespace of the overlay xattrs.
      - V(user) is for overlays that are mounted with C(userxattr), for example in a user namespace without root.
    type: str
    choices: [trusted, user]
    default: trusted
  owner:
    description:
      - User name or uid that owns everything in the view. By default, the owners are those in the manifests.
      - Users that O(owner_map) names are mapped instead.
    type: str
  group:
    description:
      - Group name or gid of everything in the view. By default, the groups are those in the manifests.
      - Groups that O(group_map) names are mapped instead.
    type: str
  owner_map:
    description:
      - Maps owners in the manifests to owners in the view. Keys and values are user names or uids.
      - Names are looked up on the managed node. Directories that no manifest describes belong to uid 0 before the mapping.
      - This option, but not O(owner), also maps the users that ACLs name. If several users become one, that user gets the rights of all of
        them.
    type: dict
    default: {}
  group_map:
    description: Maps groups in the manifests to groups in the view, as O(owner_map) maps owners.
    type: dict
    default: {}
  mode:
    description:
      - Changes the modes of all files and directories, in the symbolic notation of C(chmod), for example V(go-w,a+rX).
      - Each clause starts with one or more of V(u), V(g), V(o) and V(a).
      - For a file with an ACL, V(g) is the mask, as with C(chmod).
    type: str
  keep_setid:
    description:
      - Whether files keep their set-user-ID and set-group-ID bits and capabilities if their owner or group is changed by O(owner),
        O(group), O(owner_map) or O(group_map).
      - By default they lose them, as with C(chown), so that a program of a publisher never runs as another user. O(mode) can set such bits
        again. C(stripped_paths) and a warning list the files.
    type: bool
    default: false
notes:
  - A view never gives anybody more access than its releases. Both formats carry POSIX ACLs. docs/architecture.md describes what happens
    to each attribute that decides access. Images need a kernel whose EROFS supports POSIX ACLs.
  - Releases that are merged or have patterns are read twice. Memory grows with the number of their directories, of their hard-linked
    files, and of merged releases, but not with the number of files.
  - If the first name of a hard-linked file is not shown, the next one that is shown becomes the file. Its link count is the number of
    names in the view.
  - The previous generation stays on disk. Processes that run from it are not disturbed.
  - If the xattrs do not fit into the inodes of a file system, as on ext4 with inodes of 256 bytes, each file uses a block of its own. The
    module warns, and C(bytes_on_disk) tells the size. Use inodes of 512 bytes (C(mkfs.ext4 -I 512)), XFS or tmpfs.
seealso:
  - module: renderfarm.overlay.release_manifest
  - module: renderfarm.overlay.overlay_mount
"""

EXAMPLES = r"""
- name: Build the layer of a view with two releases
  renderfarm.overlay.metadata_layer:
    name: software
    releases:
      - manifest: /net/manifests/houdini/20.5.410.dump.gz
      - manifest: /net/manifests/usd/25.05.dump.gz
  register: layer

- name: Build the same layer from the paths of the releases
  renderfarm.overlay.metadata_layer:
    name: software
    store: /net/manifests
    releases:
      - release: houdini/20.5.410
      - release: usd/25.05

- name: Show a release at another path, owned by root
  renderfarm.overlay.metadata_layer:
    name: houdini
    releases:
      - manifest: /net/manifests/houdini/20.5.410.dump.gz
        at: houdini/current
    owner: root
    group: root

- name: Build the image of a view once, on a host near the file server
  renderfarm.overlay.metadata_layer:
    name: software
    store: /net/manifests
    releases:
      - release: houdini/20.5.410
    image_store: /net/images
  register: built
  run_once: true

- name: Install the image on every host
  renderfarm.overlay.metadata_layer:
    name: software
    image: "{{ built.image }}"
    image_digest: "{{ built.image_digest }}"

- name: Go back to the generation that was current before
  renderfarm.overlay.metadata_layer:
    name: software
    generation: previous

- name: Merge packages at the root of the view, as a Spack view does
  renderfarm.overlay.metadata_layer:
    name: tools
    store: /net/manifests
    releases:
      - release: python/3.11.9
        at: /
      - release: openexr/3.3.2
        at: /
        exclude: [share/doc, "**/*.a"]
      - release: usd/25.05
        at: /
        include: [bin, "lib/**/*.so*"]
    on_conflict: first
    mode: go-w,a+rX

- name: Add a link houdini/current, and map the files of one user to root
  renderfarm.overlay.metadata_layer:
    name: houdini
    store: /net/manifests
    releases:
      - release: houdini/20.0.896
      - release: houdini/20.5.410
    links:
      - path: houdini/current
        target: 20.5.410
    owner_map:
      1017: root

- name: Remove all layers of a view
  renderfarm.overlay.metadata_layer:
    name: software
    state: absent
"""

RETURN = r"""
actions:
  description: What was done. In check mode, what would be done.
  type: list
  elements: str
  returned: success
  sample: [build generation 4ff24b6d8e0c11a7 (erofs), make generation 4ff24b6d8e0c11a7 current]
generation:
  description: Name of the declared generation; null with O(state=absent).
  type: str
  returned: success
  sample: 4ff24b6d8e0c11a7
layer:
  description: Path of the layer, a directory or an image. Give it to M(renderfarm.overlay.overlay_mount) as C(lower).
  type: str
  returned: when state is present and O(image_store) is not given
  sample: /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7-erofs/layer.erofs
format:
  description: Format of the layer.
  type: str
  returned: when state is present
  sample: erofs
format_reason:
  description: Why the layer has this format.
  type: str
  returned: when state is present
  sample: this host can mount images, and /usr/bin/mkcomposefs makes them
image:
  description: Path of the image in the image store.
  type: str
  returned: when O(image_store) or O(image) is given
  sample: /net/images/4ff24b6d8e0c11a7.erofs
image_digest:
  description: Digest of the image. It is null for a directory, and in check mode for an image that does not exist yet.
  type: str
  returned: when state is present
  sample: sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
strategy:
  description: Strategy that the layer is built for, V(data_only) or V(redirect).
  type: str
  returned: when state is present
  sample: data_only
entries:
  description: Number of entries of each kind. C(hardlinks) counts the additional names of files with several names.
  type: dict
  returned: when the generation exists
  sample: {"directories": 1630, "files": 40121, "symlinks": 702, "hardlinks": 12}
bytes:
  description: Size of the content of all files in the view, in bytes.
  type: int
  returned: when the generation exists
  sample: 6843553024
bytes_on_disk:
  description: Disk space that the layer uses on this host besides inodes, in bytes.
  type: int
  returned: when the generation exists
  sample: 7315456
privileged:
  description: Number of files with set-ID bits or capabilities in the view. These have no effect if the view is mounted C(nosuid).
  type: int
  returned: when the generation exists
  sample: 2
privileged_paths:
  description: The first 10 of these files.
  type: list
  elements: str
  returned: when the generation exists
  sample: [/houdini/20.5.410/bin/sesinetd, /houdini/20.5.410/bin/hserver]
stripped:
  description: Number of files that lose set-ID bits or capabilities because their owner or group is changed (O(keep_setid)).
  type: int
  returned: when the generation exists
  sample: 2
stripped_paths:
  description: The first 10 of these files.
  type: list
  elements: str
  returned: when the generation exists
  sample: [/houdini/20.5.410/bin/sesinetd, /houdini/20.5.410/bin/hserver]
narrowed:
  description: Number of files and directories whose ACL the file system of the layer cannot store. Their mode never gives more access.
  type: int
  returned: when the generation exists
  sample: 2
narrowed_paths:
  description: The first 10 of these files and directories.
  type: list
  elements: str
  returned: when the generation exists
  sample: [/houdini/20.5.410/bin/sesinetd, /houdini/20.5.410/bin/hserver]
previous:
  description: Name of the generation that was current before this one; null if there was none.
  type: str
  returned: when state is present and O(image_store) is not given
  sample: 1b90e5a07c3d4e21
conflicts:
  description:
    - The first 100 conflicts between releases that O(on_conflict) decides, in the order of their paths.
    - In check mode, the manifests of merged releases are read to find them.
  type: list
  elements: dict
  returned: when state is present
  contains:
    path:
      description: Path within the view. Unprintable characters are escaped.
      type: str
      sample: /share/doc/README
    kept:
      description: Path below the software root of the release whose entry is shown; C(link -> TARGET) for a link of the view.
      type: str
      sample: python/3.11.9
    hidden:
      description: Path below the software root of the release whose entry is not shown.
      type: str
      sample: usd/25.05
conflict_count:
  description: Number of all conflicts.
  type: int
  returned: when state is present
  sample: 1
releases:
  description: The releases of the view, in the order of their places.
  type: list
  elements: dict
  returned: when state is present
  contains:
    release:
      description: Path of the release below the software root.
      type: str
      sample: houdini/20.5.410
    digest:
      description: Digest of its manifest.
      type: str
      sample: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
    root:
      description: The software root of the release.
      type: str
      sample: /net/software
    at:
      description: Where the release appears in the view; empty for the root.
      type: str
      sample: houdini/20.5.410
    source:
      description: Where its content is in the data layer.
      type: str
      sample: houdini/20.5.410
    include:
      description: Patterns of the paths that are shown, if any are given.
      type: list
      elements: str
      sample: [bin, lib/**/*.so*]
    exclude:
      description: Patterns of the paths that are not shown, if any are given.
      type: list
      elements: str
      sample: [share/doc]
"""

from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.format_support import SUPPORT
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    image_store,
    layer_choice,
    layer_parameters,
    layer_plan,
    layer_sources,
    removal,
    usage,
    view_state,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths


def main() -> None:
    runner.run(
        {
            **layer_parameters.OPTIONS,
            "name": {"type": "str", "required": True},
            "state_dir": runner.STATE_DIR,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        work,
        mutually_exclusive=[("image", "generation", "image_store")],
        required_together=[("image", "image_digest")],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    for option in ("state_dir", "image_store", "image"):
        if params[option] is not None:
            runner.check_absolute(params[option], option)
    for option in ("image", "generation"):
        if params[option] is not None and params["releases"]:
            raise OverlayError(f"'{option}' already determines which releases the view shows: leave out 'releases'")
    paths = ViewPaths.of(params["state_dir"], params["name"])
    if params["state"] == "absent":
        return _remove(paths, context)
    if params["image_store"] is not None:
        return _publish(params, context)
    return _provide(paths, params, context)


def _provide(paths: ViewPaths, params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Make sure that the declared generation is on this host and is the current one."""
    state = view_state.observe(paths)
    source = layer_sources.from_parameters(params, paths, state, context.timeout, context.progress)
    before = view_state.content_of_current(paths, state)
    plan = layer_plan.plan_layer(source.directory, source.action, state)
    # Conflicts are refused before anything is written, and in check mode as well.
    composition = source.composed_for(plan)
    warnings: list[str] = []
    if plan and not context.check_mode:
        with view_state.locked(paths, context.timeout, context.progress):
            # Another run may have done it while this one waited.
            plan = layer_plan.plan_layer(source.directory, source.action, view_state.observe(paths))
            context.carry_out(plan, source.handlers(paths, context.progress, warnings))
            state = view_state.observe(paths)
    values = source.values_on_host(paths, state, composition)
    return runner.Outcome(values, plan, before, source.content(), warnings)


def _publish(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Make sure that the image of the declared generation is in the image store."""
    store = params["image_store"]
    spec = layer_choice.as_image(layer_parameters.layer_spec(params))
    image_store.check_store(store, params["store"])
    image = image_store.image_path(store, spec.generation)
    found = image_store.find(image)
    builder = None if found else SUPPORT[spec.format].find_builder()
    source = layer_sources.from_releases(spec, builder, "image stores hold images", context.progress)
    plan = () if found else (layer_plan.PublishImage(image),)
    composition = source.composed_for(plan)
    if builder and composition and not context.check_mode:
        found = image_store.publish(store, spec, builder, composition, context.progress)
    values = {**source.values(composition, found), "image": image}
    warnings = layer_sources.rights_warnings(found.rights) if found and plan else []
    return runner.Outcome(values, plan, {} if plan else source.content(), source.content(), warnings)


def _remove(paths: ViewPaths, context: runner.Context) -> runner.Outcome:
    state = view_state.observe(paths)
    before = view_state.content_of_current(paths, state)
    # A real run checks the uses when it has the lock: what a build that it waited for has made may be mounted by then.
    uses = usage.lasting(paths, context.progress) if state.exists and context.check_mode else {}
    plan = layer_plan.plan_view_removal(paths.name, state, uses)
    if plan and not context.check_mode:
        with view_state.locked(paths, context.timeout, context.progress):
            context.carry_out(plan, {layer_plan.RemoveView: lambda _: removal.remove_view(paths, context.progress)})
    return runner.Outcome({"generation": None}, plan, before, {})


if __name__ == "__main__":
    main()
