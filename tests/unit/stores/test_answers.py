"""Answers of web servers that no usual server gives: a message that names the address, short and without control characters."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import store_files
from ansible_collections.renderfarm.overlay.tests.unit.stores import answering

ADDRESS = "http://store/view/0123456789abcdef.json"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 416 No\r\n\r\n", "answers 416 No"),
        (b"HTTP/1.1 418 \x1b[2Jtea\r\n\r\n", r"answers 418 \\x1b\[2Jtea"),
        (b"HTTP/1.1 418 " + b"x" * 60_000 + b"\r\n\r\n", r"answers 418 x{200}\.\.\."),
        (b"HTTP/1.1 302 Found\r\nLocation: /" + b"x" * 60_000 + b"\r\n\r\n", "which is too long"),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://\xff/\r\n\r\n", "which is no http"),
        (b"HTTP/1.1 206 Part\r\nContent-Range: bytes 5-6/7\r\n\r\n", "another range"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: \x1b[31mbr\r\n\r\n", r"\(\\x1b\[31mbr\)"),
        (b"x" * 60_000, r"BadStatusLine|x{100}"),
    ],
)
def test_an_odd_answer_is_refused_by_name(answer: bytes, reason: str) -> None:
    # The server is asked again after some answers.
    with answering.server(answering.BETWEEN.join([answer] * 9)), pytest.raises(OverlayError, match=reason) as raised:
        store_files.read(ADDRESS, 1000)
    assert ADDRESS in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


def test_the_length_of_a_file_is_not_taken_from_an_answer_about_ranges() -> None:
    answer = b"HTTP/1.1 416 No\r\nContent-Range: bytes */3\r\nContent-Length: 9\r\n\r\n"
    with answering.server(answer), pytest.raises(OverlayError, match="answers 416 No"):
        store_files.size(ADDRESS)
