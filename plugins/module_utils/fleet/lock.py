# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks: what the views of a farm were resolved to, so that every host and every batch of a rollout shows the same.

A lock is a JSON object that is readable, and small enough to be kept in git and reviewed as a diff: each view has its releases with the
digests of their manifests, and the generation that these make.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import data_choice
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import LockedImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.limits import MOST_PATTERNS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError, RecordKind

#: The number of the newest format. A lock without links is written in format 2, and in format 1 if it has no data images either, so that
#: earlier versions can read it.
LOCK_FORMAT = 3
_FORMAT_WITHOUT_LINKS = 2
_FORMAT_WITHOUT_DATA_IMAGES = 1

_MOST_VIEWS = 10_000
_MOST_RELEASES = 100_000
_MOST_LINKS = 100_000
#: Bytes of the longest lock.
LARGEST_LOCK = 1 << 27

_PATTERNS = records.list_of(records.text(), MOST_PATTERNS)
_RELEASE = records.fields(
    {"release": records.relative(), "digest": records.digest},
    {"at": records.relative(0), "source": records.relative(0), "include": _PATTERNS, "exclude": _PATTERNS},
)
_LEAVING = records.fields({"release": records.relative(), "until": records.text(20)})
_DATA_IMAGE = records.fields(
    {
        "release": records.relative(),
        "kind": records.word(data_choice.TRACE, data_choice.EVERYTHING),
        "digest": records.digest,
        "bytes_on_disk": records.integer(0, records.LARGEST_SIZE),
        "opens": records.integer(0, records.LARGEST_SIZE),
        "complete": records.boolean,
    }
)
_LINK = records.fields({"path": records.relative(), "target": records.text()})
_VIEW = records.fields(
    {
        "name": records.form("[A-Za-z0-9][A-Za-z0-9._-]{0,99}"),
        "generation": records.form("[0-9a-f]{16}"),
        "releases": records.list_of(_RELEASE, _MOST_RELEASES, 1),
        "leaving": records.list_of(_LEAVING, _MOST_RELEASES),
        "image_digest": records.nullable(records.digest),
    },
    {
        "data_images": records.list_of(_DATA_IMAGE, 2 * _MOST_RELEASES),
        "links": records.list_of(_LINK, _MOST_LINKS),
    },
)
_LOCK = RecordKind(
    records.fields(
        {
            "format": records.integer(_FORMAT_WITHOUT_DATA_IMAGES, LOCK_FORMAT),
            "views": records.list_of(_VIEW, _MOST_VIEWS),
        }
    ),
    LARGEST_LOCK,
    "format",
    LOCK_FORMAT,
    oldest=_FORMAT_WITHOUT_DATA_IMAGES,
)


@dataclass(frozen=True)
class LockedView:
    """What one view was resolved to."""

    name: str
    #: The name of the generation that these releases make.
    generation: str
    #: As a module takes them, each with the digest of its manifest.
    releases: tuple[dict[str, Any], ...]
    #: The releases that were no longer declared and linger, each with the time after which the next resolution leaves it out.
    leaving: tuple[dict[str, str], ...] = ()
    #: The digest of the image that was built for all hosts; None if each host builds its layer.
    image_digest: str | None = None
    #: The data images of its releases, of each kind that some host wants.
    data_images: tuple[LockedImage, ...] = ()
    #: All symbolic links of the view besides those of its releases. Locks of format 2 and earlier have none.
    links: tuple[dict[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "generation": self.generation,
            "releases": [dict(one) for one in self.releases],
            "leaving": [dict(one) for one in self.leaving],
            "image_digest": self.image_digest,
            **({"data_images": [one.as_dict() for one in self.data_images]} if self.data_images else {}),
            **({"links": [dict(one) for one in self.links]} if self.links else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LockedView:
        """Return the view that ``as_dict`` described. Raises KeyError if a field is missing."""
        return cls(
            values["name"],
            values["generation"],
            tuple(values["releases"]),
            tuple(values["leaving"]),
            values["image_digest"],
            tuple(LockedImage.from_dict(one) for one in values.get("data_images", ())),
            tuple(values.get("links", ())),
        )


def short_release(release: Mapping[str, Any]) -> dict[str, Any]:
    """Return a release as a lock has it: without what is as by default, and with an empty path for the top of the view."""
    found: dict[str, Any] = {name: release[name] for name in ("release", "digest") if name in release}
    for name in ("at", "source"):
        place = release[name].strip("/")
        if place != release["release"]:
            found[name] = place
    found.update({name: list(release[name]) for name in ("include", "exclude") if release.get(name)})
    return found


def lock_to_json(views: Iterable[LockedView]) -> str:
    """Return the text of a lock: the views by name, and each release in a line of its own."""
    ordered = sorted(views, key=lambda view: view.name)
    lock_format = _FORMAT_WITHOUT_DATA_IMAGES
    if any(view.data_images for view in ordered):
        lock_format = _FORMAT_WITHOUT_LINKS
    if any(view.links for view in ordered):
        lock_format = LOCK_FORMAT
    lines = ["{", f' "format": {lock_format},', ' "views": [']
    for number, view in enumerate(ordered, 1):
        values = view.as_dict()
        lines.append("  {")
        lines += [
            f"   {json.dumps(name)}: {json.dumps(values[name])}," for name in ("name", "generation", "image_digest")
        ]
        lists = [name for name in ("releases", "leaving", "data_images", "links") if name in values]
        for name in lists:
            lines += _listed(name, values[name], "," if name != lists[-1] else "")
        lines.append("  }" + ("," if number < len(ordered) else ""))
    return "\n".join((*lines, " ]", "}", ""))


def _listed(name: str, values: list[dict[str, Any]], end: str) -> list[str]:
    if not values:
        return [f"   {json.dumps(name)}: []{end}"]
    rows = [f"    {json.dumps(value, sort_keys=True)}" for value in values]
    return [f"   {json.dumps(name)}: [", *(row + "," for row in rows[:-1]), rows[-1], "   ]" + end]


def lock_from_json(text: str | bytes) -> dict[str, LockedView]:
    """Return the views of a lock by name. Raises OverlayError if the text is not a lock."""
    try:
        fields = _LOCK.load(text if isinstance(text, bytes) else to_bytes(text))
        return _views(fields["views"])
    except UnicodeEncodeError:
        raise OverlayError("not a lock of views: it has a lone surrogate, so it is not Unicode text") from None
    except OverlayError as error:
        raise OverlayError(f"not a lock of views: {error}") from None


def lock_from_values(values: Any) -> dict[str, LockedView]:
    """Return the views of a lock that was parsed already, by name. Raises OverlayError if the values are not a lock."""
    try:
        return lock_from_json(json.dumps(values))
    except (TypeError, ValueError) as error:
        raise OverlayError(f"not a lock of views: {error}") from None


def _views(listed: list[Mapping[str, Any]]) -> dict[str, LockedView]:
    found = {view["name"]: LockedView.from_dict(view) for view in listed}
    if len(found) != len(listed):
        raise RecordError("it has a view twice")
    return found
