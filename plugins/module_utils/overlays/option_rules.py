# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules about settings of an overlay: one table of the combinations that are refused, and why.

The sources are Documentation/filesystems/overlayfs.rst, fs/overlayfs/params.c and trials; tests/kernel tries each rule on real mounts.
The rules apply to a declaration after ``pinned`` has set the missing settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: The kernel refuses the mount.
CONFLICT = "conflict"
#: The kernel mounts the overlay and ignores a setting.
IGNORED = "ignored"
#: The kernel mounts the overlay, and files have the wrong content.
DANGEROUS = "dangerous"
#: The kernel mounts the overlay, and before Linux 6.16 files cannot be opened.
OLD_KERNELS = "old kernels"

#: Settings by name. A setting without a value has the value None.
Given = Mapping[str, "str | None"]


@dataclass(frozen=True)
class Rule:
    """A combination of settings that is refused. It matches if all of its conditions hold."""

    kind: str
    #: The settings, each with the values that match.
    given: tuple[tuple[str, tuple[str | None, ...]], ...]
    #: What the message says after the settings: what is wrong, why, and what to do.
    reason: str
    #: Whether the overlay has an upper layer, and whether it has data layers. None matches both.
    upper: bool | None = None
    data: bool | None = None
    #: A setting with which the rule does not match.
    unless: tuple[str, str | None] | None = None

    def matches(self, settings: Given, upper: bool, data: bool) -> bool:
        """Return whether the rule refuses these settings of an overlay with or without an upper layer and data layers."""
        if self.upper not in (None, upper) or self.data not in (None, data):
            return False
        if self.unless and self.unless in settings.items():
            return False
        return all(name in settings and settings[name] in values for name, values in self.given)

    def sentence(self, settings: Given) -> str:
        """Return the message about these settings: their names and values, and the reason."""
        words = [name if settings[name] is None else f"{name}={settings[name]}" for name, _values in self.given]
        return f"option{'s' if len(words) > 1 else ''} {' and '.join(words)} {self.reason}"


_ON: tuple[str | None, ...] = ("on",)
_WORD: tuple[str | None, ...] = (None,)
_USERXATTR = ("userxattr", None)

#: The message is that of the first rule that matches, so the rule about wrong content is first.
RULES = (
    Rule(
        DANGEROUS,
        (("nfs_export", _ON),),
        "excludes data layers, since a file opened by its NFS file handle would read zeros: leave nfs_export out",
        data=True,
    ),
    Rule(
        CONFLICT,
        (("userxattr", _WORD), ("metacopy", _ON)),
        "exclude each other, since xattrs that users can set must not say where content is: leave one of them out",
    ),
    Rule(
        CONFLICT,
        (("userxattr", _WORD), ("redirect_dir", ("on", "follow", "off"))),
        "exclude each other, since xattrs that users can set must not say where content is: leave one of them out",
    ),
    Rule(
        OLD_KERNELS,
        (("redirect_dir", ("nofollow",)),),
        "excludes data layers, since the kernel finds the content of files through redirects: use redirect_dir=on",
        data=True,
        unless=_USERXATTR,
    ),
    Rule(
        OLD_KERNELS,
        (("redirect_dir", ("off",)),),
        "excludes data layers, since the kernel finds the content of files through redirects, and 'off' may not follow them: use"
        " redirect_dir=on",
        data=True,
        unless=_USERXATTR,
    ),
    Rule(
        OLD_KERNELS,
        (("metacopy", ("off",)),),
        "excludes data layers, since the files of the metadata layer are metacopies: use metacopy=on",
        data=True,
        unless=_USERXATTR,
    ),
    Rule(
        CONFLICT,
        (("metacopy", _ON), ("redirect_dir", ("nofollow",))),
        "exclude each other, since a renamed metacopy finds its content through a redirect: use redirect_dir=on",
    ),
    Rule(
        CONFLICT,
        (("metacopy", _ON), ("redirect_dir", ("follow", "off"))),
        "exclude each other with an upper layer, since a renamed metacopy gets a redirect: use redirect_dir=on",
        upper=True,
    ),
    Rule(
        CONFLICT,
        (("nfs_export", _ON), ("metacopy", _ON)),
        "exclude each other, since a file handle leads to the metadata of a file and not to its content: use metacopy=off",
        upper=True,
    ),
    Rule(
        CONFLICT,
        (("nfs_export", _ON), ("index", ("off",))),
        "exclude each other, since the index is what leads from a file handle to a copied-up file: use index=on",
        upper=True,
    ),
    Rule(
        CONFLICT,
        (("nfs_export", _ON), ("index", ("off",)), ("redirect_dir", ("nofollow",))),
        "exclude each other without an upper layer: leave index out",
        upper=False,
    ),
    Rule(IGNORED, (("index", _ON),), "needs an upper layer: leave it out, or give 'upper'", upper=False),
    Rule(IGNORED, (("volatile", _WORD),), "needs an upper layer: leave it out, or give 'upper'", upper=False),
    Rule(
        IGNORED,
        (("nfs_export", _ON),),
        "needs redirect_dir=nofollow without an upper layer: give both",
        upper=False,
        unless=("redirect_dir", "nofollow"),
    ),
)

#: Why the kernel changes a setting to a value when it mounts. This depends on file systems, so only the live mount shows it.
FALLBACKS = {
    ("index", "off"): "the file system of a layer has no file handles, or that of the upper layer has no xattrs",
    ("nfs_export", "off"): "the file system of a layer has no file handles, or that of the upper layer has no xattrs",
    ("metacopy", "off"): "the file system of the upper layer has no xattrs",
    ("redirect_dir", "nofollow"): "the file system of the upper layer has no xattrs",
    ("redirect_dir", "follow"): "the file system of the upper layer has no xattrs",
}


def refusal(settings: Given, upper: bool, data: bool) -> str | None:
    """Return the message of the first rule that refuses the settings; None if no rule does."""
    for rule in RULES:
        if rule.matches(settings, upper, data):
            return rule.sentence(settings)
    return None


def pinned(settings: Given, upper: bool, data: bool, redirect: bool = False) -> dict[str, str | None]:
    """Return the settings with those added that change what users see, since hosts have different defaults for them.

    - ``metacopy`` and ``redirect_dir``: with data layers the kernel finds content through them. With an upper layer they copy up
      metadata alone and allow renaming directories. ``nfs_export`` excludes ``metacopy`` there.
    - ``index``, with an upper layer: it preserves hard links, and lets the kernel refuse an upper layer that is in use or was used over
      another lower layer.
    - ``xino``: it gives files constant inode numbers, for which listing a directory looks up each name in all layers. It is off where
      that would reach a file server through ordinary lower layers: with an upper layer and no data layers, and with strategy redirect
      (``redirect``). An exported overlay has it, since NFS clients rely on inode numbers.

    With ``userxattr`` the kernel chooses ``metacopy`` and ``redirect_dir``.
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
