# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe the layer that a view declares, and derive the name of its generation.

A generation is named by a digest of its input: manifest digests, places, and the options that decide what the view shows. The same
declaration therefore has the same name on every host, and an unchanged one is recognised without reading a manifest. The form in which a
host stores the layer is not part of the name; the name of the generation's directory tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Rules, in_order, precedence
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import Link
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import (
    IdMap,
    OwnershipRules,
    parse_mode,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    composition_digest,
    generation_id,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import GenerationName


@dataclass(frozen=True)
class LayerSpec:
    """The declaration of a view's layer."""

    #: The name of the view.
    name: str
    placements: tuple[Placement, ...]
    #: The name of the layer's format.
    format: str
    strategy: str
    #: First word of the overlay xattrs: ``trusted`` or ``user``.
    xattr_namespace: str
    #: The uid and gid of every entry; None for those of the manifests.
    owner: int | None = None
    group: int | None = None
    owner_map: IdMap = ()
    group_map: IdMap = ()
    #: Symbolic mode as for chmod(1); empty for no change.
    mode: str = ""
    #: Whether files whose owner or group is mapped keep set-ID bits and capabilities.
    keep_setid: bool = False
    on_conflict: str = "error"
    links: tuple[Link, ...] = ()
    #: Whether the releases may be of several software roots.
    several_roots: bool = False

    @property
    def rules(self) -> Rules:
        """How the releases become one tree. Raises OverlayError if the mode is malformed."""
        mode = parse_mode(self.mode) if self.mode else ()
        attributes = OwnershipRules(self.owner, self.group, self.owner_map, self.group_map, mode)
        # The option has no effect unless something is mapped, and must not change the name of the generation then.
        attributes = replace(attributes, keep_setid=self.keep_setid and attributes.strips)
        return Rules(attributes, self.on_conflict, self.links)

    @property
    def alters_entries(self) -> bool:
        """Whether entries have another owner or mode than in their manifest."""
        return self.rules.ownership != OwnershipRules()

    @property
    def generation(self) -> str:
        """The ID of the generation."""
        return generation_id(input_digest(self))

    @property
    def directory(self) -> str:
        """The name of the generation's directory."""
        return str(GenerationName(self.generation, self.format, self.strategy, self.xattr_namespace))


def releases_of(placements: Sequence[Placement]) -> tuple[dict[str, Any], ...]:
    """Return the releases as ``view.json`` lists them: a mapping from each release back to where it appears."""
    return tuple(
        {
            "release": placement.record.release,
            "digest": placement.record.digest,
            "root": placement.record.root,
            "at": to_text(placement.at),
            "source": to_text(placement.source),
            **_patterns("include", placement.include),
            **_patterns("exclude", placement.exclude),
        }
        for placement in in_order(placements)
    )


def _patterns(name: str, patterns: Sequence[bytes]) -> dict[str, list[str]]:
    """Return patterns under their name, if there are any. They are sorted, since their order has no effect on the view."""
    return {name: sorted({to_text(pattern) for pattern in patterns})} if patterns else {}


def links_of(links: Sequence[Link]) -> tuple[dict[str, str], ...]:
    """Return the links that a view declares, as ``view.json`` lists them."""
    return tuple({"path": to_text(link.path), "target": to_text(link.target)} for link in links)


def input_digest(spec: LayerSpec) -> str:
    """Return ``sha256:`` and the digest of everything that decides what the view shows.

    The name of the view and the form in which the layer is stored have no effect on it.
    """
    return composition_digest(composition_of(spec))


def composition_of(spec: LayerSpec) -> dict[str, Any]:
    """Return everything that decides what the view shows, as ``view.json`` records it."""
    return {
        "layer_format": generation_record.LAYER_FORMAT,
        "releases": list(releases_of(spec.placements)),
        "owner": spec.owner,
        "group": spec.group,
        **_composing_options(spec),
    }


def _composing_options(spec: LayerSpec) -> dict[str, Any]:
    """Return the options that decide how releases become one tree, without those that have no effect."""
    options = {
        "owner_map": [list(pair) for pair in sorted(spec.owner_map)],
        "group_map": [list(pair) for pair in sorted(spec.group_map)],
        "mode": spec.mode,
        # Versions without this field kept set-ID bits, so their generations must have other names.
        "setid_stripped": spec.rules.ownership.strips,
        "links": list(links_of(spec.links)),
        "several_roots": spec.several_roots and len({one.record.root for one in spec.placements}) > 1,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value}
    order = precedence(spec.placements, spec.rules)
    if order is not None:
        given["precedence"] = order
    return given
