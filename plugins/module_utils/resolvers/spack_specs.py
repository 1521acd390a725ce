# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose packages of a Spack lock file by specs: a name, versions, a compiler and dependencies, as in ``hdf5@1.14: %gcc ^openmpi``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.json_values import text
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.resolved import shown
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.spack_lock import Node, SpackLock

_TOKEN = re.compile(
    r"\s*(?:(?P<sigil>[\^%]?)(?P<name>[a-zA-Z0-9_][a-zA-Z0-9_.-]*))?(?:@(?P<versions>[a-zA-Z0-9_.:,=-]+))?(?=[\s^%]|$)"
)
_SUPPORTED = "a name, @versions, %compiler and ^dependency are supported, as in 'hdf5@1.14: %gcc@13 ^openmpi'"

_VersionPart = tuple[int, int, str]


@dataclass(frozen=True)
class _Range:
    """Versions from ``low`` to ``high``, with all that begin like ``high``; None is no limit."""

    low: tuple[_VersionPart, ...] | None
    high: tuple[_VersionPart, ...] | None
    exact: str = ""

    @classmethod
    def parse(cls, text: str) -> _Range:
        if text.startswith("="):
            return cls(None, None, text[1:])
        low, colon, high = text.partition(":")
        return cls(_parts(low) if low else None, _parts(high if colon else low) if high or not colon else None)

    def contains(self, version: str) -> bool:
        if self.exact:
            return version == self.exact
        parts = _parts(version)
        return (self.low is None or parts >= self.low) and (self.high is None or parts[: len(self.high)] <= self.high)


#: Branches count as later than every number, in this order.
_BRANCHES = ("stable", "trunk", "head", "master", "main", "develop")


def _parts(version: str) -> tuple[_VersionPart, ...]:
    """Return what versions compare by: numbers as numbers, and later than words."""
    parts: list[_VersionPart] = []
    for part in re.findall(r"[0-9]+|[a-zA-Z]+", version):
        if part.isdigit():
            # By length, and then digit by digit: Python does not convert thousands of digits.
            digits = part.lstrip("0")
            parts.append((1, len(digits), digits))
        elif part in _BRANCHES:
            parts.append((2, _BRANCHES.index(part), ""))
        else:
            parts.append((0, 0, part))
    return tuple(parts)


@dataclass(frozen=True)
class _Part:
    """A package name, which may be empty, and the versions that match; all if there are none."""

    name: str
    versions: tuple[_Range, ...]

    def matches(self, names: frozenset[str], version: str) -> bool:
        return (not self.name or self.name in names) and (
            not self.versions or any(one.contains(version) for one in self.versions)
        )


@dataclass(frozen=True)
class Constraint:
    """A spec that chooses packages."""

    own: _Part
    compiler: _Part | None
    dependencies: tuple[_Part, ...]

    @classmethod
    def parse(cls, value: Any, where: str) -> Constraint:
        """Return a spec. Raises OverlayError naming ``where`` if it is malformed or needs more than this module supports."""
        spec = text(value, where)
        parts: dict[str, list[_Part]] = {"": [], "%": [], "^": []}
        position = 0
        while spec[position:].strip():
            match = _TOKEN.match(spec, position)
            if not match or not match.group().strip():
                raise OverlayError(f"{where} {shown(spec)} cannot be read at {shown(spec[position:])}: {_SUPPORTED}")
            versions = match.group("versions")
            part = _Part(
                match.group("name") or "", tuple(_Range.parse(one) for one in versions.split(",")) if versions else ()
            )
            parts[match.group("sigil") or ""].append(part)
            position = match.end()
        if len(parts[""]) > 1 or len(parts["%"]) > 1:
            raise OverlayError(f"{where} {shown(spec)} has more than one name or compiler: {_SUPPORTED}")
        return cls(
            parts[""][0] if parts[""] else _Part("", ()), parts["%"][0] if parts["%"] else None, tuple(parts["^"])
        )

    def matches(self, node: Node, lock: SpackLock) -> bool:
        """Return whether the spec chooses a package of a lock file."""
        if not self.own.matches(frozenset((node.name,)), node.version):
            return False
        compiler = lock.compiler(node)
        if self.compiler and (compiler is None or not self.compiler.matches(frozenset(compiler[:1]), compiler[1])):
            return False
        return all(_depends(node, part, lock) for part in self.dependencies)


def _depends(node: Node, part: _Part, lock: SpackLock) -> bool:
    """Return whether a package needs another one, by its name or a virtual name, to link or to run."""
    types = {"link", "run"}
    for user in lock.reached([node.key], types):
        for dependency in user.dependencies:
            if dependency.types & types:
                names = frozenset((dependency.name,)) | dependency.virtuals
                if part.matches(names, lock.nodes[dependency.key].version):
                    return True
    return False
