# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe a finished generation, and convert it to and from its record, ``view.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import FORMATS, USER, Image
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.limits import CONFLICTS_KEPT, MOST_PATTERNS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import (
    OutdatedError,
    RecordError,
    RecordKind,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.strategies import DATA_ONLY, REDIRECT, TRUSTED
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import ENTRY_COUNTS, EntryCounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import KEPT, Rights
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import GenerationName

#: Raised whenever the same input gives another layer than before, so that layers of earlier versions are built again.
LAYER_FORMAT = 2

#: Hexadecimal digits of a digest that name a generation.
ID_LENGTH = 16

#: Limits of a record and of a declaration, so that every record that is written can be read again.
LARGEST_RECORD = 1 << 26
_MOST_RELEASES = 10_000
_MOST_LINKS = 100_000
_MOST_DELTAS = 100
_MOST_MAPPED = 100_000
_LONGEST_MODE = 1000


@dataclass(frozen=True)
class Generation:
    """A finished generation, as its record describes it."""

    id: str
    #: The digest that the ID is taken from.
    digest: str
    #: The name of the layer's format.
    format: str
    strategy: str
    xattr_namespace: str
    entries: EntryCounts
    #: Size of the files that the view shows, and disk space that the layer uses besides inodes, in bytes.
    bytes: int
    bytes_on_disk: int
    #: Everything that decides what the view shows (``layer_spec.composition_of``).
    composition: dict[str, Any]
    #: The first conflicts, each with ``path``, ``kept`` and ``hidden``, and the number of all.
    conflicts: tuple[dict[str, str], ...] = ()
    conflict_count: int = 0
    #: None if the layer is a directory.
    image: Image | None = None
    rights: Rights = field(default_factory=Rights)

    @property
    def directory(self) -> str:
        """The name of the generation's directory."""
        return str(GenerationName(self.id, self.format, self.strategy, self.xattr_namespace))

    @property
    def releases(self) -> tuple[dict[str, Any], ...]:
        """The releases, each with ``release``, ``digest``, ``root``, ``at`` and ``source``, and with its patterns if it has any."""
        return tuple(self.composition["releases"])

    @property
    def links(self) -> tuple[dict[str, str], ...]:
        """The links that the view declares, each with ``path`` and ``target``."""
        return tuple(self.composition.get("links", ()))

    @property
    def roots(self) -> tuple[str, ...]:
        """The software roots of the releases."""
        return tuple(sorted({release["root"] for release in self.releases}))


def composition_digest(composition: Mapping[str, Any]) -> str:
    """Return ``sha256:`` and the digest of what decides what a view shows."""
    text = json.dumps(composition, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def generation_id(digest: str) -> str:
    """Return the ID of the generation with this digest."""
    return digest.partition(":")[2][:ID_LENGTH]


def check_composition(name: str, composition: Mapping[str, Any]) -> None:
    """Check that a composition can be one view, called ``name``. Raises OverlayError if it cannot, as with several software roots."""
    problem = _COMPOSITION(composition) or _several_roots(composition)
    if problem:
        raise OverlayError(f"view {name}: {problem}")


def _several_roots(composition: Mapping[str, Any]) -> str | None:
    """Return which releases are of different software roots; None if all are of one.

    The kernel looks a path up in the data layers one after the other and takes the first match, whichever root that is of. A view that is
    declared over several roots is mounted so that each release is read from its own.
    """
    releases = composition["releases"]
    if composition.get("several_roots"):
        return None
    for release in releases:
        first = releases[0]
        if release["root"] != first["root"]:
            one, other = (
                f"{one['release']} is of the software root {_printable(one['root'])}" for one in (first, release)
            )
            return (
                f"release {one}, and {other}: one view shows releases of one software root, so give each root a view and a mountpoint of"
                " its own, or declare the view over several roots"
            )
    return None


def _printable(text: str) -> str:
    return show(to_bytes(text))


def content_for_diff(
    generation: str, releases: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Return what the generation with the ID ``generation`` shows, as the diff lists it."""
    at_place: dict[str, list[str]] = {}
    for release in releases:
        patterns = [f"{option} {' '.join(release[option])}" for option in ("include", "exclude") if option in release]
        at_place.setdefault(f"/{release['at']}", []).append(
            f"{release['release']} ({', '.join([release['digest'], *patterns])})"
        )
    content: dict[str, Any] = {
        "generation": generation,
        "releases": {place: there[0] if len(there) == 1 else there for place, there in at_place.items()},
    }
    if links:
        content["links"] = {f"/{link['path']}": link["target"] for link in links}
    return content


def _format(value: Any) -> str | None:
    """Check the name of a format. The table is read only now, so that it can be extended."""
    return records.word(*FORMATS)(value)


#: The fields of a record: those of the composition, and the others.
_PATTERNS = records.list_of(records.relative(), MOST_PATTERNS, 1)
_OWNER = records.nullable(records.integer(0, records.LARGEST_OWNER))
_COUNT = records.integer(0, records.LARGEST_SIZE)
_PAIR = records.list_of(records.integer(0, records.LARGEST_OWNER), 2, 2)
_OF_COMPOSITION = {
    "layer_format": records.integer(LAYER_FORMAT, LAYER_FORMAT),
    "releases": records.list_of(
        records.fields(
            {
                "release": records.relative(),
                "digest": records.digest,
                "root": records.text(),
                "at": records.relative(0),
                "source": records.relative(0),
            },
            {"include": _PATTERNS, "exclude": _PATTERNS},
        ),
        _MOST_RELEASES,
    ),
    "owner": _OWNER,
    "group": _OWNER,
}
_OPTIONAL = {
    "owner_map": records.list_of(_PAIR, _MOST_MAPPED, 1),
    "group_map": records.list_of(_PAIR, _MOST_MAPPED, 1),
    "mode": records.text(_LONGEST_MODE),
    "setid_stripped": records.boolean,
    "several_roots": records.boolean,
    "links": records.list_of(records.fields({"path": records.relative(), "target": records.text()}), _MOST_LINKS, 1),
    "precedence": records.list_of(records.list_of(records.integer(0, _MOST_RELEASES), _MOST_RELEASES), _MOST_RELEASES),
}
_COMPOSITION = records.fields(_OF_COMPOSITION, _OPTIONAL)
_OF_RIGHTS = {
    name: records.list_of(records.text(1 << 16), KEPT) if name.endswith("_paths") else _COUNT
    for name in Rights().as_dict()
}
_OF_FILE = {"digest": records.digest, "bytes": _COUNT}
_OF_BUILD = {
    "generation": records.form(f"[0-9a-f]{{{ID_LENGTH}}}"),
    "digest": records.digest,
    "format": _format,
    "strategy": records.word(DATA_ONLY, REDIRECT),
    "xattr_namespace": records.word(TRUSTED, USER),
    "entries": ENTRY_COUNTS,
    "rights": records.fields(_OF_RIGHTS),
    "bytes": _COUNT,
    "bytes_on_disk": _COUNT,
    "image": records.nullable(
        records.fields(
            {"digest": records.digest, "bytes": _COUNT, "builder": records.text(100)},
            {
                "packed": records.fields(_OF_FILE),
                "deltas": records.list_of(records.fields({**_OF_FILE, "base": records.digest}), _MOST_DELTAS, 1),
            },
        )
    ),
}
#: Every byte of a path in a message may be escaped, so such a path may be long.
_CONFLICT = records.text(1 << 16)
_OF_CONFLICTS = {
    "conflicts": records.list_of(
        records.fields(dict.fromkeys(("path", "kept", "hidden"), _CONFLICT)), CONFLICTS_KEPT, 1
    ),
    "conflict_count": records.integer(1, records.LARGEST_SIZE),
}
_RECORD = RecordKind(
    records.fields({**_OF_COMPOSITION, **_OF_BUILD}, {**_OPTIONAL, **_OF_CONFLICTS}),
    LARGEST_RECORD,
    "layer_format",
    LAYER_FORMAT,
)


def generation_to_json(generation: Generation) -> bytes:
    """Return the record of a generation. Raises OverlayError if ``generation_from_json`` would refuse it."""
    fields: dict[str, Any] = {
        **generation.composition,
        "generation": generation.id,
        "digest": generation.digest,
        "format": generation.format,
        "strategy": generation.strategy,
        "xattr_namespace": generation.xattr_namespace,
        "entries": generation.entries.as_dict(),
        "bytes": generation.bytes,
        "bytes_on_disk": generation.bytes_on_disk,
        "image": generation.image.as_dict() if generation.image else None,
        "rights": generation.rights.as_dict(),
    }
    if generation.conflict_count:
        fields.update(conflicts=list(generation.conflicts), conflict_count=generation.conflict_count)
    try:
        problem = _several_roots(generation.composition)
        if problem:
            raise RecordError(problem)
        return _RECORD.dump(fields)
    except RecordError as error:
        raise OverlayError(f"generation {generation.id} cannot be recorded: {error}") from None


def generation_from_json(text: bytes, path: str) -> Generation:
    """Return the generation that a record describes. ``path`` is the path of the record, for messages.

    Every field is checked, and the ID has to follow from the composition. Raises OutdatedError if an older version of the collection wrote
    the record, and OverlayError if it is not the record of a generation.
    """
    shown = _printable(path)
    try:
        return _checked_generation(_RECORD.load(text))
    except OutdatedError as error:
        raise OutdatedError(f"{shown}: {error}: build the layer again with metadata_layer") from None
    except RecordError as error:
        raise OverlayError(
            f"{shown} is not the record of a generation: {error}; remove it, and build the layer or image again with metadata_layer"
        ) from None


def _checked_generation(fields: dict[str, Any]) -> Generation:
    """Return the generation of a record whose fields are valid one by one. Raises RecordError if they contradict each other."""
    composition = {name: fields[name] for name in (*_OF_COMPOSITION, *_OPTIONAL) if name in fields}
    digest = composition_digest(composition)
    if (fields["digest"], fields["generation"]) != (digest, generation_id(digest)):
        raise RecordError(
            f"its generation is {fields['generation']}, but its composition gives {generation_id(digest)}"
        )
    if FORMATS[fields["format"]].is_image != (fields["image"] is not None):
        raise RecordError("a layer has the digest and length of an image if, and only if, its format is that of images")
    if bool(fields.get("conflicts")) != bool(fields.get("conflict_count")):
        raise RecordError("its list of conflicts does not agree with their number")
    problem = _several_roots(composition)
    if problem:
        raise RecordError(problem)
    return Generation(
        id=fields["generation"],
        digest=digest,
        format=fields["format"],
        strategy=fields["strategy"],
        xattr_namespace=fields["xattr_namespace"],
        entries=EntryCounts(**fields["entries"]),
        bytes=fields["bytes"],
        bytes_on_disk=fields["bytes_on_disk"],
        composition=composition,
        image=Image.from_dict(fields["image"]) if fields["image"] else None,
        conflicts=tuple(fields.get("conflicts", ())),
        conflict_count=fields.get("conflict_count", 0),
        rights=_rights(fields["rights"]),
    )


def _rights(fields: dict[str, Any]) -> Rights:
    try:
        return Rights.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise RecordError(str(error)) from None
