# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a Spack lock file, ``spack.lock``: which packages an environment has, and what each of them depends on.

The format is described in "Lockfile Format" of Spack's documentation. Versions before 4 (Spack 0.18) have other keys and are refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.json_values import (
    mapping,
    member,
    parsed,
    sequence,
    text,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.resolved import shown

_WHAT = "the Spack lock file"
_OLDEST_FORMAT = 4
#: Virtual packages that a compiler provides. Since Spack 1.0 it is a build dependency with one of these.
_LANGUAGES = ("c", "cxx", "fortran")


@dataclass(frozen=True)
class Dependency:
    """An edge of the lock file's graph."""

    name: str
    key: str
    types: frozenset[str]
    virtuals: frozenset[str]

    @classmethod
    def parse(cls, value: Any, where: str) -> Dependency:
        """Return a dependency. Raises OverlayError naming the key if it is malformed."""
        values = mapping(value, where)
        parameters = mapping(values.get("parameters") or {}, f"{where}.parameters")
        # Spack before 0.21 has the types in the dependency itself.
        kinds, place = (
            (parameters["deptypes"], f"{where}.parameters.deptypes")
            if "deptypes" in parameters
            else (member(values, "type", where), f"{where}.type")
        )
        virtuals = sequence(parameters.get("virtuals") or (), f"{where}.parameters.virtuals")
        return cls(
            text(member(values, "name", where), f"{where}.name"),
            text(member(values, "hash", where), f"{where}.hash"),
            frozenset(text(kind, place) for kind in sequence(kinds, place)),
            frozenset(text(virtual, f"{where}.parameters.virtuals") for virtual in virtuals),
        )


@dataclass(frozen=True)
class Node:
    """A package of the lock file."""

    #: Its hash, by which others refer to it.
    key: str
    name: str
    version: str
    namespace: str
    #: The fields ``architecture`` and ``architecture.*``.
    architecture: Mapping[str, str]
    #: Name and version, as Spack before 1.0 records them.
    compiler: tuple[str, str] | None
    dependencies: tuple[Dependency, ...]
    #: Where a package is that Spack did not install; empty if it did.
    external: str

    @classmethod
    def parse(cls, key: str, value: Any, where: str) -> Node:
        """Return a package. Raises OverlayError naming the key if it is malformed."""
        values = mapping(value, where)
        dependencies = sequence(values.get("dependencies") or (), f"{where}.dependencies")
        return cls(
            key,
            text(member(values, "name", where), f"{where}.name"),
            text(member(values, "version", where), f"{where}.version"),
            text(values["namespace"], f"{where}.namespace") if values.get("namespace") else "",
            _architecture(mapping(member(values, "arch", where), f"{where}.arch"), f"{where}.arch"),
            _compiler(values.get("compiler"), f"{where}.compiler"),
            tuple(Dependency.parse(one, f"{where}.dependencies[{at}]") for at, one in enumerate(dependencies)),
            _external(values.get("external"), f"{where}.external"),
        )


def _architecture(values: Mapping[Any, Any], where: str) -> dict[str, str]:
    platform = text(member(values, "platform", where), f"{where}.platform")
    system = text(member(values, "platform_os", where), f"{where}.platform_os")
    target = member(values, "target", where)
    if isinstance(target, Mapping):
        target = member(target, "name", f"{where}.target")
    target = text(target, f"{where}.target")
    return {
        "architecture": f"{platform}-{system}-{target}",
        "architecture.platform": platform,
        "architecture.os": system,
        "architecture.target": target,
    }


def _compiler(value: Any, where: str) -> tuple[str, str] | None:
    if value is None:
        return None
    values = mapping(value, where)
    return text(member(values, "name", where), f"{where}.name"), text(
        member(values, "version", where), f"{where}.version"
    )


def _external(value: Any, where: str) -> str:
    if not value:
        return ""
    values = mapping(value, where)
    path = values.get("path")
    module = values.get("module")
    return text(path, f"{where}.path") if path or not module else "a module"


@dataclass
class SpackLock:
    """The packages of a lock file by hash, and the hashes of its roots."""

    roots: list[str] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)

    @classmethod
    def parse(cls, lock: Any) -> SpackLock:
        """Return a lock file, parsed or as text, with the environments that it includes.

        Raises OverlayError naming the key if it is not a lock file, is too old, or refers to a package that it does not have.
        """
        content = mapping(parsed(lock, _WHAT), _WHAT)
        meta = mapping(member(content, "_meta", _WHAT), "_meta")
        version = member(meta, "lockfile-version", "_meta")
        if not isinstance(version, int) or version < _OLDEST_FORMAT:
            raise OverlayError(
                f"_meta.lockfile-version is {shown(version)}, and {_OLDEST_FORMAT} (Spack 0.18) is the oldest that can be read:"
                " write the lock file again with spack concretize --force"
            )
        found = cls()
        waiting: deque[tuple[str, Any]] = deque([("", content)])
        while waiting:
            prefix, one = waiting.popleft()
            found._add(mapping(one, prefix.rstrip(".") or _WHAT), prefix)
            included = one.get("include_concrete") or {}
            for path, inner in mapping(included, f"{prefix}include_concrete").items():
                waiting.append((f"{prefix}include_concrete.{shown(path, quoted=False)}.", inner))
        found._check_references()
        return found

    def reached(self, start: list[str], types: set[str]) -> Iterator[Node]:
        """Yield packages and what they depend on by dependencies of some types, each once, in the order of the lock file."""
        waiting = deque(dict.fromkeys(start))
        met = set(waiting)
        while waiting:
            node = self.nodes[waiting.popleft()]
            yield node
            for dependency in node.dependencies:
                if dependency.types & types and dependency.key not in met:
                    met.add(dependency.key)
                    waiting.append(dependency.key)

    def compiler(self, node: Node) -> tuple[str, str] | None:
        """Return the name and version of the compiler of a package; None if the lock file does not say it."""
        if node.compiler:
            return node.compiler
        for language in _LANGUAGES:
            for dependency in node.dependencies:
                if language in dependency.virtuals:
                    compiler = self.nodes[dependency.key]
                    return compiler.name, compiler.version
        return None

    def _add(self, content: Mapping[Any, Any], prefix: str) -> None:
        """Add the roots and packages of a lock file, or of an environment that it includes. ``prefix`` is the place of its keys."""
        what = prefix.rstrip(".") or _WHAT
        for position, root in enumerate(sequence(member(content, "roots", what), f"{prefix}roots")):
            where = f"{prefix}roots[{position}]"
            self.roots.append(text(member(mapping(root, where), "hash", where), f"{where}.hash"))
        specs = mapping(member(content, "concrete_specs", what), f"{prefix}concrete_specs")
        for key, spec in specs.items():
            where = f"{prefix}concrete_specs.{shown(key, quoted=False)}"
            node = Node.parse(text(key, where), spec, where)
            self.nodes.setdefault(node.key, node)

    def _check_references(self) -> None:
        for root in self.roots:
            if root not in self.nodes:
                raise OverlayError(f"roots has the hash {shown(root)}, which concrete_specs does not have")
        for node in self.nodes.values():
            for dependency in node.dependencies:
                if dependency.key not in self.nodes:
                    raise OverlayError(
                        f"concrete_specs.{shown(node.key, quoted=False)}.dependencies has the hash {shown(dependency.key)},"
                        " which concrete_specs does not have"
                    )
