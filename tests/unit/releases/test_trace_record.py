"""Traces are merged without losing counts, and their text is deterministic and checked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError, RecordError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import (
    MOST_COUNTED,
    Trace,
    TracedFile,
    known_part,
    merged,
    trace_from_text,
    trace_of,
    trace_to_text,
)

TRACE = trace_of(
    "usd/26.11", 2, [TracedFile(b"lib/libusd.so", 5, 2), TracedFile(b"bin/usdcat", 1, 1), TracedFile(b"\xff\n", 1, 1)]
)


def test_a_trace_has_one_line_for_each_file_and_is_read_back() -> None:
    text = trace_to_text(TRACE)
    assert text == (
        b'{\n "format": 1,\n "release": "usd/26.11",\n "starts": 2,\n "files": [\n  ["bin/usdcat", 1, 1],\n'
        b'  ["lib/libusd.so", 5, 2],\n  ["\\udcff\\n", 1, 1]\n ]\n}\n'
    )
    assert trace_from_text(text) == TRACE


def test_the_order_of_files_does_not_change_the_text() -> None:
    assert trace_to_text(trace_of("usd/26.11", 2, reversed(TRACE.files))) == trace_to_text(TRACE)


def test_merging_adds_counts_in_any_order() -> None:
    other = trace_of("usd/26.11", 1, [TracedFile(b"lib/libusd.so", 3, 1), TracedFile(b"new", 1, 1)])
    both = merged(TRACE, other)
    assert both == merged(other, TRACE)
    assert both.starts == 3
    assert {one.path: (one.opens, one.starts) for one in both.files} == {
        b"bin/usdcat": (1, 1),
        b"lib/libusd.so": (8, 3),
        b"new": (1, 1),
        b"\xff\n": (1, 1),
    }
    assert both.opens == 11
    assert trace_from_text(trace_to_text(both)) == both


def test_counts_stay_at_their_limit() -> None:
    full = trace_of("a", MOST_COUNTED, [TracedFile(b"x", MOST_COUNTED, MOST_COUNTED)])
    assert merged(full, full) == full


def test_traces_of_two_releases_are_not_merged() -> None:
    with pytest.raises(OverlayError, match=r"release usd/26\.11 .*release usd/26\.08"):
        merged(TRACE, Trace("usd/26.08", 1, ()))


def test_only_files_of_the_manifest_stay() -> None:
    assert [one.path for one in known_part(TRACE, {b"bin/usdcat"}).files] == [b"bin/usdcat"]


def _changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(trace_to_text(TRACE)), **changes}).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (trace_to_text(TRACE)[:-4], "not JSON"),
        (_changed(format=2), "newer version"),
        (_changed(release="../etc"), "relative to a root"),
        (_changed(release="/etc"), "relative to a root"),
        (_changed(starts=0), "whole number"),
        (_changed(starts=True), "whole number"),
        (_changed(more=1), "unknown field"),
        (_changed(files=[]), "list of 1 to"),
        (_changed(files={}), "list of 1 to"),
        (_changed(files=[["a", 1]]), "list of a path"),
        (_changed(files=["a"]), "list of a path"),
        (_changed(files=[["../a", 1, 1]]), "relative to a root"),
        (_changed(files=[["/a", 1, 1]]), "relative to a root"),
        (_changed(files=[["a\0", 1, 1]]), "NUL"),
        (_changed(files=[["", 1, 1]]), "1 to"),
        (_changed(files=[[1, 1, 1]]), "text of"),
        (_changed(files=[["a", 0, 1]]), "whole number"),
        (_changed(files=[["a", 1, -1]]), "whole number"),
        (_changed(files=[["a", 1.5, 1]]), "whole number"),
        (_changed(files=[["a", 1, 2]]), "more than its opens"),
        (_changed(files=[["a", 9, 3]]), "all starts"),
        (_changed(files=[["a", 1, 1], ["a", 1, 1]]), "twice"),
        (_changed(files=[["b", 1, 1], ["a", 1, 1]]), "out of order"),
    ],
)
def test_a_damaged_trace_is_refused_with_the_reason(text: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        trace_from_text(text)


def test_the_message_about_a_long_path_is_readable() -> None:
    long = "\udcff" * 4095
    with pytest.raises(RecordError, match="twice") as raised:
        trace_from_text(_changed(files=[[long, 1, 1], [long, 1, 1]]))
    assert len(str(raised.value)) < 1000
    assert str(raised.value).isprintable()


def test_a_trace_that_could_not_be_read_back_is_not_written() -> None:
    with pytest.raises(RecordError, match="relative to a root"):
        trace_to_text(trace_of("a", 1, [TracedFile(b"../x", 1, 1)]))


def test_an_older_format_is_outdated() -> None:
    text = trace_to_text(TRACE).replace(b'"format": 1', b'"format": 0')
    with pytest.raises(RecordError, match="whole number"):
        trace_from_text(text)
    assert issubclass(RecordError, OverlayError)
    assert not issubclass(RecordError, OutdatedError)
