# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose what a view shows of a Spack environment: by its lock file, and by a view of ``spack.yaml`` where one is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.json_values import mapping, sequence, text
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.resolved import (
    Environment,
    LeftOut,
    Package,
    Template,
    shown,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.spack_lock import Node, SpackLock
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.spack_specs import Constraint

#: The names that all filters have, then those of Spack's projections.
FIELDS = (
    *("package", "version", "hash", "name", "namespace"),
    *("architecture", "architecture.platform", "architecture.os", "architecture.target"),
    *("compiler.name", "compiler.version"),
)
#: The choices of the option ``link``, and the types of the dependencies that each of them follows.
LINKS = {"all": {"link", "run"}, "run": {"run"}, "roots": set[str]()}

_VIEW_KEYS = ("root", "select", "exclude", "projections", "link", "link_type")


@dataclass(frozen=True)
class _View:
    """What a view of spack.yaml says about which packages it shows, and where."""

    link: str | None = None
    select: tuple[Constraint, ...] = ()
    exclude: tuple[Constraint, ...] = ()
    #: Each with the packages that it is for; None is for all others.
    projections: tuple[tuple[Constraint | None, Template], ...] = ()

    @classmethod
    def parse(cls, view: Any) -> _View:
        """Return a view: a mapping, or the path or ``true`` that stands for a view of everything.

        Raises OverlayError naming the key if it is malformed.
        """
        if view is True or isinstance(view, str):
            return cls()
        described = mapping(view, "view")
        unknown = [key for key in described if key not in _VIEW_KEYS]
        if unknown:
            raise OverlayError(
                f"view has the unknown key {shown(unknown[0])}; the keys are {', '.join(_VIEW_KEYS)}. Where spack.yaml has views by"
                " name, give one of them"
            )
        link = described.get("link")
        return cls(
            None if link is None else text(link, "view.link"),
            _constraints(described, "select"),
            _constraints(described, "exclude"),
            tuple(map(_projection, mapping(described.get("projections") or {}, "view.projections").items())),
        )

    def reason_against(self, node: Node, lock: SpackLock) -> str:
        """Return why the view does not show a package; empty if it does."""
        if self.select and not any(one.matches(node, lock) for one in self.select):
            return "is not selected by the view"
        if any(one.matches(node, lock) for one in self.exclude):
            return "is excluded by the view"
        return ""

    def place(self, node: Node, lock: SpackLock) -> Template:
        """Return where the view shows a package: by the first projection for it, else by that for all, else at its root."""
        for constraint, template in self.projections:
            if constraint and constraint.matches(node, lock):
                return template
        return next((template for constraint, template in self.projections if constraint is None), Template(""))


def environment(lock: Any, link: Any = "all", view: Any = None) -> Environment:
    """Return the packages of a lock file, parsed or as text: the roots, then what they need.

    ``link`` is which dependencies are shown, and ``view`` a view of spack.yaml, whose own ``link`` takes precedence. Raises
    OverlayError naming the key if the lock file, the view or ``link`` is malformed.
    """
    described = None if view is None else _View.parse(view)
    link = (described and described.link) or link
    if not isinstance(link, str) or link not in LINKS:
        raise OverlayError(f"link must be one of {', '.join(LINKS)}, not {shown(link)}")
    found = SpackLock.parse(lock)
    needed = {node.key: node for node in found.reached(found.roots, LINKS[link])}
    packages: list[Package] = []
    left_out: list[LeftOut] = []
    for node in needed.values():
        refused = described.reason_against(node, found) if described else ""
        if refused:
            left_out.append(LeftOut(node.name, node.version, refused))
            continue
        reason = f"is external, at {shown(node.external)}: Spack did not install it" if node.external else ""
        packages.append(
            Package(_fields(node, found), at=described.place(node, found) if described else None, reason=reason)
        )
    unused = (node for key, node in found.nodes.items() if key not in needed)
    left_out += (LeftOut(node.name, node.version, f"is not needed with link: {link}") for node in unused)
    return Environment(packages, FIELDS, left_out)


def _fields(node: Node, lock: SpackLock) -> dict[str, str]:
    fields = {"package": node.name, "name": node.name, "version": node.version, "hash": node.key, **node.architecture}
    if node.namespace:
        fields["namespace"] = node.namespace
    compiler = lock.compiler(node)
    if compiler:
        fields["compiler.name"], fields["compiler.version"] = compiler
    return fields


def _constraints(view: Mapping[Any, Any], key: str) -> tuple[Constraint, ...]:
    specs = sequence(view.get(key) or (), f"view.{key}")
    return tuple(Constraint.parse(spec, f"view.{key}[{position}]") for position, spec in enumerate(specs))


def _projection(item: tuple[Any, Any]) -> tuple[Constraint | None, Template]:
    spec, path = item
    constraint = None if spec == "all" else Constraint.parse(spec, "view.projections")
    return constraint, Template.parse(path, f"view.projections.{shown(spec, quoted=False)}", FIELDS)
