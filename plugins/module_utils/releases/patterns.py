# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Match the paths of releases with the pattern that describes the layout of the software root.

There are also the names that are no part of any release.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.versions import Key, version_key

_WILDCARD = re.compile(r"\{(\w*)\}|\*")
#: Conditions on the place where a version begins: before a number, and not inside of a date such as 2024-03-11.
_NOT_IN_DATE = r"(?<![0-9]{4}-(?=[0-9]{2}-[0-9]{2}(?![0-9])))(?<![0-9]{4}-[0-9]{2}-(?=[0-9]{2}(?![0-9])))"
_AT_NUMBER = rf"(?=v?[0-9]){_NOT_IN_DATE}"
#: The fields of a pattern that it need not have.
_OPTIONAL_FIELDS = ("vendor", "variant")
#: Names beside a version, each followed by the version, with which rez marks a release that is being written or is to be ignored.
NEGATIVE_MARKERS = (".building", ".ignore")

#: The files that define a rez package. One beside the versions of a package defines a package without a version.
PACKAGE_DEFINITIONS = ("package.py", "package.yaml", "package.yml")

#: Limits of a pattern. The time to match a name may grow as its length to the power of the number of wildcards in one level.
_MOST_LEVELS = 32
_MOST_WILDCARDS = 4


