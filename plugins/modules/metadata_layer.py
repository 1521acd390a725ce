#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: metadata_layer
short_description: Build the metadata layer of a view from manifests
version_added: 0.1.0
description:
  - Builds the layer that shows a view's releases, from their manifests alone. The software root is not touched.
  - The layer has the directories, the symbolic links, and for each file an empty one of the right size, mode, owner and times that says
    where in the data layer its content is. M(renderfarm.overlay.overlay_mount) puts the two together.
  - Each build is a generation, named by a digest of what it is made of, so the same declaration has the same name on every host. A
    generation that is there already is not built again.
  - A generation is built aside, written to the disk and then renamed, so one that has its name is whole.
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
    description: The releases that the view shows. None of them may lie inside of another in the view.
    type: list
    elements: dict
    default: []
    suboptions:
      manifest:
        description:
          - Path of the release's manifest, as M(renderfarm.overlay.release_manifest) returns it.
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
  store:
    description: Folder with the manifests of releases that are given by O(releases[].release).
    type: path
  state:
    description:
      - V(present) makes sure that the generation is there and is the current one.
      - V(absent) removes all of the view's generations. It fails while one of them is mounted.
    type: str
    choices: [present, absent]
    default: present
  format:
    description: V(directory) is a directory tree with overlayfs attributes. V(auto) chooses it.
    type: str
    choices: [auto, directory]
    default: auto
  strategy:
    description: V(data_only) is a layer for a mount with data-only lower layers. V(auto) chooses it.
    type: str
    choices: [auto, data_only]
    default: auto
  xattr_namespace:
    description:
      - The namespace of the overlay attributes.
      - V(user) is for overlays mounted with C(userxattr), as in a user namespace without root.
    type: str
    choices: [trusted, user]
    default: trusted
  owner:
    description: User, by name or number, who owns everything in the view, instead of the owners that the manifests have.
    type: str
  group:
    description: Group, by name or number, of everything in the view, instead of the groups that the manifests have.
    type: str
notes:
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
  sample: [build generation 4ff24b6d8e0c11a7, make generation 4ff24b6d8e0c11a7 current]
generation:
  description: Name of the declared generation; none with O(state=absent).
  type: str
  returned: success
  sample: 4ff24b6d8e0c11a7
layer:
  description: Path of the layer; what M(renderfarm.overlay.overlay_mount) takes as C(lower).
  type: str
  returned: when state is present
  sample: /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer
format:
  description: Format of the layer.
  type: str
  returned: when state is present
  sample: directory
strategy:
  description: Strategy that the layer is made for.
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
previous:
  description: Name of the generation that was current before this one; none when there was none.
  type: str
  returned: when state is present
  sample: 1b90e5a07c3d4e21
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
    at:
      description: Where it appears in the view; empty for the root.
      type: str
      sample: houdini/20.5.410
    source:
      description: Where its data is in the data layer.
      type: str
      sample: houdini/20.5.410
