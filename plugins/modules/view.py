#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: view
short_description: Bring all views of a host to their state
version_added: 0.1.0
description:
  - Brings each view of a host to its declared state in one task. Builds or installs the layer, makes it the current generation, mounts it
    or switches to it, writes what mounts it when the host starts, and removes generations that nobody needs.
  - Does what M(renderfarm.overlay.metadata_layer), M(renderfarm.overlay.overlay_mount) and M(renderfarm.overlay.overlay_prune) do for one
    view each, with the same options.
  - A view that fails does not keep the others from their state. The task then fails at its end and names it. A view that makes no progress
    for O(timeout) seconds has failed.
  - A rollback can hold. While it does, the view stays at its generation although another one is declared.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  views:
    description:
      - The views of the host. P(renderfarm.overlay.locked_views#filter) makes this list.
      - The options of a view that are not described here are those of M(renderfarm.overlay.metadata_layer),
        M(renderfarm.overlay.overlay_mount) and M(renderfarm.overlay.overlay_prune) with the same names.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the view.
        type: str
        required: true
      mountpoint:
        description: Where the view is mounted.
        type: path
        required: true
      state:
        description:
          - V(mounted) shows the view at its mountpoint.
          - V(unmounted) unmounts it and keeps its generations.
          - V(absent) unmounts it, and removes the mountpoint and all generations.
        type: str
        choices: [mounted, unmounted, absent]
        default: mounted
      locked_generation:
        description: The generation that the lock has for the view. The view fails if its releases make another one on this host.
        type: str
      releases:
        description: The releases that the view shows.
        type: list
        elements: dict
        default: []
        suboptions:
          release:
            description: Path of the release below the software root.
            type: str
          manifest:
            description: Path of the manifest of the release, instead of O(views[].releases[].release).
            type: path
          digest:
            description: The digest that the lock has for the manifest. The view fails if the manifest has another one.
            type: str
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
      leaving:
        description:
          - The releases among these that linger, each with C(release), and C(until), the time after which a resolution leaves it out.
            They are kept with the lock.
        type: list
        elements: dict
        default: []
      on_conflict:
        description: What to do when releases have different things at one path.
        type: str
        choices: [error, first, last]
        default: error
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
      store:
        description: Directory with the manifests, or the http(s) address at which a web server serves it.
        type: path
      format:
        description: The format of the layer.
        type: str
        choices: [auto, directory, erofs]
        default: auto
      strategy:
        description: How the view is realised.
        type: str
        choices: [auto, data_only, redirect]
        default: auto
      xattr_namespace:
        description: The namespace of the overlay xattrs. V(user) mounts with C(userxattr).
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
      image:
        description: Path or http(s) address of the image of the generation in an image store, instead of O(views[].releases).
        type: path
      image_digest:
        description: Digest that the image must have.
        type: str
      ca_path:
        description: File with the certificates of the authorities to trust for https addresses, instead of those of the system.
        type: path
      require_verity:
        description:
          - Fail unless the layer is an image with fs-verity, as in M(renderfarm.overlay.metadata_layer).
          - A data image that cannot have fs-verity is not installed.
        type: bool
        default: false
      generation:
        description: A generation on this host, or V(previous), instead of O(views[].releases).
        type: str
      unresolved:
        description:
          - The view could not be resolved, so it has no O(views[].releases). It stays at the generation that the host shows, or showed
            last, and is mounted again if it is not mounted.
        type: bool
        default: false
      options:
        description: Mount options.
        type: dict
        default: {nodev: true, nosuid: true}
      data:
        description: The data layers, usually the software root.
        type: list
        elements: path
        default: []
      roots:
        description:
          - The software roots of a view over several, instead of O(views[].data). The name of a release begins with that of its root.
          - Roots with patterns that exclude each other share an overlay. Each of the others has an overlay of its own, so a release is read
            from its root even if another root has the same path. These overlays are mounted and switched together, in one step.
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
      switch:
        description: How a mounted view is replaced.
        type: str
        choices: [auto, beneath, over, replace, never]
        default: auto
      inner_mounts:
        description: What happens to mounts inside of the view that have no place in the new one.
        type: str
        choices: [carry, drop]
        default: carry
      persist:
        description: What mounts the view when the host starts.
        type: str
        choices: [none, systemd, fstab]
        default: none
      writable:
        description:
          - Whether the view can be written to. Nothing is ever written to the releases.
          - V(none) mounts the view read-only.
          - With V(scratch) what is written is kept in memory, up to O(views[].scratch_size), until the view is switched or unmounted.
          - With V(upper) it is kept in a directory of the host, C(views/NAME/changes) in O(views[].state_dir), also over reboots.
          - Changes belong to the generation that they were made in. The view does not leave a generation with changes, or its
            mountpoint with changes in scratch space, unless O(views[].discard_changes). It then fails, and names the changes.
          - A writable view cannot be replaced while it is in use. The view fails, and names the processes.
          - Users write as the modes and owners in the view allow. O(views[].owner) gives a view to a user.
        type: str
        choices: [none, scratch, upper]
        default: none
      scratch_size:
        description: The most that may be written with O(views[].writable=scratch).
        type: bytes
        default: 2G
      discard_changes:
        description: Discard what was written to the view if it would be left behind.
        type: bool
        default: false
      data_images:
        description:
          - Which data images the view has on this host. A data image has the content of files of one release. It is a data layer before
            those of O(views[].data), so these files are not read from the software root.
          - V(trace) has images of the files that a start of the software opens. V(everything) has images of all files.
          - V(only) has images of all files, and does without the software root, which is the last of O(views[].data). Before the view is
            switched to the images alone, it is checked that they have each file of the view that has content, with its size. If one is
            missing, the view is mounted with the software root as well and fails, and names the first missing files. If there is no
            software root either, it stays as it is.
          - An image that does not fit or cannot be installed is left out with a warning. Its files are then read from the software root.
          - Adding or removing an image switches the mount and makes no new generation.
        type: str
        choices: [none, trace, everything, only]
        default: none
      locked_data_images:
        description: The data images that the lock has for the releases of the view, at most one for each release.
        type: list
        elements: dict
        default: []
        suboptions:
          release:
            description: The release.
            type: str
            required: true
          kind:
            description: What the image has.
            type: str
            choices: [trace, everything]
            required: true
          digest:
            description: The digest of the image file.
            type: str
            required: true
          bytes_on_disk:
            description: The size of the image file.
            type: int
            required: true
          opens:
            description: How often the files of the image were opened in the trace. Images with the most opens per byte are installed first.
            type: int
            default: 0
          complete:
            description: Whether the image has every file of the release that has content.
            type: bool
            default: false
      image_store:
        description: Directory that the data images are installed from, or the http(s) address at which a web server serves it.
        type: path
      data_budget:
        description:
          - The most bytes of the data images of all views in O(views[].state_dir). 0 means that only O(views[].data_keep_free) limits them.
          - Images that are installed stay as long as they are in the budget, and then those with the most opens per byte are installed. An
            image that this run replaces is not counted. It is removed when nothing uses it.
          - If views of one state directory have different values, the lowest one is used.
        type: bytes
        default: 0
      data_keep_free:
        description: How much of the file system of O(views[].state_dir) stays free, as a size such as V(20G) or as a percentage.
        type: str
        default: 5%
      keep:
        description: The number of newest generations that stay.
        type: int
        default: 3
      min_age:
        description: Seconds for which a generation stays at least.
        type: float
        default: 3600.0
      health_check:
        description:
          - A command for the shell that must succeed in the view before the host switches to it.
          - It runs in a private mount namespace, in which the new generation is mounted at O(views[].mountpoint). Everybody else still sees
            what was there before. It starts in this directory, with C(OVERLAY_VIEW), C(OVERLAY_MOUNTPOINT) and C(OVERLAY_GENERATION) in its
            environment.
          - Before the command, the view is listed, and one file of each release that the current generation lacks is opened. V(none)
            turns both off.
          - Nothing is checked if the mount stays as it is, nor in check mode.
        type: str
        default: ''
      health_timeout:
        description: Seconds after which the command of O(views[].health_check) is given up.
        type: float
        default: 60
      health_user:
        description: The user who runs the command of O(views[].health_check), by name or uid.
        type: str
        default: nobody
      state_dir:
        description: Directory on the host that holds the layers of all views.
        type: path
        default: /var/lib/renderfarm-overlay
  hold:
    description:
      - Seconds for which a view with O(views[].generation) stays there, whatever later runs declare. With V(0) it stays there until a run
        has O(lift_holds).
      - Without it a view does not stay there.
    type: int
  hold_reason:
    description: Why views are held, for reports.
    type: str
  lift_holds:
    description: End the holds of the views.
    type: bool
    default: false
  take_back:
    description:
      - Return the views that the last run switched to the generation that they showed before. The others stay as they are.
      - A view that is returned stays there until another generation is declared, or until a run has O(lift_holds).
    type: bool
    default: false
  metrics_file:
    description:
      - Path of a file for metrics of the views of this host, which the textfile collector of node_exporter reads. Its name must end with
        C(.prom), and its directory must exist.
      - Each run writes the file anew, also if views failed, but not in check mode. Writing it is not a change.
    type: path
seealso:
  - module: renderfarm.overlay.resolved_views
  - module: renderfarm.overlay.metadata_layer
  - module: renderfarm.overlay.overlay_mount
  - module: renderfarm.overlay.overlay_prune
"""

EXAMPLES = r"""
- name: Show two views
  renderfarm.overlay.view:
    views:
      - name: software
        mountpoint: /software
        store: /net/manifests
        releases:
          - release: houdini/20.5.410
        data: [/net/software]
      - name: tools
        mountpoint: /tools
        store: /net/manifests
        releases:
          - release: usd-core/26.11
        data: [/net/software]

- name: Go back to the previous generation, and stay there for a day
  renderfarm.overlay.view:
    views:
      - name: software
        mountpoint: /software
        generation: previous
        data: [/net/software]
    hold: 86400
    hold_reason: renders are black

- name: Show a view without the file server
  renderfarm.overlay.view:
    views:
      - name: software
        mountpoint: /software
        store: /net/manifests
        releases:
          - release: houdini/20.5.410
        data: [/net/software]
        data_images: only
        image_store: /net/manifests/.images
        locked_data_images:
          - release: houdini/20.5.410
            kind: everything
            digest: sha256:9f2c5e0c1f0a6c0e4b8f5f0f3f2b7a0d6d2f9d5a3c1b0e7f8a9b6c5d4e3f2a1b
            bytes_on_disk: 3221225472
            complete: true
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done, over all views.
  type: list
  elements: str
  returned: success, and when views failed
  sample: [build generation 0123456789abcdef (erofs)]
mount_changed:
  description: Whether a view was mounted, switched or unmounted, or in check mode would be.
  type: bool
  returned: success, and when views failed
  sample: true
views:
  description: The result for each view.
  type: list
  elements: dict
  returned: success, and when views failed
  contains:
    name:
      description: Name of the view.
      type: str
      sample: software
    changed:
      description: Whether something was done.
      type: bool
      sample: true
    actions:
      description: What was done, or in check mode would be done.
      type: list
      elements: str
      sample: [mount overlay at /software]
    failed:
      description: Whether the view failed.
      type: bool
      sample: false
    msg:
      description: Why it failed; empty if it did not.
      type: str
      sample: ''
    generation:
      description: The generation that the view shows.
      type: str
      sample: 0123456789abcdef
    previous:
      description: The generation that it showed before; none if there is none.
      type: str
      sample: fedcba9876543210
    format:
      description: The format of the layer.
      type: str
      sample: erofs
    format_reason:
      description: Why the layer has this format.
      type: str
      sample: this host can mount images
    strategy:
      description: How the view is realised.
      type: str
      sample: data_only
    layer:
      description: Path of the layer.
      type: str
      sample: /var/lib/renderfarm-overlay/views/software/generations/0123456789abcdef-erofs/layer.erofs
    installed_from:
      description: What was copied from the image store, the compressed V(image) or a V(delta). Only if this run has installed an image.
      type: str
      sample: delta
    bytes_copied:
      description: How many bytes were copied for that.
      type: int
      sample: 91686
    held:
      description: The hold that keeps the view at its generation; none if there is none.
      type: dict
      sample: {"generation": "0123456789abcdef", "until": 1795633020, "reason": "renders are black"}
    mount:
      description: The mount, as M(renderfarm.overlay.overlay_mount) returns it.
      type: dict
    mount_changed:
      description: Whether the view was mounted, switched or unmounted.
      type: bool
      sample: true
    switched:
      description: Whether a mounted view was replaced.
      type: bool
      sample: false
    method:
      description: How it was replaced; none if it was not.
      type: str
      sample: beneath
    users:
      description: The processes that still use the replaced mount.
      type: list
      elements: dict
      sample: []
    elsewhere:
      description: Where the replaced mount is still mounted.
      type: list
      elements: dict
      sample: []
    carried:
      description: The mountpoints inside of the view that were carried over.
      type: list
      elements: str
      sample: []
    data_images:
      description: The data images that the view is mounted with.
      type: list
      elements: dict
      sample: [{"release": "houdini/20.5.410", "id": "9f2c5e0c1f0a6c0e", "bytes_on_disk": 3221225472, "complete": true}]
    detached:
      description: Whether the view stands without the software root.
      type: bool
      sample: false
    removed:
      description: The generations that were removed.
      type: list
      elements: str
      sample: []
report:
  description:
    - A row for each view, as M(renderfarm.overlay.view_info) returns it. In check mode it says where the views stand before the run.
    - The releases of a generation that is O(views[].locked_generation) are left out, since the lock has them.
  type: list
  elements: dict
  returned: success, and when views failed
  sample: [{"view": "software", "status": "as declared", "generation": "0123456789abcdef"}]
"""

from dataclasses import replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import host_view, view_parameters
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_view import Brought, Run
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import host_report, metrics_file


def main() -> None:
    runner.run(
        {
            "views": {"type": "list", "elements": "dict", "required": True, **_view_options()},
            "hold": {"type": "int"},
            "hold_reason": {"type": "str"},
            "lift_holds": {"type": "bool", "default": False},
            "take_back": {"type": "bool", "default": False},
            "metrics_file": {"type": "path"},
        },
        work,
    )


def _view_options() -> dict[str, Any]:
    return {
        "options": {**view_parameters.options(), "state_dir": runner.STATE_DIR},
        "mutually_exclusive": [("image", "generation")],
        "required_together": [("image", "image_digest")],
    }


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Bring the views to their state, one after the other."""
    views = params["views"]
    _check(views, params["hold"])
    if params["metrics_file"]:
        metrics_file.check_path(params["metrics_file"])
    holding = {name: params[name] for name in ("hold", "hold_reason", "lift_holds", "take_back")}
    brought = []
    for view in views:
        context.note.write(f"view {view['name']}")
        brought.append(_bring({**view, **holding, "companions": views}, context))
        context.progress()
    rows = host_report.of_run(views, {one.name: one.failure for one in brought}, runner.explain)
    problem = ""
    if params["metrics_file"] and not context.check_mode:
        problem = metrics_file.write_for(params["metrics_file"], views, runner.DEFAULT_STATE_DIR, runner.explain)
    return _outcome(brought, rows, problem)


def _bring(view: dict[str, Any], context: runner.Context) -> Brought:
    """Bring a view to its state, in a process with a time limit of its own: a view that hangs is given up alone."""

    def in_child(progress: deadline.Progress) -> Brought:
        carry_out = replace(context, progress=progress).carry_out
        return host_view.bring(view, Run(context.check_mode, context.timeout, progress, carry_out, runner.explain))

    try:
        return deadline.run(in_child, context.timeout, context.progress)
    except deadline.TimeLimitError as error:
        return host_view.given_up(view, runner.given_up(error, progress=context.progress), context.check_mode)


def _check(views: list[dict[str, Any]], hold: int | None) -> None:
    if hold is not None and hold < 0:
        raise OverlayError(f"hold must not be negative, but it is {hold}")
    names = [view["name"] for view in views]
    for view in views:
        label = f"view {view['name']}"
        for option in ("mountpoint", "state_dir"):
            runner.check_absolute(view[option], f"{label}: {option}")
        for layer in view["data"]:
            runner.check_absolute(layer, f"{label}: data")
        for root in view["roots"]:
            runner.check_absolute(root["path"], f"{label}: path of root {root['name']}")
        for option in ("keep", "min_age", "health_timeout"):
            if view[option] < 0:
                raise OverlayError(f"{label}: {option} must not be negative, but it is {view[option]:g}")
        if names.count(view["name"]) > 1:
            raise OverlayError(f"{label} is given twice")


def _outcome(brought: list[Brought], report: list[dict[str, Any]], problem: str) -> runner.Outcome:
    changed = any(one.values.get("mount_changed") for one in brought)
    return runner.Outcome(
        {"mount_changed": changed, "views": [one.as_dict() for one in brought], "report": report},
        tuple(action for one in brought for action in one.actions),
        {one.name: one.before for one in brought},
        {one.name: one.after for one in brought},
        list(dict.fromkeys(warning for one in brought for warning in one.warnings)),
        failure="; ".join(filter(None, (*(one.named_failure for one in brought if one.failure), problem))),
    )


if __name__ == "__main__":
    main()
