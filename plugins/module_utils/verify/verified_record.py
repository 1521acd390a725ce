# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of the last verification of a view, from which reports and metrics are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordKind
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import CODES

VERIFIED_FORMAT = 1
#: Bytes of the longest record.
LARGEST_VERIFIED = 1 << 16

_COUNT = records.integer(0, records.LARGEST_SIZE)
_VERIFIED = RecordKind(
    records.fields(
        {
            "format": records.integer(VERIFIED_FORMAT, VERIFIED_FORMAT),
            "generation": records.form("[0-9a-f]{16}"),
            "level": records.word("metadata", "open", "content"),
            "sample": _COUNT,
            "time": records.integer(0, 253_402_300_799),
            "checked": _COUNT,
            "counts": records.mapping(records.form("[a-z_]{1,40}"), _COUNT, 2 * len(CODES)),
        }
    ),
    LARGEST_VERIFIED,
    "format",
    VERIFIED_FORMAT,
)


@dataclass(frozen=True)
class LastVerified:
    """The last complete verification of a view."""

    generation: str
    level: str
    #: The number of entries that were drawn at random; 0 if all were verified.
    sample: int
    #: When it ended, in seconds since 1970.
    time: int
    checked: int
    #: The number of problems of each code.
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        """The number of all problems."""
        return sum(self.counts.values())


def verified_to_json(verified: LastVerified) -> bytes:
    """Return the text of a record. Raises RecordError if it could not be read again."""
    return _VERIFIED.dump({"format": VERIFIED_FORMAT, **asdict(verified)})


def verified_from_json(text: bytes) -> LastVerified:
    """Return what a record says. Raises RecordError or OutdatedError if it is not one of this format."""
    fields = dict(_VERIFIED.load(text))
    del fields["format"]
    return LastVerified(**fields)
