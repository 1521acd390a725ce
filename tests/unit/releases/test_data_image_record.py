"""The record of a data image is read as it was written, and any other record is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import (
    DataImage,
    data_image_from_json,
    data_image_to_json,
    is_image_id,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = DataImage(
    release="t\udcffol/1.0",
    source="t\udcffol/1.0",
    root_name="/net/software",
    manifest_digest=DIGEST,
    kind="trace",
    selection=DIGEST,
    complete=False,
    files=3,
    skipped=1,
    bytes=100,
    opens=7,
    digest=DIGEST,
    bytes_on_disk=4096,
)


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(data_image_to_json(IMAGE)), **fields}).encode()


def test_a_record_is_read_as_it_was_written() -> None:
    assert data_image_from_json(data_image_to_json(IMAGE)) == IMAGE


def test_the_id_is_the_beginning_of_the_digest() -> None:
    assert IMAGE.id == "0123456789abcdef"
    assert is_image_id(IMAGE.id)


@pytest.mark.parametrize("text", ["", "0123456789abcde", "0123456789ABCDEF", "../3456789abcdef", "0123456789abcdef\n"])
def test_nothing_else_is_an_id(text: str) -> None:
    assert not is_image_id(text)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"release": "../up"}, "release"),
        ({"release": "/abs"}, "release"),
        ({"source": ""}, "source"),
        ({"root_name": ""}, "root_name"),
        ({"manifest_digest": "sha256:0"}, "manifest_digest"),
        ({"kind": "miracle"}, "kind"),
        ({"selection": None}, "selection"),
        ({"complete": 1}, "complete"),
        ({"files": -1}, "files"),
        ({"skipped": True}, "skipped"),
        ({"bytes": 1 << 63}, "bytes"),
        ({"opens": 1.5}, "opens"),
        ({"digest": DIGEST.upper()}, "digest"),
        ({"bytes_on_disk": "1"}, "bytes_on_disk"),
        ({"more": 1}, "more"),
        ({"format": 2}, "newer"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(OverlayError, match=word):
        data_image_from_json(changed(**fields))


def test_an_image_that_no_record_can_hold_is_refused() -> None:
    with pytest.raises(OverlayError, match="cannot be recorded"):
        data_image_to_json(DataImage(**{**IMAGE.__dict__, "release": "/"}))
