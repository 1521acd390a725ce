# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encode and decode the record of a data image: an EROFS image with the content of chosen files of one release."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import (
    OutdatedError,
    RecordError,
    RecordKind,
)

#: How the files of an image were selected.
KINDS = ("trace", "globs", "list", "everything")

#: Increased whenever images or their records change their meaning.
RECORD_FORMAT = 1
#: Bytes of the longest record.
LARGEST_RECORD = 1 << 16

#: Hexadecimal digits of the digest that name an image.
_ID_DIGITS = 16
_DIGEST_PREFIX = "sha256:"


@dataclass(frozen=True)
class DataImage:
    """A data image. Its files are at their paths on the software root."""

    #: Path of the release below the software root, for example ``houdini/20.5.410``.
    release: str
    #: Path of the release in the image, which is its path in the data layer.
    source: str
    #: Identity of the software root, as in the manifest.
    root_name: str
    #: Digest of the manifest that the files were compared with.
    manifest_digest: str
    #: How the files were selected, one of KINDS.
    kind: str
    #: Digest of the names and properties of the selected files, and of the compression.
    selection: str
    #: True if the image has every regular file of the release that has content.
    complete: bool
    #: Number of files. A file with several names counts once.
    files: int
    #: Number of selected files that are not in the image, because they were missing or differed from the manifest.
    skipped: int
    #: Bytes of content, uncompressed.
    bytes: int
    #: How often the files were opened, according to the trace of the release; 0 without a trace.
    opens: int
    #: ``sha256:`` and the hexadecimal SHA-256 of the image file.
    digest: str
    #: Size of the image file in bytes.
    bytes_on_disk: int

    @property
    def id(self) -> str:
        """The first hexadecimal digits of the digest, which name the files of the image."""
        return self.digest[len(_DIGEST_PREFIX) :][:_ID_DIGITS]


def is_image_id(text: str) -> bool:
    """Return whether ``text`` can be the ID of a data image."""
    return records.form(f"[0-9a-f]{{{_ID_DIGITS}}}")(text) is None


_COUNT = records.integer(0, records.LARGEST_SIZE)
_RECORD = RecordKind(
    records.fields(
        {
            "format": _COUNT,
            "release": records.relative(),
            "source": records.relative(),
            "root_name": records.text(),
            "manifest_digest": records.digest,
            "kind": records.word(*KINDS),
            "selection": records.digest,
            "complete": records.boolean,
            "files": _COUNT,
            "skipped": _COUNT,
            "bytes": _COUNT,
            "opens": _COUNT,
            "digest": records.digest,
            "bytes_on_disk": _COUNT,
        }
    ),
    LARGEST_RECORD,
    "format",
    RECORD_FORMAT,
)


def data_image_to_json(image: DataImage) -> bytes:
    """Return the record of an image as JSON text. Raises OverlayError if ``data_image_from_json`` would refuse it."""
    try:
        return _RECORD.dump(asdict(image))
    except RecordError as error:
        raise OverlayError(f"the data image cannot be recorded: {error}") from None


def data_image_from_json(text: bytes) -> DataImage:
    """Return the image that ``text``, written by ``data_image_to_json``, describes.

    Raises OutdatedError if an older version of the collection wrote it, and OverlayError if it is not the record of a data image.
    """
    try:
        fields = _RECORD.load(text)
    except OutdatedError as error:
        raise OutdatedError(f"{error}: build the data image again with data_image") from None
    except RecordError as error:
        raise OverlayError(f"not the record of a data image: {error}") from None
    del fields["format"]
    return DataImage(**fields)
