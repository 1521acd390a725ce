# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host last did with a view: the status record beside the view's generations, from which reports tell drift from intent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordKind

STATUS_FORMAT = 1
#: Bytes of the longest record.
LARGEST_STATUS = 1 << 20

_LONGEST_REASON = 4096
_LONGEST_WORD = 100
_MOST_OPTIONS = 100
_MOST_DATA_LAYERS = 1000
_LAST_SECOND = 253_402_300_799
_GENERATION = records.form("[0-9a-f]{16}")
_SECONDS = records.integer(0, _LAST_SECOND)
_HOLD = records.fields(
    {"generation": _GENERATION, "until": _SECONDS, "reason": records.text(_LONGEST_REASON, 0)},
    {"instead_of": records.nullable(_GENERATION)},
)


def _option(value: Any) -> str | None:
    return None if value is None or isinstance(value, (bool, int)) else records.text(_LONGEST_WORD)(value)


#: The keys of a view that decide how it is mounted.
_OF_MOUNT: dict[str, records.Check] = {
    "options": records.mapping(records.text(_LONGEST_WORD), _option, _MOST_OPTIONS),
    "data": records.list_of(records.absolute, _MOST_DATA_LAYERS),
    "writable": records.word("none", "scratch", "upper"),
    "scratch_size": records.integer(0, records.LARGEST_SIZE),
}
#: The software roots of a view over several, as the module ``view`` takes them.
_ROOTS = records.list_of(
    records.fields({"name": records.text(_LONGEST_WORD), "path": records.absolute, "pattern": records.text()}),
    _MOST_DATA_LAYERS,
    1,
)
_STATUS = RecordKind(
    records.fields(
        {
            "format": records.integer(STATUS_FORMAT, STATUS_FORMAT),
            "view": records.form("[A-Za-z0-9][A-Za-z0-9._-]{0,99}"),
            "mountpoint": records.absolute,
            "generation": records.nullable(_GENERATION),
            "persist": records.word("none", "systemd", "fstab"),
            "failure": records.text(_LONGEST_REASON, 0),
            "hold": records.nullable(_HOLD),
        },
        # Records of earlier versions lack these.
        {
            "mount": records.nullable(records.fields(_OF_MOUNT, {"roots": _ROOTS})),
            "switched_from": records.nullable(_GENERATION),
        },
    ),
    LARGEST_STATUS,
    "format",
    STATUS_FORMAT,
)


def _recordable(reason: str) -> str:
    """Return a reason as a record can have it: NUL bytes as escapes, and no more bytes than are read again."""
    whole = reason.replace("\0", "\\0")
    try:
        raw = to_bytes(whole)
    except UnicodeEncodeError:
        # A lone surrogate that stands for no byte.
        raw = whole.encode("utf-8", "backslashreplace")
    return to_text(raw[:_LONGEST_REASON])


@dataclass(frozen=True)
class Hold:
    """Keeps a view at a generation although another one is declared, as after a rollback."""

    generation: str
    #: Seconds since 1970; 0 means until it is lifted.
    until: int
    reason: str = ""
    #: The only declared generation that the hold is against, so that it ends when another one is declared; None if it is against all.
    instead_of: str | None = None

    def holds(self, now: int, declared: str | None = None) -> bool:
        """Return whether the view is still held at a time, given in seconds since 1970, against the ``declared`` generation."""
        return (not self.until or now < self.until) and self.instead_of in (None, declared)

    def as_dict(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "until": self.until,
            "reason": _recordable(self.reason),
            **({"instead_of": self.instead_of} if self.instead_of else {}),
        }


@dataclass(frozen=True)
class ViewStatus:
    """What a host last did with a view."""

    view: str
    mountpoint: str
    #: The generation that was declared for the host; None if the view was not to be mounted.
    generation: str | None
    #: How the view is mounted at boot: ``none``, ``systemd`` or ``fstab``.
    persist: str
    #: Why the last run failed; empty if it did not.
    failure: str = ""
    hold: Hold | None = None
    #: The keys that decide how it is mounted; None if the view was not to be mounted, or if the record does not say.
    mount: Mapping[str, Any] | None = None
    #: The generation that the last run replaced; None if it replaced none.
    switched_from: str | None = None


def mount_of(view: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a view that decide how it is mounted."""
    roots = view.get("roots")
    return {**{name: view[name] for name in _OF_MOUNT}, **({"roots": [dict(root) for root in roots]} if roots else {})}


def status_to_json(status: ViewStatus) -> bytes:
    """Return the text of a status record. Raises RecordError if it could not be read again."""
    return _STATUS.dump(
        {
            "view": status.view,
            "mountpoint": status.mountpoint,
            "generation": status.generation,
            "persist": status.persist,
            "failure": _recordable(status.failure),
            "hold": status.hold.as_dict() if status.hold else None,
            "mount": None if status.mount is None else dict(status.mount),
            "switched_from": status.switched_from,
        }
    )


def status_from_json(text: bytes) -> ViewStatus:
    """Return the status that a record has. Raises RecordError or OutdatedError if it is not one of this format."""
    fields: Mapping[str, Any] = _STATUS.load(text)
    hold = fields["hold"]
    return ViewStatus(
        view=fields["view"],
        mountpoint=fields["mountpoint"],
        generation=fields["generation"],
        persist=fields["persist"],
        failure=fields["failure"],
        hold=Hold(hold["generation"], hold["until"], hold["reason"], hold.get("instead_of")) if hold else None,
        mount=fields.get("mount"),
        switched_from=fields.get("switched_from"),
    )