"""

import grp
import os
import pwd
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.core import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.generation import LayerSpec, ViewPaths
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import Placement, relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.plan import (
    Action,
    BuildGeneration,
    MakeCurrent,
    ViewState,
    plan_layer,
    plan_view_removal,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import manifest_store, mounts, views


def main() -> None:
    runner.run(
        {
            "name": {"type": "str", "required": True},
            "releases": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "manifest": {"type": "path"},
                    "release": {"type": "str"},
                    "at": {"type": "str"},
                    "source": {"type": "str"},
                },
                "required_one_of": [("manifest", "release")],
                "mutually_exclusive": [("manifest", "release")],
            },
            "store": {"type": "path"},
            "state_dir": runner.STATE_DIR,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "format": {"type": "str", "choices": ["auto", "directory"], "default": "auto"},
            "strategy": {"type": "str", "choices": ["auto", "data_only"], "default": "auto"},
            "xattr_namespace": {"type": "str", "choices": ["trusted", "user"], "default": "trusted"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    if not os.path.isabs(params["state_dir"]):
        raise OverlayError(f"state_dir must be an absolute path, not {params['state_dir']!r}")
    paths = ViewPaths.of(params["state_dir"], params["name"])
    if params["state"] == "absent":
        return _remove(paths, params["name"], context)
    return _provide(paths, _layer_spec(params), context)


def _layer_spec(params: dict[str, Any]) -> LayerSpec:
    return LayerSpec(
        name=params["name"],
        placements=tuple(_placement(release, params["store"]) for release in params["releases"]),
        format="directory",
        strategy="data_only",
        xattr_namespace=params["xattr_namespace"],
        owner=_number(params["owner"], "owner", lambda name: pwd.getpwnam(name).pw_uid),
        group=_number(params["group"], "group", lambda name: grp.getgrnam(name).gr_gid),
    )


def _placement(release: dict[str, Any], store: str | None) -> Placement:
    path = _manifest(release, store)
    record = manifest_store.read_record(path)

    def place(option: str) -> bytes:
        given = record.release if release[option] is None else release[option]
        return relative_path(os.fsencode(given), f"'{option}' of release {record.release}")

    return Placement(path, record, place("at"), place("source"))


def _manifest(release: dict[str, Any], store: str | None) -> str:
    if release["manifest"] is not None:
        return str(release["manifest"])
    if store is None:
        raise OverlayError(
            f"release {release['release']} is given by its path, so 'store' has to say where its manifest is"
        )
    return manifest_store.manifest_path(store, os.fsdecode(relative_path(os.fsencode(release["release"]), "release")))


def _number(given: str | None, option: str, look_up: Any) -> int | None:
    if given is None:
        return None
    if given.isdigit():
        return int(given)
    try:
        return int(look_up(given))
    except KeyError:
        raise OverlayError(f"{option} {given!r} does not exist on this host; give one that does, or a number") from None


def _provide(paths: ViewPaths, spec: LayerSpec, context: runner.Context) -> runner.Outcome:
    generation_id = names.generation_id(names.input_digest(spec))
    state = views.observe(paths)
    before = _shown_generation(paths, state)
    plan = plan_layer(generation_id, state)
    warnings = []

    def apply(action: Action) -> None:
        if isinstance(action, BuildGeneration):
            _generation, report = views.build(paths, spec, context.progress)
            warnings.extend(views.spill_warning(paths, report))
        elif isinstance(action, MakeCurrent):
            views.make_current(paths, action.generation, action.previous)

    if plan and not context.check_mode:
        with views.locked(paths, context.timeout, context.progress):
            # Another run may have done it while this one waited.
            plan = plan_layer(generation_id, views.observe(paths))
            context.carry_out(plan, apply)
            state = views.observe(paths)

    releases = names.releases_of(spec.placements)
    values: dict[str, Any] = {
        "generation": generation_id,
        "layer": names.layer_path(paths.generation(generation_id)),
        "format": spec.format,
        "strategy": spec.strategy,
        "previous": state.previous if state.current == generation_id else state.current,
        "releases": list(releases),
    }
    if generation_id in state.generations:
        generation = views.read_generation(paths, generation_id)
        values.update(
            entries=generation.entries.as_dict(), bytes=generation.bytes, bytes_on_disk=generation.bytes_on_disk
        )
    after = _shown(generation_id, releases)
    return runner.Outcome(values, plan, before, after, warnings)


def _remove(paths: ViewPaths, name: str, context: runner.Context) -> runner.Outcome:
    state = views.observe(paths)
    before = _shown_generation(paths, state)
    plan = plan_view_removal(name, state, views.mounted_at(paths, mounts.read_mounts()))
    if plan and not context.check_mode:
        with views.locked(paths, context.timeout, context.progress):
            # A build that this run waited for may have been mounted.
            plan = plan_view_removal(name, views.observe(paths), views.mounted_at(paths, mounts.read_mounts()))
            context.carry_out(plan, lambda _action: views.remove_view(paths, context.progress))
    return runner.Outcome({"generation": None}, plan, before, {})


def _shown_generation(paths: ViewPaths, state: ViewState) -> dict[str, Any]:
    if state.current is None or state.current not in state.generations:
        return {}
    return _shown(state.current, views.read_generation(paths, state.current).releases)


def _shown(generation_id: str, releases: tuple[dict[str, str], ...]) -> dict[str, Any]:
    return {
        "generation": generation_id,
        "releases": {f"/{release['at']}": f"{release['release']} ({release['digest']})" for release in releases},
    }


if __name__ == "__main__":
    main()
