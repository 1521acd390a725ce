"""A web server in memory: it gives the answers of a text, one to each connection, and then refuses connections."""

from __future__ import annotations

import io
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import store_files
from ansible_collections.renderfarm.overlay.tests.unit.tried import outcome

#: Between two answers.
BETWEEN = b"\n%%\n"
_MOST_ANSWERS = 20
_REFUSED = (OverlayError, FileNotFoundError)


class _Socket:
    """A connection whose other end has sent an answer and closed it."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self._answer))

    def sendall(self, _request: bytes) -> None:
        """Take a request, whatever it is."""

    def setsockopt(self, *_option: int) -> None:
        """Take an option of a connection."""

    def close(self) -> None:
        """Close the connection."""


@contextmanager
def server(text: bytes) -> Iterator[list[Any]]:
    """Have connections to port 80 be answered, while the block runs. Yield the addresses that are connected to."""
    answers = iter(text.split(BETWEEN)[:_MOST_ANSWERS])
    connected: list[Any] = []

    def connect(address: Any, *_rest: Any) -> _Socket:
        connected.append(address)
        answer = next(answers, None)
        if answer is None or address[1] != 80:
            raise ConnectionRefusedError(111, "Connection refused")
        return _Socket(answer)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(socket, "create_connection", connect))
        stack.enter_context(mock.patch.object(urllib.request, "getproxies", dict))
        stack.enter_context(mock.patch.object(time, "sleep"))
        yield connected


def check_answers(address: str, text: bytes, largest: int) -> None:
    """Read a small file from such a server, the end of a file from an offset, and the length of a file."""
    with server(text) as connected:
        found = outcome("http record", lambda: store_files.read(address, largest), _REFUSED)
        assert found is None or len(found) <= largest
        assert len(connected) < 200
    with server(text):
        rest = outcome("http stream", lambda: _end_of(address, largest), _REFUSED)
        assert rest is None or len(rest) <= largest
    with server(text):
        size = outcome("http length", lambda: store_files.size(address), _REFUSED)
        assert size is None or size >= 0


def _end_of(address: str, largest: int) -> bytes:
    with store_files.open_from(address, 3, expected=largest) as stream:
        rest = b""
        while len(rest) < largest:
            part = stream.read(largest - len(rest))
            if not part:
                break
            rest += part
        return rest
