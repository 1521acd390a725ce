# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the releases of a view from the packages of a resolved environment.

No package is dropped without a reason: each one becomes a release or a LeftOut.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers import json_values

DEFAULT_PATTERN = "{package}/{version}"
#: The choices of the option ``left_out``.
FAIL, IGNORE, RETURN = "fail", "ignore", "return"

_FIELD = re.compile(r"\{([a-z_.]+)(?::([1-9][0-9]{0,2}))?\}")
_MOST_SHOWN = 20
_path_problem = records.relative()


@dataclass(frozen=True)
class Template:
    """A path with fields such as ``{package}``; ``{hash:7}`` stands for the first 7 characters of a field."""

    text: str

    @classmethod
    def parse(cls, text: Any, option: str, known: Sequence[str]) -> Template:
        """Return a template. Raises OverlayError naming the option if it has a field that is not ``known`` or a stray brace."""
        text = json_values.text(text, option)
        for match in _FIELD.finditer(text):
            if match.group(1) not in known:
                fields = ", ".join(f"{{{name}}}" for name in known)
                raise OverlayError(
                    f"{option} {shown(text)} has the unknown field {match.group()}; the fields are {fields}"
                )
        if re.search(r"[{}]", _FIELD.sub("", text)):
            raise OverlayError(
                f"{option} {shown(text)} has a brace that does not belong to a field such as {{package}}"
            )
        return cls(text.strip("/"))

    def fill(self, fields: Mapping[str, str], option: str) -> str:
        """Return the path for the values of the fields; empty for ``/``. Raises OverlayError if the result is not a clean path."""

        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            if name not in fields:
                raise OverlayError(f"{option} {shown(self.text)} needs {{{name}}}, which {_name(fields)} does not have")
            if "/" in fields[name]:
                raise OverlayError(f"{name} of {_name(fields)} has a slash: {shown(fields[name])}")
            return fields[name][: int(match.group(2))] if match.group(2) else fields[name]

        path = _FIELD.sub(value, self.text)
        problem = _path_problem(path) if path else None
        if problem:
            raise OverlayError(f"{option} {shown(self.text)} gives no path for {_name(fields)}: it {problem}")
        return path


@dataclass(frozen=True)
class Package:
    """A package of a resolved environment."""

    #: The values that templates may use; ``package`` and ``version`` are always there.
    fields: Mapping[str, str]
    #: Directory below the software root that the pattern is relative to; empty for the software root itself.
    directory: str = ""
    #: Where the package appears in the view, if the environment says so.
    at: Template | None = None
    #: Why the package has no release; empty if it has one.
    reason: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A package that does not become a release."""

    package: str
    version: str
    reason: str
    #: Whether the caller asked for it, or there are no files that a view could show.
    expected: bool = True

    def __str__(self) -> str:
        return shown(f"{self.package} {self.version}".rstrip(), quoted=False) + f" {self.reason}"


@dataclass(frozen=True)
class Environment:
    """The packages that a resolver chose, and what it lists besides them."""

    packages: Sequence[Package]
    #: The names of the fields that templates may use.
    known_fields: Sequence[str]
    left_out: Sequence[LeftOut] = ()


@dataclass(frozen=True)
class Resolving:
    """The options that all filters have. Each is checked when it is used."""

    pattern: Any = DEFAULT_PATTERN
    at: Any = None
    exclude: Any = None
    left_out: Any = FAIL


@dataclass
class _Chosen:
    releases: list[Any] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def releases(environment: Environment, request: Resolving) -> list[Any]:
    """Return the releases of an environment as the key ``releases`` of a view takes them, or the packages that are left out.

    Raises OverlayError if an option is wrong, two packages have one path, or a package unexpectedly has no release.
    """
    if request.left_out not in (FAIL, IGNORE, RETURN):
        raise OverlayError(f"left_out must be '{FAIL}', '{IGNORE}' or '{RETURN}', not {shown(request.left_out)}")
    chosen = _choose(environment, request)
    if request.left_out == RETURN:
        return [{"package": one.package, "version": one.version, "reason": one.reason} for one in chosen.left_out]
    unexpected = [one for one in chosen.left_out if not one.expected]
    if unexpected and request.left_out == FAIL:
        names = "; ".join(map(str, unexpected[:_MOST_SHOWN]))
        more = f"; and {len(unexpected) - _MOST_SHOWN} more" if len(unexpected) > _MOST_SHOWN else ""
        count = "1 package has no release" if len(unexpected) == 1 else f"{len(unexpected)} packages have no release"
        raise OverlayError(
            f"{count}: {names}{more}. Name each of them in exclude, or leave all of them out with left_out='{IGNORE}'"
        )
    return chosen.releases


def _choose(environment: Environment, request: Resolving) -> _Chosen:
    pattern = Template.parse(request.pattern, "pattern", environment.known_fields)
    at = None if request.at is None else Template.parse(request.at, "at", environment.known_fields)
    exclude = _globs(request.exclude)
    chosen = _Chosen(left_out=[*environment.left_out])
    taken: dict[str, Package] = {}
    for package in environment.packages:
        fields = package.fields
        if any(fnmatch.fnmatchcase(fields["package"], glob) for glob in exclude):
            chosen.left_out.append(LeftOut(fields["package"], fields["version"], "is named in exclude"))
            continue
        if package.reason:
            chosen.left_out.append(LeftOut(fields["package"], fields["version"], package.reason, expected=False))
            continue
        path = "/".join(part for part in (package.directory, pattern.fill(fields, "pattern")) if part)
        other = taken.setdefault(path, package)
        if other is not package:
            raise OverlayError(
                f"{_name(other.fields)} and {_name(fields)} have one path, {shown(path)}: add a field to the pattern that differs"
            )
        place = package.at or at
        chosen.releases.append(path if place is None else {"release": path, "at": place.fill(fields, "at") or "/"})
    return chosen


def _globs(exclude: Any) -> list[str]:
    """Return the globs of the option ``exclude``, which is text or a list of texts."""
    if exclude is None:
        return []
    if isinstance(exclude, str):
        exclude = [exclude]
    return [
        json_values.text(glob, f"exclude[{position}]")
        for position, glob in enumerate(json_values.sequence(exclude, "exclude"))
    ]


def below(path: str, root: str) -> str | None:
    """Return a clean absolute path relative to another one; empty if both are the same, None if it is outside."""
    if path == root:
        return ""
    prefix = root.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _name(fields: Mapping[str, str]) -> str:
    """Return the name of a package for a message."""
    name = f"{fields['package']} {fields['version']}".rstrip()
    return shown(f"{name} ({fields['hash'][:7]})" if "hash" in fields else name, quoted=False)


def shown(value: Any, quoted: bool = True) -> str:
    """Return a value for a message: printable, cut to a length that can be read, and text in quotes unless told otherwise."""
    text = str(value) if isinstance(value, str) else repr(value)
    text = text if len(text) <= 200 else text[:200] + "..."
    printable = show(text.encode("utf-8", "backslashreplace"))
    return f"'{printable}'" if quoted and isinstance(value, str) else printable
