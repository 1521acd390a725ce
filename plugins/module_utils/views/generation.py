# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A view's layer: what it is made of, what that is called, and where it lies below the state directory.

A generation is named by a digest of its input (manifest digests, places, and the options that shape what the view shows), so the
same declaration has the same name on every host, and an unchanged one is recognised without reading any manifest. How a host keeps
it, as a directory or as an image, is no part of the name: it is told by the folder that the generation is in.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Rules, in_order, precedence
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import MOST_PATTERNS
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import DIRECTORY, EROFS, Image
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import Link
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.merge import CONFLICTS_KEPT
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import (
    Attributes,
    NumberMap,
    parse_mode,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import (
    OutdatedError,
    RecordError,
    RecordKind,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import IMAGE_SUFFIX
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.strategies import DATA_ONLY, REDIRECT, TRUSTED
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Counts, Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import COUNTS
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import KEPT, Rights

#: Raised whenever the same input would give another layer than before, so that layers of old versions are made anew.
LAYER_FORMAT = 2

ID_LENGTH = 16

#: Limits of a record and of what a view is declared with, so that what is written can be read again.
LARGEST_RECORD = 1 << 26
_MOST_RELEASES = 10_000
_MOST_LINKS = 100_000
_MOST_MAPPED = 100_000
_LONGEST_MODE = 1000


#: The links of a view to the generation that was deployed last, and to the one before it.
CURRENT = "current"
PREVIOUS = "previous"

_VIEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class LayerSpec:
    """The declaration of a view's layer."""

    name: str
    placements: tuple[Placement, ...]
    format: str
    strategy: str
    #: First word of the overlay attributes: ``trusted`` or ``user``.
    xattr_namespace: str
    owner: int | None = None
    group: int | None = None
    owner_map: NumberMap = ()
    group_map: NumberMap = ()
    #: Symbolic mode; empty for none.
    mode: str = ""
    #: Leave set-ID bits and capabilities to files whose owner or group is mapped.
    keep_setid: bool = False
    on_conflict: str = "error"
    links: tuple[Link, ...] = ()

    @property
    def rules(self) -> Rules:
        """How the releases become one tree. Raises OverlayError for a malformed mode."""
        mode = parse_mode(self.mode) if self.mode else ()
        attributes = Attributes(self.owner, self.group, self.owner_map, self.group_map, mode)
        # Without a mapping there is nothing that it could keep.
        attributes = replace(attributes, keep_setid=self.keep_setid and attributes.strips)
        return Rules(attributes, self.on_conflict, self.links)

    @property
    def folder(self) -> str:
        return folder_of(generation_id(input_digest(self)), self.format, self.strategy, self.xattr_namespace)


@dataclass(frozen=True)
class Generation:
    """A finished build, as its ``view.json`` records it."""

    id: str
    digest: str
    format: str
    strategy: str
    xattr_namespace: str
    entries: Counts
    bytes: int
    bytes_on_disk: int
    #: All that decides what the view shows (``composition_of``).
    composition: dict[str, Any]
    #: The first ones, each with ``path``, ``kept`` and ``hidden``, and how many there are in all.
    conflicts: tuple[dict[str, str], ...] = ()
    conflict_count: int = 0
    #: Of format ``erofs`` only.
    image: Image | None = None
    rights: Rights = field(default_factory=Rights)

    @property
    def folder(self) -> str:
        return folder_of(self.id, self.format, self.strategy, self.xattr_namespace)

    @property
    def releases(self) -> tuple[dict[str, Any], ...]:
        """Each with ``release``, ``digest``, ``root``, ``at`` and ``source``, and ``include`` and ``exclude`` where they are given."""
        return tuple(self.composition["releases"])

    @property
    def links(self) -> tuple[dict[str, str], ...]:
        """Each with ``path`` and ``target``."""
        return tuple(self.composition.get("links", ()))

    @property
    def root(self) -> str | None:
        """The software root that the releases are of; None for a view without releases."""
        return next((release["root"] for release in self.releases), None)


def is_view_name(name: str) -> bool:
    return _VIEW_NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class ViewPaths:
    """Where a view's files are: ``STATE_DIR/views/NAME/...``"""

    root: str

    @classmethod
    def of(cls, state_dir: str, name: str) -> ViewPaths:
        """Raises OverlayError when ``name`` could not be the name of a folder."""
        if not is_view_name(name):
            raise OverlayError(
                f"view name {name!r} is not usable: it becomes a folder, so give it letters, digits, '.', '_' and '-',"
                " starting with a letter or digit, 100 at most"
            )
        return cls(posixpath.join(state_dir, "views", name))

    @property
    def generations(self) -> str:
        return posixpath.join(self.root, "generations")

    @property
    def staging(self) -> str:
        """Where a generation is built before it gets its name; whatever lies here is half made."""
        return posixpath.join(self.root, "staging")

    @property
    def incoming(self) -> str:
        """Where images are copied to before they are installed; an interrupted copy goes on from what is here."""
        return posixpath.join(self.root, "incoming")

    @property
    def removing(self) -> str:
        """Where generations are moved to be removed, so that one that is half removed has no name that counts."""
        return posixpath.join(self.root, "removing")

    @property
    def lock(self) -> str:
        return posixpath.join(self.root, "lock")

    def generation(self, folder: str) -> str:
        return posixpath.join(self.generations, folder)

    def link(self, name: str) -> str:
        """The symbolic link ``current`` or ``previous``."""
        return posixpath.join(self.root, name)


def folder_of(generation_id: str, layer_format: str, strategy: str, xattr_namespace: str) -> str:
    """Return the name of a generation's folder: its own name, and in what form it is there."""
    unusual = [word for word, usual in ((strategy, DATA_ONLY), (xattr_namespace, TRUSTED)) if word != usual]
    return "-".join((generation_id, layer_format, *unusual))


def id_of(folder: str) -> str:
    """Return the name of the generation that a folder holds."""
    return folder.partition("-")[0]


def layer_path(generation_dir: str, layer_format: str) -> str:
    return posixpath.join(generation_dir, "layer" + (IMAGE_SUFFIX if layer_format == EROFS else ""))


def record_path(generation_dir: str) -> str:
    return posixpath.join(generation_dir, "view.json")


def releases_of(placements: Sequence[Placement]) -> tuple[dict[str, Any], ...]:
    """Return what ``view.json`` says of the releases: the reverse mapping from a release to where it appears."""
    return tuple(
        {
            "release": placement.record.release,
            "digest": placement.record.digest,
            "root": placement.record.root,
            "at": to_text(placement.at),
            "source": to_text(placement.source),
            **_patterns("include", placement.include),
            **_patterns("exclude", placement.exclude),
        }
        for placement in in_order(placements)
    )


def _patterns(name: str, patterns: Sequence[bytes]) -> dict[str, list[str]]:
    """Return patterns under their name, where there are any; their order makes no difference to the view."""
    return {name: sorted({to_text(pattern) for pattern in patterns})} if patterns else {}


def links_of(links: Sequence[Link]) -> tuple[dict[str, str], ...]:
    """Return what ``view.json`` says of the links that the view declares."""
    return tuple({"path": to_text(link.path), "target": to_text(link.target)} for link in links)


def _shown(text: str) -> str:
    return show(to_bytes(text))


def input_digest(spec: LayerSpec) -> str:
    """Return ``sha256:`` and the digest of all that decides what the view shows. Its name does not, nor how the layer is kept."""
    return composition_digest(composition_of(spec))


def composition_of(spec: LayerSpec) -> dict[str, Any]:
    """Return all that decides what the view shows, as the record has it."""
    return {
        "layer_format": LAYER_FORMAT,
        "releases": list(releases_of(spec.placements)),
        "owner": spec.owner,
        "group": spec.group,
        **_composing(spec),
    }


def composition_digest(composition: Mapping[str, Any]) -> str:
    text = json.dumps(composition, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def _composing(spec: LayerSpec) -> dict[str, Any]:
    """Return the options that decide how releases become one tree, as far as they are given and matter."""
    options = {
        "owner_map": [list(pair) for pair in sorted(spec.owner_map)],
        "group_map": [list(pair) for pair in sorted(spec.group_map)],
        "mode": spec.mode,
        # Earlier versions kept them: their generations are others.
        "setid_stripped": spec.rules.attributes.strips,
        "links": list(links_of(spec.links)),
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value}
    wins = precedence(spec.placements, spec.rules)
    if wins is not None:
        given["precedence"] = wins
    return given


def check_composition(name: str, composition: Mapping[str, Any]) -> None:
    """Raises OverlayError for what cannot be one view called ``name``, such as releases of several software roots."""
    problem = _COMPOSITION(composition) or _several_roots(composition)
    if problem:
        raise OverlayError(f"view {name}: {problem}")


def _several_roots(composition: Mapping[str, Any]) -> str | None:
    """Return that releases are of different software roots, where they are.

    The kernel looks a path up in one data layer after the other, and takes the first that has it, whatever root that is of.
    """
    releases = composition["releases"]
    for release in releases:
        first = releases[0]
        if release["root"] != first["root"]:
            one, other = (f"{one['release']} is of the software root {_shown(one['root'])}" for one in (first, release))
            return (
                f"release {one}, and {other}: one view shows releases of one software root, so give each root a view and a mountpoint of"
                " its own"
            )
    return None


def generation_id(digest: str) -> str:
    return digest.partition(":")[2][:ID_LENGTH]


def shown(
    generation_id: str, releases: tuple[dict[str, Any], ...], links: tuple[dict[str, str], ...]
) -> dict[str, Any]:
    """Return what a generation shows, as the diff has it."""
    at_place: dict[str, list[str]] = {}
    for release in releases:
        patterns = [f"{option} {' '.join(release[option])}" for option in ("include", "exclude") if option in release]
        at_place.setdefault(f"/{release['at']}", []).append(
            f"{release['release']} ({', '.join([release['digest'], *patterns])})"
        )
    found: dict[str, Any] = {
        "generation": generation_id,
        "releases": {place: there[0] if len(there) == 1 else there for place, there in at_place.items()},
    }
    if links:
        found["links"] = {f"/{link['path']}": link["target"] for link in links}
    return found


#: What a record has of the composition, and what it has besides.
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
    "links": records.list_of(records.fields({"path": records.relative(), "target": records.text()}), _MOST_LINKS, 1),
    "precedence": records.list_of(records.list_of(records.integer(0, _MOST_RELEASES), _MOST_RELEASES), _MOST_RELEASES),
}
_COMPOSITION = records.fields(_OF_COMPOSITION, _OPTIONAL)
_OF_RIGHTS = {
    name: records.list_of(records.text(1 << 16), KEPT) if name.endswith("_paths") else _COUNT
    for name in Rights().as_dict()
}
_OF_BUILD = {
    "generation": records.form(f"[0-9a-f]{{{ID_LENGTH}}}"),
    "digest": records.digest,
    "format": records.word(DIRECTORY, EROFS),
    "strategy": records.word(DATA_ONLY, REDIRECT),
    "xattr_namespace": records.word(TRUSTED, "user"),
    "entries": COUNTS,
    "rights": records.fields(_OF_RIGHTS),
    "bytes": _COUNT,
    "bytes_on_disk": _COUNT,
    "image": records.nullable(
        records.fields({"digest": records.digest, "bytes": _COUNT, "builder": records.text(100)})
    ),
}
#: Paths of a message may have each of their bytes escaped.
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
    """Return the record. Raises OverlayError for one that could not be read again."""
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
        "image": asdict(generation.image) if generation.image else None,
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
    """Return what the record of a generation at ``path`` says. All of it is checked, and its name follows from what it is made of.

    Raises OutdatedError for one of an older version of the collection, and OverlayError for anything else that is none.
    """
    shown = _shown(path)
    try:
        return _checked_generation(_RECORD.load(text))
    except OutdatedError as error:
        raise OutdatedError(f"{shown}: {error}: build the layer again with metadata_layer") from None
    except RecordError as error:
        raise OverlayError(
            f"{shown} is not the record of a generation: {error}; remove it, and build the layer or image again with metadata_layer"
        ) from None


def _checked_generation(fields: dict[str, Any]) -> Generation:
    """Return the generation of a record whose fields are each right. Raises RecordError where they do not go together."""
    composition = {name: fields[name] for name in (*_OF_COMPOSITION, *_OPTIONAL) if name in fields}
    digest = composition_digest(composition)
    if (fields["digest"], fields["generation"]) != (digest, generation_id(digest)):
        raise RecordError(
            f"it is called {fields['generation']}, and what it is made of makes it {generation_id(digest)}"
        )
    if (fields["format"] == EROFS) != (fields["image"] is not None):
        raise RecordError("only an image has a digest and a length")
    if bool(fields.get("conflicts")) != bool(fields.get("conflict_count")):
        raise RecordError("there are conflicts where some are listed")
    problem = _several_roots(composition)
    if problem:
        raise RecordError(problem)
    return Generation(
        id=fields["generation"],
        digest=digest,
        format=fields["format"],
        strategy=fields["strategy"],
        xattr_namespace=fields["xattr_namespace"],
        entries=Counts(**fields["entries"]),
        bytes=fields["bytes"],
        bytes_on_disk=fields["bytes_on_disk"],
        composition=composition,
        image=Image(**fields["image"]) if fields["image"] else None,
        conflicts=tuple(fields.get("conflicts", ())),
        conflict_count=fields.get("conflict_count", 0),
        rights=_rights(fields["rights"]),
    )


def _rights(fields: dict[str, Any]) -> Rights:
    try:
        return Rights.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise RecordError(str(error)) from None
