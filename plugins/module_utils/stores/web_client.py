# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send requests to web servers with the standard library.

Ansible's ``open_url`` follows redirects from https to http, and belongs to Ansible, which only the runner may import. Proxies come from
the environment (http_proxy, https_proxy, no_proxy), and credentials from the file .netrc of the user or from that in NETRC.
"""

from __future__ import annotations

import base64
import errno
import functools
import http.client
import netrc
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from typing import IO, Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import HostError, OverlayError, show_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.locations import (
    LONGEST_ADDRESS,
    SCHEMES,
    check,
    is_encrypted,
    shown,
)

#: Seconds for which one step of a connection may take: looking up, connecting, and receiving the next bytes.
_SOCKET_SECONDS = 20.0
#: Seconds between tries. A request that fails once more after the last of them is given up.
PAUSES = (0.5, 1.0, 2.0, 4.0)
_MOST_REDIRECTS = 5
#: Characters of an answer that a message shows.
_MOST_QUOTED = 200
#: What the address of a redirect may consist of, RFC 3986. Everything else is encoded.
_UNQUOTED = "!#$%&'()*+,/:;=?@[]~"

#: Sent with each request. Files are sent as they are stored.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "renderfarm.overlay"}

#: What a server answers while it is overloaded or restarted, or its network is down. The request may succeed later.
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))

#: What a broken connection raises, and a header or a host that cannot be parsed.
BROKEN = (http.client.HTTPException, OSError, ValueError, OverflowError)


@dataclass(frozen=True)
class Access:
    """How this host reaches web servers."""

    #: Path of a file with the certificates of the authorities to trust, in PEM; None for those of the system.
    ca_path: str | None = None


SYSTEM = Access()


def send(method: str, address: str, headers: Mapping[str, str], access: Access) -> HTTPResponse:
    """Send a request and return the response, whose status is 2xx, or 416 if a range was asked for. Failures that may pass are tried again.

    Raises FileNotFoundError if the server has no such file, HostError if it cannot be reached, and OverlayError if it refuses the request,
    or if the address is not that of a web server.
    """
    check(address, "the address")
    opener = _opener(access)
    pauses = list(PAUSES)
    while True:
        request = _request(method, address, {**headers, **_HEADERS})
        try:
            response: HTTPResponse = opener.open(request, timeout=_SOCKET_SECONDS)
            return response
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and "Range" in headers:
                return error  # type: ignore[return-value]
            if error.code not in _PASSING or not pauses:
                _refuse(error, address)
        except BROKEN as error:
            _check_passing(error, address, bool(pauses))
        time.sleep(pauses.pop(0))


def _check_passing(error: Exception, address: str, is_tried_again: bool) -> None:
    """Raise the error for a connection that failed, unless it may succeed later and is tried again."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise OverlayError(
            f"{shown(address)}: the certificate of the server is not accepted: {reason.verify_message}; give the certificate of its"
            " authority with 'ca_path', and check the name in the address"
        ) from None
    if not is_tried_again:
        raise HostError(
            f"{shown(address)}: the server cannot be reached{_route(address)}: {_described(reason)}; check the address, the network and the"
            " proxy settings (http_proxy, https_proxy, no_proxy)"
        ) from None


class _Request(urllib.request.Request):
    """A request that counts the redirects that led to it."""

    redirects = 0


class _Redirects(urllib.request.BaseHandler):
    """Follow redirects, but never from https to http, and to web servers only.

    The handler of urllib reads the whole body of a redirect, however long, and follows redirects from https to http.
    """

    def http_error_302(
        self, req: _Request, fp: IO[bytes], _code: int, _msg: str, headers: Message
    ) -> HTTPResponse | None:
        """Follow a redirect, and return the response; None if there is nothing to follow, which makes it an error."""
        to = headers.get("Location")
        if to is None or req.redirects == _MOST_REDIRECTS:
            return None
        fp.close()
        address = urljoin(req.full_url, quote(to, safe=_UNQUOTED))
        if len(address) > LONGEST_ADDRESS:
            raise _not_followed(req.full_url, address, "too long")
        if urlsplit(address).scheme not in SCHEMES:
            raise _not_followed(req.full_url, address, "no http(s) address")
        if is_encrypted(req.full_url) and not is_encrypted(address):
            raise _not_followed(req.full_url, address, "not encrypted")
        kept = {name: value for name, value in req.headers.items() if name.lower() != "proxy-authorization"}
        # Credentials are those of the new host, and not those of the one that redirects to it.
        request = _request(req.get_method(), address, kept)
        request.redirects = req.redirects + 1
        response: HTTPResponse = self.parent.open(request, timeout=_SOCKET_SECONDS)
        return response

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _not_followed(address: str, to: str, reason: str) -> OverlayError:
    return OverlayError(
        f"{shown(address)}: the server redirects to {quoted(shown(to))}, which is {reason}: give an address that serves the file itself"
    )


