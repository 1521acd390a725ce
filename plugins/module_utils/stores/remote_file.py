# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a file on a web server as a stream, which continues where it was when the connection breaks."""

from __future__ import annotations

import contextlib
import io
import re
import time
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import HostError, OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import web_client
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.locations import shown
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import Access

_CHUNK = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_LENGTH = re.compile(r"\d{1,19}")


class ChangedError(OverlayError):
    """A file was replaced on the server while it was read."""


@dataclass(frozen=True)
class _Version:
    """What tells one version of a file on a server from another; None for what the server does not say."""

    etag: str | None
    modified: str | None
    #: Length of the file in bytes.
    size: int | None

    @classmethod
    def of(cls, response: HTTPResponse, size: int | None) -> _Version:
        return cls(response.headers.get("ETag"), response.headers.get("Last-Modified"), size)

    @property
    def condition(self) -> dict[str, str]:
        """The header that asks for a range of this version only. A weak ETag cannot be used for that, RFC 9110, 13.1.5."""
        if self.etag and not self.etag.startswith("W/"):
            return {"If-Range": self.etag}
        return {"If-Range": self.modified} if self.modified else {}

    def is_another(self, other: _Version) -> bool:
        mine, others = ((one.etag, one.modified, one.size) for one in (self, other))
        return any(None not in (one, two) and one != two for one, two in zip(mine, others))


class RemoteFile(io.RawIOBase):
    """A file on a web server, read from an offset to its end.

    Reading raises FileNotFoundError if the server has no such file, HostError if the connection breaks again and again, OverlayError if the
    server refuses or sends something else than was asked for, and ChangedError if the file is replaced meanwhile.
    """

    def __init__(self, address: str, offset: int, access: Access, expected: int | None = None) -> None:
        """Ask for the file. ``expected`` is its length in bytes if the server does not say it, as from a record."""
        super().__init__()
        self._address = address
        self._access = access
        self._expected = expected
        self._position = offset
        self._version: _Version | None = None
        self._response: HTTPResponse | None = None
        #: Bytes of the response that are before the position, if the server cannot send a range.
        self._unwanted = 0
        self._failures = 0
        self._connect()

    @property
    def size(self) -> int | None:
        """The length of the whole file in bytes; None if it is not known."""
        said = self._version.size if self._version else None
        return self._expected if said is None else said

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes, as many as there are, and return their number; 0 at the end of the file."""
        while self.size is None or self._position < self.size:
            # Not within the block below: what the server answers to a new request is no broken connection.
            response = self._response or self._connect()
            try:
                part = self._next(response, len(buffer))
            except web_client.BROKEN as error:
                self._reconnect(web_client.quoted(str(error)) or type(error).__name__)
                continue
            if part:
                self._failures = 0
                self._position += len(part)
                buffer[: len(part)] = part
                return len(part)
            if self.size is None:
                break
            self._reconnect(f"it ended after {self._position} of {self.size} bytes")
        return 0

    def _next(self, response: HTTPResponse, most: int) -> bytes:
        """Return the next bytes from the position on; none at the end of the response."""
        while self._unwanted:
            part = response.read1(min(_CHUNK, self._unwanted))
            if not part:
                return b""
            self._unwanted -= len(part)
        # A response that is longer than it says is not read to its end.
        return response.read1(most if self.size is None else min(most, self.size - self._position))

    def _reconnect(self, reason: str) -> None:
        """Drop a broken connection. The next read makes a new one."""
        self._drop()
        if self._failures == len(web_client.PAUSES):
            raise HostError(
                f"{shown(self._address)}: the connection broke {self._failures + 1} times at byte {self._position} ({reason}): look at the"
                " log of the server and of the proxy, then run the task again, which continues there"
            )
        time.sleep(web_client.PAUSES[self._failures])
        self._failures += 1

    def _connect(self) -> HTTPResponse:
        """Ask for what is left of the file and return the response. Raises ChangedError if the file is another one than before."""
        headers = {"Range": f"bytes={self._position}-"} if self._position else {}
        if headers and self._version:
            headers.update(self._version.condition)
        response = web_client.send("GET", self._address, headers, self._access)
        try:
            start, version = self._begin_of(response)
            known = self._version
            if known and known.is_another(version):
                raise ChangedError(f"{shown(self._address)} was replaced while it was read: run the task again")
        except BaseException:
            response.close()
            raise
        self._unwanted = self._position - start
        # A server that sends a file in chunks says its length only with a range.
        self._version = version if known is None else replace(known, size=known.size or version.size)
        self._response = response
        return response

    def _begin_of(self, response: HTTPResponse) -> tuple[int, _Version]:
        """Return the offset at which a response begins, and the version of the file."""
        name = shown(self._address)
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        # Some servers name the format of files that are stored compressed.
        if encoding != "identity" and not (encoding in ("gzip", "x-gzip") and self._address.endswith(".gz")):
            raise OverlayError(
                f"{name}: the server or a proxy compresses it on the way ({web_client.quoted(encoding)}), although that was not asked for:"
                " turn that off for the store"
            )
        if response.status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != self._position:
                raise OverlayError(
                    f"{name}: the server sends another range than was asked for: turn off range requests for the store, or the proxy"
                )
            return self._position, _Version.of(response, None if found[3] == "*" else int(found[3]))
        if response.status == 416:
            found = re.fullmatch(r"bytes \*/(\d{1,19})", response.headers.get("Content-Range", ""))
            size = int(found[1]) if found else None
            if size is None or size > self._position:
                raise OverlayError(f"{name}: the server refuses to send what is left of it: run the task again")
            # The position is at the end of the file, or after it.
            return self._position, _Version.of(response, size)
        if response.status != 200:
            raise OverlayError(f"{name}: the server answers {response.status}: check that it serves plain files")
        return 0, _Version.of(response, length_of(response))

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            with contextlib.suppress(*web_client.BROKEN):
                response.close()

    def close(self) -> None:
        self._drop()
        super().close()


def length_of(response: HTTPResponse) -> int | None:
    """Return the length of a file in bytes, given a response with all of it; None if the server does not say it."""
    length = response.headers.get("Content-Length", "").strip()
    return int(length) if _LENGTH.fullmatch(length) else None
