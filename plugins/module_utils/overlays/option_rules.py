# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which settings of an overlay go together: one table of what the kernel refuses, what it passes over, and what loses data.

The sources are Documentation/filesystems/overlayfs.rst, fs/overlayfs/params.c and trials; tests/kernel holds each rule against real
mounts. The rules are about a declaration after ``pinned`` has filled in what it left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: The kernel refuses the mount.
CONFLICT = "conflict"
#: The kernel mounts, and does something else than it was told.
IGNORED = "ignored"
#: The kernel mounts as told, and files read as something else than they are.
DANGEROUS = "dangerous"
#: Before Linux 6.16 the kernel mounts and the files cannot be opened.
OLD_KERNELS = "old kernels"

#: Settings by name; a bare word has the value None.
Given = Mapping[str, "str | None"]


@dataclass(frozen=True)
class Rule:
    """One combination that is refused. It matches when all of its conditions hold."""

    kind: str
    #: Settings, each with the values that are meant.
    given: tuple[tuple[str, tuple[str | None, ...]], ...]
    #: What users read after the settings.
    reason: str
    #: Whether there is an upper layer, and whether there are data-only layers; None where it does not matter.
    upper: bool | None = None
    data: bool | None = None
    #: A setting that makes it right.
    unless: tuple[str, str | None] | None = None

    def matches(self, settings: Given, upper: bool, data: bool) -> bool:
        if self.upper not in (None, upper) or self.data not in (None, data):
            return False
        if self.unless and self.unless in settings.items():
            return False
        return all(name in settings and settings[name] in values for name, values in self.given)

    def sentence(self, settings: Given) -> str:
        """Return the reason, with the settings as they were given."""
        words = [name if settings[name] is None else f"{name}={settings[name]}" for name, _values in self.given]
        return f"option{'s' if len(words) > 1 else ''} {' and '.join(words)} {self.reason}"


_ON: tuple[str | None, ...] = ("on",)
_WORD: tuple[str | None, ...] = (None,)
_USERXATTR = ("userxattr", None)

#: The first one that matches is told, so what loses data comes first.
RULES = (
    Rule(
        DANGEROUS,
        (("nfs_export", _ON),),
        "cannot go with data layers: files opened by their NFS file handle would read zeros",
        data=True,
    ),
    Rule(
        CONFLICT,
        (("userxattr", _WORD), ("metacopy", _ON)),
        "exclude each other: attributes that users can set are not to say where content is",
    ),
    Rule(
        CONFLICT,
        (("userxattr", _WORD), ("redirect_dir", ("on", "follow", "off"))),
        "exclude each other: attributes that users can set are not to say where content is",
    ),
    Rule(
        OLD_KERNELS,
        (("redirect_dir", ("nofollow",)),),
        "cannot go with data layers: the content of files is found through redirects",
        data=True,
        unless=_USERXATTR,
    ),
    Rule(
        OLD_KERNELS,
        (("redirect_dir", ("off",)),),
        "cannot go with data layers: the content of files is found through redirects, which 'off' may leave unfollowed",
        data=True,
        unless=_USERXATTR,
    ),
    Rule(
        OLD_KERNELS,
        (("metacopy", ("off",)),),
        "cannot go with data layers: the files of the layer are metadata copies",
        data=True,
        unless=_USERXATTR,
    ),
    Rule(
        CONFLICT,
        (("metacopy", _ON), ("redirect_dir", ("nofollow",))),
        "exclude each other: a metadata copy that was renamed finds its content through a redirect",
    ),
    Rule(
        CONFLICT,
        (("metacopy", _ON), ("redirect_dir", ("follow", "off"))),
        "exclude each other with an upper layer: a metadata copy that is renamed gets a redirect",
        upper=True,
    ),
    Rule(
        CONFLICT,
        (("nfs_export", _ON), ("metacopy", _ON)),
        "exclude each other: a file handle leads to the layer that has the metadata, and not to the content",
        upper=True,
    ),
    Rule(
        CONFLICT,
        (("nfs_export", _ON), ("index", ("off",))),
        "exclude each other: what was copied up is found by its file handle through the index",
        upper=True,
    ),
    Rule(
        CONFLICT,
        (("nfs_export", _ON), ("index", ("off",)), ("redirect_dir", ("nofollow",))),
        "exclude each other: leave index out where there is no upper layer",
        upper=False,
    ),
    Rule(IGNORED, (("index", _ON),), "is for overlays with an upper layer", upper=False),
    Rule(IGNORED, (("volatile", _WORD),), "is for overlays with an upper layer", upper=False),
    Rule(
        IGNORED,
        (("nfs_export", _ON),),
        "needs redirect_dir=nofollow where there is no upper layer",
        upper=False,
        unless=("redirect_dir", "nofollow"),
    ),
)

#: What the kernel falls back to by itself, by setting, and why. That depends on file systems, so it shows only once it is mounted.
FALLBACKS = {
    ("index", "off"): "the file system of a layer has no file handles, or that of the upper layer no attributes",
    ("nfs_export", "off"): "the file system of a layer has no file handles, or that of the upper layer no attributes",
    ("metacopy", "off"): "the file system of the upper layer has no attributes",
    ("redirect_dir", "nofollow"): "the file system of the upper layer has no attributes",
    ("redirect_dir", "follow"): "the file system of the upper layer has no attributes",
}


def refusal(settings: Given, upper: bool, data: bool) -> str | None:
    """Return the sentence about the first combination that cannot be; None where all is well."""
    for rule in RULES:
        if rule.matches(settings, upper, data):
            return rule.sentence(settings)
    return None


def pinned(settings: Given, upper: bool, data: bool, redirect: bool = False) -> dict[str, str | None]:
    """Return the settings with those made explicit on which it depends what files are: hosts have other defaults for them.

    With data layers: metacopy and redirect_dir, through which content is found. With an upper layer: copying up of metadata alone and
    renaming of directories, unless the overlay is exported, where the kernel can do only the latter; the index, which holds hard links
    together and knows an upper layer that is in use or was used over another lower layer; and ``xino``, by which the kernel gives files
    numbers that stay the same, and looks up each name in all layers for that when it lists a directory.

    So that listings do not reach a file server, ``xino`` is off where files are looked up in ordinary lower layers: without data layers,
    and with strategy redirect (``redirect``). NFS clients go by the numbers, so an overlay that is exported has it.

    With userxattr the kernel makes the choice of metacopy and redirect_dir.
    """
    chosen = dict(settings)
    if redirect:
        chosen.setdefault("xino", "off")
    trusted = "userxattr" not in settings
    if trusted and (data or upper):
        chosen.setdefault("redirect_dir", "on")
    if trusted and data:
        chosen.setdefault("metacopy", "on")
    if upper:
        chosen.setdefault("nfs_export", "off")
        if trusted:
            possible = chosen["redirect_dir"] == "on" and chosen["nfs_export"] == "off"
            chosen.setdefault("metacopy", "on" if possible else "off")
        chosen.setdefault("index", "on")
        chosen.setdefault("xino", "off" if not data and chosen["nfs_export"] == "off" else "auto")
    return chosen
