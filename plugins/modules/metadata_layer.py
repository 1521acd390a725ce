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
  - Builds the layer that shows a view's releases, from their manifests alone. The software root is not touched.
  - The layer has the directories, the symbolic links, and for each file an empty one of the right size, mode, owner and times that says
    where in the data layer its content is. M(renderfarm.overlay.overlay_mount) puts the two together.
  - Each build is a generation, named by a digest of what it is made of, so the same declaration has the same name on every host, in
    whatever format. A generation that is there already is not built again.
  - A generation is built aside, written to the disk and then renamed, so one that has its name is whole.
  - Instead of being built, a generation can be installed from an image that another host has built (O(image)), or one that is there can
    be made the current one again (O(generation)).
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.state_dir
options:
  name:
    description: Name of the view; letters, digits, V(.), V(_) and V(-).
    type: str
    required: true
  releases:
    description:
      - The releases that the view shows, each at its place.
      - Releases at the same place, or at places inside of each other, are merged; O(on_conflict) says what becomes of files that several
        of them have at one path.
      - All of them are of one software root, as their manifests have it (C(root_name) of M(renderfarm.overlay.release_manifest)). In a view
        of several roots, the kernel would read for one what another has at the same path.
      - Not with O(image) and O(generation), which say it themselves.
    type: list
    elements: dict
    default: []
    suboptions:
      manifest:
        description:
          - Path of the release's manifest, as M(renderfarm.overlay.release_manifest) returns it. It ends in the path of the release, as in
            the store.
          - Either this or O(releases[].release) is required.
        type: path
      release:
        description: Path of the release below the software root, V(houdini/20.5.410). Its manifest is that in O(store).
        type: str
      at:
        description:
          - Where the release appears, relative to the root of the view.
          - By default it is the release's path below the software root. V(/) is the root of the view itself.
        type: str
      source:
        description:
          - Where the release's data is, relative to the root of the data layer that will be mounted.
          - By default it is the release's path below the software root.
        type: str
      include:
        description:
          - Patterns of what of the release the view shows; all of it by default. What is in a directory that matches is shown as well, and
            so are the directories above.
          - There are 256 at most, each with V(**) 8 times at most.
          - Patterns are relative to the release. V(*), V(?) and V([...]) stand for characters within a name, V(**) for any number of
            directories, none included. There is no escape character; V([*]) is an asterisk.
          - When nothing matches, the view shows nothing of the release.
        type: list
        elements: str
        default: []
      exclude:
        description:
          - Patterns of what of the release the view does not show, together with all that is in it; like O(releases[].include), over which
            it wins.
          - V(doc) and V(doc/**) leave out the directory C(doc), and V(doc/*) only what is in it.
        type: list
        elements: str
        default: []
  on_conflict:
    description:
      - What to do when releases of the view have different things at one path.
      - V(error) fails before anything is written, and names the conflicts.
      - V(first) shows what the release has that comes first in O(releases), V(last) what the last one has. Links of O(links) are always
        shown. A file or link that is shown hides a directory and all that is in it.
      - Directories are no conflict. They are merged and have the owner, mode and time of the release that comes first or last. With
        V(error) that is the one whose place is the outermost, or whose path below the software root sorts first.
      - Symbolic links with the same target are none either, nor files of the same size and mode whose SHA-256 is recorded in the
        manifests and the same. Files without any content need no SHA-256.
    type: str
    choices: [error, first, last]
    default: error
  links:
    description:
      - Symbolic links in the view besides those of the releases.
      - Directories above them are made as needed. Their time is the latest one of the releases themselves.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the link is, relative to the root of the view.
        type: str
        required: true
      target:
        description: Where it leads, 1 to 4095 bytes. It is not looked at, and may be relative to the link or absolute.
        type: str
        required: true
  store:
    description: Folder with the manifests of releases that are given by O(releases[].release).
    type: path
  state:
    description:
      - V(present) makes sure that the generation is there and is the current one.
      - V(absent) removes all of the view's generations. While one of them is in use it fails, names the users, and removes nothing. In use
        is what M(renderfarm.overlay.overlay_prune) keeps as such, for example what is mounted in the mount namespace of a container, or
        what a process has kept since a switch.
    type: str
    choices: [present, absent]
    default: present
  format:
    description:
      - V(directory) is a directory tree with overlayfs attributes.
      - V(erofs) is the same as one EROFS image. It is made by C(mkcomposefs) (composefs) or, where there is none, by C(mkfs.erofs)
        (erofs-utils 1.8 or later). Layers of O(strategy=redirect) cannot be images.
      - V(auto) keeps the form in which the generation is there. A new one is an image where this host has a program to make it and a
        kernel to mount it, and a directory otherwise. C(format_reason) tells why.
    type: str
    choices: [auto, directory, erofs]
    default: auto
  image_store:
    description:
      - Folder into which the view is built as an image, C(GENERATION.erofs) with a small record beside it, for other hosts to install.
      - With it, O(state=present) makes sure that the image is in this folder, and does nothing else. O(state_dir) is not used.
      - It has to exist, since one that is missing is usually a share that is not mounted. Only one directly inside O(store) is made.
    type: path
  image:
    description:
      - Path of an image in an image store. It is copied to this host, checked against O(image_digest), and made the current generation.
      - A host whose kernel cannot mount images, or has no data-only layers, is told so before anything is copied.
      - An interrupted copy goes on where it ended. A generation that is there already is not copied again, and then the image need not
        be there any more.
    type: path
  image_digest:
    description: Digest that the image has to have, as the task that built it returned it.
    type: str
  generation:
    description:
      - Makes a generation that is on this host the current one, and builds nothing. Either its name, or V(previous) for the one that was
        current before.
    type: str
  strategy:
    description:
      - How the layer will be mounted; what M(renderfarm.overlay.overlay_mount) has to be given as C(strategy). It is no part of the name of
        the generation.
      - V(data_only) is a layer for a mount with data-only lower layers.
      - V(redirect) is one for kernels without these (before Linux 6.5), over the software root as an ordinary lower layer. It is of the
        format V(directory), and its O(xattr_namespace) is V(trusted).
      - V(auto) tries what the kernel of this host can do, and is V(redirect) only where that is all. With O(image_store), and with
        O(xattr_namespace=user), it is V(data_only). With O(generation) it chooses only among several layers of that generation.
    type: str
    choices: [auto, data_only, redirect]
    default: auto
  xattr_namespace:
    description:
      - The namespace of the overlay attributes.
      - V(user) is for overlays mounted with C(userxattr), as in a user namespace without root.
    type: str
    choices: [trusted, user]
    default: trusted
  owner:
    description:
      - User, by name or number, who owns everything in the view, instead of the owners that the manifests have.
      - Users that O(owner_map) names are mapped instead.
    type: str
  group:
    description:
      - Group, by name or number, of everything in the view, instead of the groups that the manifests have.
      - Groups that O(group_map) names are mapped instead.
    type: str
  owner_map:
    description:
      - Users in the manifests, by name or number, and whom their files belong to in the view, by name or number.
      - Names are those of the managed node. Directories that no manifest describes belong to user 0 before they are mapped.
      - Users that ACLs name are mapped as well, by this option and not by O(owner). Where several become one, that one has what all of
        them had.
    type: dict
    default: {}
  group_map:
    description: The same for groups.
    type: dict
    default: {}
  mode:
    description:
      - Changes of the modes of all files and directories, as C(chmod) has them, for example V(go-w,a+rX).
      - Each clause names whom it is for, by one or more of V(u), V(g), V(o) and V(a).
      - Where a file has an ACL, V(g) is its mask, as for C(chmod).
    type: str
  keep_setid:
    description:
      - Leave set-user-ID and set-group-ID bits and file capabilities to files whose owner or group becomes another one by O(owner),
        O(group), O(owner_map) or O(group_map).
      - Without it they lose them, as with C(chown), so that no program of a publisher becomes one that runs as root. O(mode) can give
        such bits again. C(stripped_paths) and a warning name the files.
    type: bool
    default: false
notes:
  - A view gives nobody more than its releases do. POSIX ACLs are carried, in both formats; docs/architecture.md tells what becomes of each
    attribute that decides access. A host whose kernel has EROFS without POSIX ACLs takes no images.
  - Releases that are merged, or have patterns, are read twice. Memory grows with their directories and hard-linked files, and with
    the number of releases that are merged, not with the number of files.
  - Where the first name of a hard-linked file is not shown, the next one that is becomes the file; it has as many links as the view has
    names of it.
  - The previous generation stays on the disk. Software that runs from it is not disturbed.
  - Where a file system has no room for the attributes inside of its inodes (ext4 with inodes of 256 bytes), each file takes a block of its
    own. The module warns, and C(bytes_on_disk) tells how much it is. Inodes of 512 bytes (C(mkfs.ext4 -I 512)), XFS or tmpfs avoid that.
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

- name: Build the same layer, with the releases given by their paths
  renderfarm.overlay.metadata_layer:
    name: software
    store: /net/manifests
    releases:
      - release: houdini/20.5.410
      - release: usd/25.05

- name: Show a release under another path, owned by root
  renderfarm.overlay.metadata_layer:
    name: houdini
    releases:
      - manifest: /net/manifests/houdini/20.5.410.dump.gz
        at: houdini/current
    owner: root
    group: root

- name: Build the image of a view once, where the file server's disk is close
  renderfarm.overlay.metadata_layer:
    name: software
    store: /net/manifests
    releases:
      - release: houdini/20.5.410
    image_store: /net/images
  register: built
  run_once: true

- name: Install it on every host
  renderfarm.overlay.metadata_layer:
    name: software
    image: "{{ built.image }}"
    image_digest: "{{ built.image_digest }}"

- name: Go back to the generation that was current before
  renderfarm.overlay.metadata_layer:
    name: software
    generation: previous

- name: Merge packages at the root of the view, as a Spack view would
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

- name: Let houdini/current lead to one of the releases, and give the files of one user to another one
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

- name: Remove a view's layers
  renderfarm.overlay.metadata_layer:
    name: software
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success
  sample: [build generation 4ff24b6d8e0c11a7 (erofs), make generation 4ff24b6d8e0c11a7 current]
generation:
  description: Name of the declared generation; none with O(state=absent).
  type: str
  returned: success
  sample: 4ff24b6d8e0c11a7
layer:
  description: Path of the layer, a directory or an image; what M(renderfarm.overlay.overlay_mount) takes as C(lower).
  type: str
  returned: when state is present and O(image_store) is not given
  sample: /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7-erofs/layer.erofs
format:
  description: Format of the layer.
  type: str
  returned: when state is present
  sample: erofs
format_reason:
  description: Why it has this format.
  type: str
  returned: when state is present
  sample: this host can mount images, and /usr/bin/mkcomposefs makes them
image:
  description: Path of the image in the image store.
  type: str
  returned: when O(image_store) or O(image) is given
  sample: /net/images/4ff24b6d8e0c11a7.erofs
image_digest:
  description: Digest of the image; none of a directory, and in check mode of an image that is not there yet.
  type: str
  returned: when state is present
  sample: sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
strategy:
  description: Strategy that the layer is made for, V(data_only) or V(redirect).
  type: str
  returned: when state is present
  sample: data_only
entries:
  description: Number of entries of each kind; C(hardlinks) counts the further names of files that have several.
  type: dict
  returned: when the generation is there
  sample: {"directories": 1630, "files": 40121, "symlinks": 702, "hardlinks": 12}
bytes:
  description: Content of all files of the view, in bytes.
  type: int
  returned: when the generation is there
  sample: 6843553024
bytes_on_disk:
  description: Room that the layer takes on this host, in bytes, besides the inodes themselves.
  type: int
  returned: when the generation is there
  sample: 7315456
privileged:
  description: Number of set-ID files and of files with capabilities in the view, which are ordinary ones where it is mounted C(nosuid).
  type: int
  returned: when the generation is there
  sample: 2
privileged_paths:
  description: The first 10 of them.
  type: list
  elements: str
  returned: when the generation is there
  sample: [/houdini/20.5.410/bin/sesinetd, /houdini/20.5.410/bin/hserver]
stripped:
  description: Number of files that lose set-ID bits or capabilities, since their owner or group is another one in the view (O(keep_setid)).
  type: int
  returned: when the generation is there
  sample: 2
stripped_paths:
  description: The first 10 of them.
  type: list
  elements: str
  returned: when the generation is there
  sample: [/houdini/20.5.410/bin/sesinetd, /houdini/20.5.410/bin/hserver]
narrowed:
  description: Number of files and directories whose ACL the file system of the layer cannot hold; their mode gives nobody more than that.
  type: int
  returned: when the generation is there
  sample: 2
narrowed_paths:
  description: The first 10 of them.
  type: list
  elements: str
  returned: when the generation is there
  sample: [/houdini/20.5.410/bin/sesinetd, /houdini/20.5.410/bin/hserver]
previous:
  description: Name of the generation that was current before this one; none when there was none.
  type: str
  returned: when state is present and O(image_store) is not given
  sample: 1b90e5a07c3d4e21
conflicts:
  description:
    - What releases have in each other's way, as far as O(on_conflict) decides it, in the order of the paths; 100 at most.
    - In check mode, the manifests of releases that are merged are read for it.
  type: list
  elements: dict
  returned: when state is present
  contains:
    path:
      description: Path within the view. What is not printable in it is escaped.
      type: str
      sample: /share/doc/README
    kept:
      description: Path below the software root of the release whose entry is shown; C(link -> TARGET) for a link of the view.
      type: str
      sample: python/3.11.9
    hidden:
      description: The same of the release whose entry is not shown.
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
      description: The software root that it is of.
      type: str
      sample: /net/software
    at:
      description: Where it appears in the view; empty for the root.
      type: str
      sample: houdini/20.5.410
    source:
      description: Where its data is in the data layer.
      type: str
      sample: houdini/20.5.410
    include:
      description: Patterns of what is shown of it, where they are given.
      type: list
      elements: str
      sample: [bin, lib/**/*.so*]
    exclude:
      description: Patterns of what is not shown of it, where they are given.
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