@dataclass(frozen=True)
class Release:
    """A release whose path matches a pattern."""

    package: str
    version: str
    #: Path below the software root.
    path: str
    #: The name beside the release that says it is being written or is to be ignored, as rez leaves it; empty if there is none.
    held_back_by: str = ""
    #: Which of several variants of the version it is; empty if the pattern has no variants.
    variant: str = ""

    def name(self, prefix: str) -> str:
        """Return the name of the release in the manifest store. ``prefix`` is that of ``entries.below_root``."""
        return f"{prefix}/{self.path}" if prefix else self.path

    def as_dict(self, prefix: str = "") -> dict[str, str]:
        """Return the package, the version, and the name as ``path``."""
        return {"package": self.package, "version": self.version, "path": self.name(prefix)}

    def sort_key(self, order: str = "vendor") -> tuple[str, Key, str]:
        """Return a key that sorts by package, then by version, oldest first, in one of the orders of versions, then by path."""
        return self.package, version_key(self.version, order), self.path


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern such as ``{package}/{version}``: one regular expression for each level of directories."""

    levels: tuple[re.Pattern[str], ...]
    #: The package of every release that matches, if the pattern has none; else empty.
    package: str = ""
    #: The name of each level that has no wildcard; None for the others.
    literals: tuple[str | None, ...] = ()

    @classmethod
    def parse(cls, text: str, package: str = "") -> Pattern:
        """Return the parsed pattern. ``package`` is the package of all releases if the pattern has no ``{package}``.

        Raises OverlayError if ``text`` is not a relative path with one version and one package, or has another field than these, a vendor
        and a variant.
        """
        fields = [match.group(1) for match in _WILDCARD.finditer(text) if match.group(1) is not None]
        required = ["version"] if package and "package" not in fields else ["package", "version"]
        given = [field for field in fields if field not in _OPTIONAL_FIELDS]
        if sorted(given) != required or any(fields.count(field) > 1 for field in _OPTIONAL_FIELDS):
            raise OverlayError(
                f"pattern {text!r} must have {{package}} and {{version}} once each, and no other {{field}} than {{vendor}} and {{variant}}"
            )
        parts = text.strip("/").split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise OverlayError(
                f"pattern {text!r} must be a path relative to the software root, without empty parts, '.' or '..'"
            )
        if len(parts) > _MOST_LEVELS or any(len(_WILDCARD.findall(part)) > _MOST_WILDCARDS for part in parts):
            raise OverlayError(
                f"pattern {text[:100]!r} is too long: it may have {_MOST_LEVELS} levels, with {_MOST_WILDCARDS} wildcards in each"
                " ({package}, {version} and *)"
            )
        return cls(
            tuple(re.compile(_expression(part), re.DOTALL) for part in parts),
            package if "package" not in fields else "",
            tuple(None if _WILDCARD.search(part) else part for part in parts),
        )

    def excludes(self, other: Pattern) -> bool:
        """Return whether no path below a release of one pattern can be below a release of the other."""
        return any(
            one is not None and two is not None and one != two for one, two in zip(self.literals, other.literals)
        )

    def is_beside_versions(self, level: int) -> bool:
        """Return whether what is at a level of a package is beside its versions."""
        above = self.levels[level - 1].groupindex if level else {}
        return "package" in above and "version" in self.levels[level].groupindex

    def markers(self, level: int, name: str) -> list[str]:
        """Return the names of the negative markers of a directory at a level; none if that level has no version in it."""
        match = self.levels[level].fullmatch(name)
        version = match.groupdict().get("version") if match else None
        return [marker + version for marker in NEGATIVE_MARKERS] if version else []

    def release(self, names: list[str], held_back_by: str = "") -> Release | None:
        """Return the release at the path that consists of ``names``, or None if the path does not match."""
        if len(names) != len(self.levels):
            return None
        fields = {}
        for level, name in zip(self.levels, names):
            match = level.fullmatch(name)
            if not match:
                return None
            fields.update(match.groupdict())
        package = fields.get("package", self.package)
        if fields.get("vendor"):
            # Two vendors may have packages of one name, and the newest of a package is chosen.
            package = f"{fields['vendor']}/{package}"
        return Release(package, fields["version"], "/".join(names), held_back_by, fields.get("variant", ""))


def _expression(part: str) -> str:
    """Return the regular expression for one component of a pattern. Wildcards do not match a leading dot.

    Where a name has a package before its version, the version begins at the last number that the pattern allows: the version of
    ``boost-1.87.0-beta1`` is ``1.87.0-beta1``. Without such a number it is what is left, as in ``llvm-main``.
    """
    fields = _WILDCARD.findall(part)
    start = "" if part.startswith(".") else r"(?!\.)"
    if "package" not in fields or "version" not in fields[fields.index("package") :]:
        return start + _wildcards(part, "(?P<{}>.+)", "")
    # The first group matches if there is such a number.
    numbered = _wildcards(part, "(?:.+)", _AT_NUMBER)
    return rf"{start}(?:(?={numbered}\Z)()|)" + _wildcards(part, "(?P<{}>.+)", f"(?(1){_AT_NUMBER}){_NOT_IN_DATE}")


def _wildcards(part: str, field: str, before_version: str) -> str:
    """Return the expression of a component, with ``field`` for each field, and ``before_version`` before the version."""
    expression = ""
    position = 0
    for match in _WILDCARD.finditer(part):
        expression += re.escape(part[position : match.start()])
        expression += before_version if match.group(1) == "version" else ""
        expression += field.format(match.group(1)) if match.group(1) else ".*"
        position = match.end()
    return expression + re.escape(part[position:])


#: Names that file servers, desktops and running software leave in a software root, and that are no part of a release: snapshot
#: directories, recycle bins, index directories, files that an NFS client renamed because they were deleted while open, and bytecode that
#: Python is writing.
DEFAULT_IGNORED_NAMES = (
    *(".nfs[0-9a-fA-F]*", ".snapshot", ".snapshots", "~snapshot", "#snapshot", "@Recently-Snapshot", ".zfs"),
    *("#recycle", "@Recycle", "@eaDir", "lost+found", ".DS_Store", "*.pyc.[0-9]*"),
)
#: The option ``ignore_names`` of a module. The documentation fragment options.ignore_names has the same default.
IGNORE_NAMES = {"type": "list", "elements": "str", "default": list(DEFAULT_IGNORED_NAMES)}

_MOST_PATTERNS = 100
_LONGEST_PATTERN = 255


class IgnoredNames:
    """Patterns of names, as the shell has them: ``*``, ``?`` and ``[...]``. A name is one component of a path."""

    def __init__(self, patterns: Sequence[str] = DEFAULT_IGNORED_NAMES) -> None:
        """Compile the patterns. Raises OverlayError if one of them is not the pattern of a name."""
        if len(patterns) > _MOST_PATTERNS:
            raise OverlayError(f"ignore_names has {len(patterns)} patterns: give at most {_MOST_PATTERNS}")
        # As Latin-1, each byte of a name is one character of the expression.
        texts = []
        for pattern in patterns:
            raw = to_bytes(pattern)
            if not raw or b"/" in raw or raw.count(b"*") > 4 or len(raw) > _LONGEST_PATTERN:
                raise OverlayError(
                    f"ignore_names: {show(raw)} is not the pattern of a name: give a name of at most {_LONGEST_PATTERN} bytes,"
                    " without a slash and with at most four *"
                )
            texts.append(fnmatch.translate(raw.decode("latin-1")))
        self._matches = re.compile("|".join(texts).encode("latin-1")).match if texts else None

    def __contains__(self, name: bytes) -> bool:
        """Return whether a name is ignored."""
        return self._matches is not None and self._matches(name) is not None

    def in_path(self, path: bytes) -> bool:
        """Return whether a component of a path is ignored."""
        return any(name in self for name in path.split(b"/") if name)