def _opener(access: Access) -> urllib.request.OpenerDirector:
    """Return what opens addresses of web servers, and no other ones: urllib's default one opens files too."""
    opener = urllib.request.OpenerDirector()
    handlers: list[Any] = [
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        # A server of an http address may redirect to https.
        urllib.request.HTTPSHandler(context=_context(access)),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    return opener


@functools.cache
def _context(access: Access) -> ssl.SSLContext:
    """Return what checks certificates. Reading those of the system takes tens of milliseconds, so it is done once.

    Raises OverlayError if the file of ``access`` cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=access.ca_path)
    except FileNotFoundError:
        raise OverlayError(f"ca_path {access.ca_path} does not exist: give the path of a file in PEM format") from None
    except ssl.SSLError:
        raise OverlayError(
            f"ca_path {access.ca_path} has no certificates in PEM format: give a file that has"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _request(method: str, address: str, headers: Mapping[str, str]) -> _Request:
    """Return a request with the credentials for its host."""
    request = _Request(address, headers=dict(headers), method=method)
    _authorize(request)
    return request


def _authorize(request: urllib.request.Request) -> None:
    """Add the credentials that .netrc has for the host. They are only sent over an encrypted connection.

    Raises OverlayError if the file cannot be used.
    """
    if not is_encrypted(request.full_url):
        return
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).authenticators(urlsplit(request.full_url).hostname or "")
    except OSError:
        return
    except netrc.NetrcParseError as error:
        raise OverlayError(
            f"{path} is not a usable .netrc file (line {error.lineno}): correct it, or remove it"
        ) from None
    if found:
        login = base64.b64encode(f"{found[0]}:{found[2] or ''}".encode()).decode("ascii")
        # An unredirected header is not sent to the host of a redirect.
        request.add_unredirected_header("Authorization", f"Basic {login}")


def _refuse(error: urllib.error.HTTPError, address: str) -> NoReturn:
    """Raise the error for a status: what it means, and what to do."""
    code = error.code
    # With a redirect, the address is that of the last server. A proxy may answer in its place.
    name, route = shown(error.geturl() or address), _route(address)
    if code in (404, 410):
        raise FileNotFoundError(errno.ENOENT, f"the server has no such file ({code})", name) from None
    if 300 <= code < 400:
        raise OverlayError(
            f"{name}: the server redirects more than {_MOST_REDIRECTS} times, or to nowhere: give an address that serves the file itself"
        ) from None
    if code == 401:
        where = (
            "give those of the server in the file .netrc of the user who runs the task"
            if is_encrypted(address)
            else "give an https address, since credentials of servers are only sent over https"
        )
        proxy = ", and those of the proxy in its environment variable" if route else ""
        raise OverlayError(f"{name}: credentials are missing or wrong (401){route}: {where}{proxy}") from None
    if code == 403:
        raise OverlayError(
            f"{name}: the server refuses access (403){route}: allow this host there, and make the file readable for the server"
        ) from None
    if code == 407:
        raise HostError(
            f"{name}: access is refused (407){route}: give the credentials of the proxy in its environment variable"
        ) from None
    if code >= 500 or code in _PASSING:
        raise HostError(
            f"{name}: the server failed ({code} {quoted(error.reason)}) {len(PAUSES) + 1} times{route}: look at its log, then run the task"
            " again"
        ) from None
    raise OverlayError(
        f"{name}: the server answers {code} {quoted(error.reason)}{route}: check the address, and that it serves plain files"
    ) from None


def _route(address: str) -> str:
    """Return through which proxy the server is asked, for a message; empty if there is none."""
    parts = urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return f" through the proxy {shown(proxy if '://' in proxy else 'http://' + proxy)}"


def _described(reason: object) -> str:
    if isinstance(reason, socket.timeout):
        return f"no answer within {_SOCKET_SECONDS:g} seconds"
    if isinstance(reason, OSError) and reason.strerror:
        return str(reason.strerror)
    return quoted(str(reason)) or type(reason).__name__


def quoted(text: str) -> str:
    """Return what a server sent for a message: control characters as escapes, and no more than its beginning."""
    whole = show_text(text)
    return whole if len(whole) <= _MOST_QUOTED else whole[:_MOST_QUOTED] + "..."
