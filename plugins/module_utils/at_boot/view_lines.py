# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of fstab(5) that mount an overlay at boot. Our lines are recognised by an option that all other programs ignore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_mounts import (
    AFTER_AUTOMOUNTER,
    AUTOMOUNTER,
    WANTED_BY,
    automounts_of,
    check_outlives_boot,
    looked_up,
    stands_alone,
    tree_of,
    tree_steps,
    wanted_units,
    whole_of,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_paths import (
    check_characters,
    check_for_fstab,
    unit_name,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_options import (
    flag_options,
    mount_options,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.fstab_lines import FstabFields
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec

#: The option in each of our lines. Its value is ``view``, ``image``, ``whole`` or ``tree``.
_FSTAB_MARKER = b"x-renderfarm.overlay="
_REQUIRES = b"x-systemd.requires-mounts-for="
_AFTER = b"x-systemd.after="


def desired_lines(
    spec: MountSpec, append: bool, any_length: bool = False, live: Sequence[Mount] = ()
) -> tuple[bytes, ...]:
    """Return the lines of fstab of an overlay, those of its images first; the parameters are those of ``desired_units``.

    Raises OverlayError if fstab cannot express the overlay.
    """
    check_outlives_boot(spec)
    for path in (*spec.lower, *spec.all_data, *spec.images, *spec.kept):
        check_for_fstab(path)
    for path in (spec.path, *(part.place for part in spec.parts)):
        check_characters(path)
    found = []
    # systemd orders a mount with _netdev after the network. Without it, nofail keeps the mount from being ordered before all local file
    # systems, which the disk with its layers may not be one of.
    boot = [b"nofail"] if stands_alone(spec) else [b"_netdev", b"nofail"]
    for image in spec.images:
        options = b",".join((b"ro", *boot, _REQUIRES + image, _FSTAB_MARKER + b"image"))
        found.append(fstab_lines.make_line(image, without_suffix(image), b"erofs", options))
    # systemd does not wait for a mount with nofail. This order makes services that start after the target find the view, as with a unit.
    automounts = {layer: units for one in spec.overlays for layer, units in automounts_of(one, live).items()}
    after = wanted_units(automounts)
    late = AUTOMOUNTER in after
    if set(after) - {AUTOMOUNTER}:
        raise OverlayError(
            f"the overlay at {show(spec.path)} has layer {show(next(iter(automounts)))} in an automount of systemd, which a line of fstab"
            " cannot want without requiring it: use 'persist: systemd'"
        )
    order = [*boot, b"x-systemd.before=" + (AFTER_AUTOMOUNTER if late else WANTED_BY.encode())]
    if spec.parts:
        return (*found, *_tree_lines(spec, order, append, any_length, live))
    requires = [_REQUIRES + path for path in (*spec.lower, *spec.data, *spec.kept) if path not in automounts]
    requires += [_AFTER + unit for unit in after]
    view = _FSTAB_MARKER + b"view"
    whole = whole_of(spec)
    if whole is None:
        options = mount_options(looked_up(spec, automounts), append, [*order, *requires, view], any_length)
        found.append(fstab_lines.make_line(b"overlay", spec.path, b"overlay", options))
    else:
        words = [*boot, *requires, _FSTAB_MARKER + b"whole"]
        options = mount_options(looked_up(spec, automounts), append, words, any_length)
        found.append(fstab_lines.make_line(b"overlay", whole, b"overlay", options))
        bind = b",".join((b"bind", *flag_options(spec), *order, _REQUIRES + whole, view))
        found.append(fstab_lines.make_line(whole + spec.root, spec.path, b"none", bind))
    return tuple(found)


def _tree_lines(
    spec: MountSpec, order: Sequence[bytes], append: bool, any_length: bool, live: Sequence[Mount]
) -> Iterator[bytes]:
    """Yield the lines of a tree besides those of its images, that of the view last. ``order`` are its options that systemd reads."""
    # Each line is mounted without being required. So if a part cannot be mounted, the view is mounted without it.
    before = b"x-systemd.before=" + unit_name(spec.path).encode()
    for step in tree_steps(spec, live):
        words = [*([b"_netdev"] if step.is_network else []), b"nofail", *([before] if step.is_part else [])]
        words += [_REQUIRES + path for path in step.requires]
        words += [_AFTER + unit for unit in step.after]
        marker = _FSTAB_MARKER + (b"whole" if step.is_whole else b"tree")
        options = step.options(append, [*words, marker], any_length)
        yield fstab_lines.make_line(step.what, step.where, step.fstype, options)
    place = tree_of(spec)
    options = b",".join((b"rbind", *order, _REQUIRES + place, _FSTAB_MARKER + b"view"))
    yield fstab_lines.make_line(place, spec.path, b"none", options)


def own_line(line: bytes, *kinds: bytes) -> FstabFields | None:
    """Return the fields of one of our lines of these kinds; None for another line."""
    fields = fstab_lines.read_line(line)
    return fields if fields and any(_FSTAB_MARKER + kind in fields.options for kind in kinds) else None


def _part(line: bytes) -> bytes | None:
    """Return the mountpoint in one of our lines that is not that of a view; None for another line."""
    fields = own_line(line, b"image", b"whole", b"tree")
    return fields.path if fields else None


def needed_lines(path: bytes, fstab: bytes) -> set[bytes]:
    """Return the paths that the lines of views at other paths need: their layers, and so also images, whole overlays and trees."""
    lines = fstab_lines.split(fstab)
    waiting = [view for view in (own_line(line, b"view") for line in lines) if view and view.path != path]
    others = [part for part in (own_line(line, b"image", b"whole", b"tree") for line in lines) if part]
    found: set[bytes] = set()
    while waiting:
        needed = waiting.pop()
        new = {needed.path, *(word[len(_REQUIRES) :] for word in needed.options if word.startswith(_REQUIRES))} - found
        found |= new
        # The parts of a tree are inside of it.
        waiting += [one for one in others if any(is_inside(one.path, place) for place in new)]
        others = [one for one in others if not any(is_inside(one.path, place) for place in new)]
    return found


def has_view_lines(text: bytes, path: bytes) -> bool:
    """Return whether fstab has a line of ours for the view at ``path``."""
    lines = (own_line(line, b"view") for line in fstab_lines.split(text))
    return any(line and line.path == path for line in lines)


def fstab_with_view(text: bytes, path: bytes, lines: Sequence[bytes]) -> bytes:
    """Return the text of fstab with these lines for a view, and without lines for parts that are not needed. Other lines are kept.

    The lines of parts come before the line of the view, since ``mount --all`` mounts from the first line to the last.
    """
    needed = needed_lines(path, text)
    missing = list(lines)
    found = []
    for line in fstab_lines.split(text):
        view, part = own_line(line, b"view"), _part(line)
        if line in missing:
            missing.remove(line)
        elif (view and view.path == path) or (part and part not in needed):
            continue
        found.append(line)
    if missing and lines[-1] in found:
        found.remove(lines[-1])
        missing.append(lines[-1])
    return fstab_lines.join(found, missing)


def removed_parts(before: bytes, after: bytes) -> set[bytes]:
    """Return the mountpoints of parts that one text of fstab has and another one lacks."""
    found = [{part for part in map(_part, fstab_lines.split(text)) if part} for text in (before, after)]
    return found[0] - found[1]
