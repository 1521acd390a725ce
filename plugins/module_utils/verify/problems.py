# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The problems that verification finds: their codes, what each means, what to do about it, and what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show

#: The number of problems that are returned one by one. All are counted.
MOST_KEPT = 1000

#: What mends a problem: making the layer again, or copying a data image again.
LAYER = "layer"
DATA_IMAGE = "data image"

_REBUILD = "repair it with 'repair: true', which builds the layer again"
_RELEASE = "restore the release on the software root, or remove it from the view"
_UPPER = "unmount the overlay, mend the upper layer, and finalize it again"


@dataclass(frozen=True)
class Code:
    """A kind of problem."""

    #: What is wrong, as a sentence about the path.
    sentence: str
    #: What to do about it.
    remedy: str
    #: What mends it, LAYER or DATA_IMAGE; empty if this host cannot.
    mended_by: str = ""


#: Every code of a problem.
CODES = {
    # The layer, compared with the manifests.
    "missing_entry": Code("the manifests have it, and the layer lacks it", _REBUILD, LAYER),
    "unknown_entry": Code("the layer has it, and no manifest does", _REBUILD, LAYER),
    "entry_differs": Code("its attributes differ from those in the manifest", _REBUILD, LAYER),
    "lost_hard_links": Code("its names are not all names of one file, as in the manifest", _REBUILD, LAYER),
    "digest_differs": Code("the image differs from its recorded digest", _REBUILD, LAYER),
    "data_image_differs": Code(
        "the data image differs from its recorded digest",
        "repair it with 'repair: true' and 'image_store', which copies it again",
        DATA_IMAGE,
    ),
    "record_damaged": Code("the record of the generation cannot be used", "deploy the view again"),
    "manifest_unusable": Code(
        "the layer cannot be compared, since a manifest is missing or is another one",
        "restore the manifest in the store, or deploy the view again",
    ),
    "writable_by_others": Code(
        "users other than root can change the layer", "check its content, then chown it to root and chmod it to go-w"
    ),
    # The xattrs of overlayfs.
    "metacopy_without_redirect": Code("it has no content, and no xattr says where its content is", _REBUILD, LAYER),
    "redirect_without_metacopy": Code(
        "it reads as zeros, since its mark as a metadata copy is missing", _REBUILD, LAYER
    ),
    "invalid_metacopy": Code("its mark as a metadata copy has a value that the kernel refuses", _REBUILD, LAYER),
    "relative_redirect": Code("its redirect is not an absolute path", _REBUILD, LAYER),
    "escaping_redirect": Code("its redirect has '..' as a component", _REBUILD, LAYER),
    "double_slash_redirect": Code("its redirect has an empty component, which the kernel refuses", _REBUILD, LAYER),
    "missing_opaque": Code(
        "the directory is not opaque, so the kernel looks up its names in the data layer", _REBUILD, LAYER
    ),
    "whiteout_in_opaque": Code("it is a whiteout in an opaque directory, where it hides nothing", _REBUILD, LAYER),
    # The data layers.
    "missing_target": Code("no data layer has the file with its content", _RELEASE),
    "wrong_root": Code(
        "the kernel reads the file from another software root than that of its release",
        "move what is at this path out of the other software root, and restore the release on its own one",
    ),
    "target_not_file": Code("its content is not in a regular file", _RELEASE),
    "wrong_size": Code("the file with its content has another size", _RELEASE),
    "wrong_time": Code("the file with its content has another mtime", _RELEASE),
    "redirect_through_symlink": Code("the path of its content has a symbolic link, which the kernel refuses", _RELEASE),
    "redirect_across_mount": Code(
        "the path of its content leads to another mount, which the kernel refuses",
        "unmount what is mounted inside the software root, or make it a software root of its own",
    ),
    "unreadable_target": Code(
        "the file with its content cannot be opened", "make it readable for root of this host on the file server"
    ),
    "content_differs": Code("the SHA-256 of its content differs from that in the manifest", _RELEASE),
    "release_differs": Code("the release on the software root differs from its manifest", _RELEASE),
    # The mount.
    "mount_differs": Code("the mount differs from what is declared", "deploy the view again"),
    # Upper layers.
    "opaque_over_uncovered": Code("the opaque directory hides names of the lower layers that it lacks", _UPPER),
    "orphan_whiteout": Code("the whiteout hides no name of the lower layers", _UPPER),
    "duplicate_redirect": Code("another directory of the upper layer is merged with the same lower directory", _UPPER),
    "missing_impure": Code(
        "the directory has copied-up entries and no mark of that, so it lists wrong inode numbers", _UPPER
    ),
}


@dataclass(frozen=True)
class FoundProblem:
    """One problem at a path of a view, upper layer or release."""

    path: bytes
    code: str
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the problem as an element of the return value ``problems``."""
        kind = CODES[self.code]
        return {
            "path": show(self.path),
            "code": self.code,
            "detail": self.detail or kind.sentence,
            "remedy": kind.remedy,
        }


@dataclass
class Findings:
    """The problems of a verification so far: the first ones, and the number of each code."""

    first: list[FoundProblem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    #: The number of entries that were verified.
    checked: int = 0

    def add(self, path: bytes, code: str, detail: str = "") -> None:
        """Count a problem, and keep it if it is one of the first. Raises KeyError if there is no such code."""
        if code not in CODES:
            raise KeyError(code)
        self.counts[code] = self.counts.get(code, 0) + 1
        if len(self.first) < MOST_KEPT:
            self.first.append(FoundProblem(path, code, detail))

    def merge(self, other: Findings) -> None:
        """Add the problems of another verification."""
        for code, count in other.counts.items():
            self.counts[code] = self.counts.get(code, 0) + count
        self.first = [*self.first, *other.first][:MOST_KEPT]
        self.checked += other.checked

    @property
    def total(self) -> int:
        """The number of all problems."""
        return sum(self.counts.values())

    def mended_by(self, what: str) -> list[FoundProblem]:
        """Return those of the first problems that LAYER or DATA_IMAGE mends."""
        return [one for one in self.first if CODES[one.code].mended_by == what]

    @property
    def mended(self) -> set[str]:
        """What mends all the problems that this host can mend: LAYER, DATA_IMAGE, both, or neither."""
        return {CODES[code].mended_by for code in self.counts} - {""}

    def summary(self) -> str:
        """Return the counts as a phrase, such as ``3 problems: 2 missing_target, 1 wrong_size``."""
        counts = ", ".join(f"{count} {code}" for code, count in sorted(self.counts.items()))
        return f"{self.total} {'problem' if self.total == 1 else 'problems'}: {counts}"


def as_record(findings: Findings) -> dict[str, Any]:
    """Return findings as JSON values, from which ``from_record`` makes the same again."""
    return {
        "problems": [[one.path.decode("latin-1"), one.code, one.detail] for one in findings.first],
        "counts": findings.counts,
        "checked": findings.checked,
    }


def from_record(fields: Mapping[str, Any]) -> Findings:
    """Return the findings that ``as_record`` described. Raises KeyError, TypeError or ValueError if a field is invalid."""
    findings = Findings(checked=int(fields["checked"]))
    for path, code, detail in fields["problems"]:
        findings.first.append(FoundProblem(str(path).encode("latin-1"), str(code), str(detail)))
    for code, count in fields["counts"].items():
        findings.counts[code] = int(count)
    if not {*findings.counts, *(one.code for one in findings.first)} <= CODES.keys():
        raise ValueError("it has an unknown code")
    return findings
