# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locations of stores and of files in them: absolute paths, and addresses of web servers."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import quote, urlsplit, urlunsplit

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes

SCHEMES = ("http", "https")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
#: What an address may consist of, RFC 3986.
_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/\[\]@!$&'()*+,;=%-]+")
#: Characters of the longest address.
LONGEST_ADDRESS = 4095


def is_address(location: str) -> bool:
    """Return whether a location begins with a scheme, such as ``https:``, so that it is no path."""
    return _SCHEME.match(location) is not None


def is_encrypted(address: str) -> bool:
    """Return whether what is read from an address is encrypted, and its server is authenticated."""
    return address[:6].lower() == "https:"


def check(location: str, what: str) -> str:
    """Return a location without a slash at its end. ``what`` names it in messages.

    Raises OverlayError if the location is neither an absolute path nor a usable address. The message has no password.
    """
    if not is_address(location):
        if not location.startswith("/"):
            raise OverlayError(f"{what} must be an absolute path or an http(s) address, not {location!r}")
        return location.rstrip("/") or "/"
    problem = problem_of(location)
    if problem:
        raise OverlayError(f"{what} {shown(location)} {problem}")
    return location.rstrip("/")


def problem_of(address: str) -> str | None:
    """Return what is wrong with an address; None if it can be used."""
    scheme = address.partition(":")[0].lower()
    if scheme not in SCHEMES:
        return f"has the scheme {scheme}: give an http(s) address or an absolute path"
    try:
        parts = urlsplit(address)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        has_host = False
    if not has_host:
        return "has no host or a wrong port: give an address such as https://host/path"
    if "@" in parts.netloc:
        return "has a user name or a password: leave them out, and give them in the file .netrc of the user who runs the task"
    if "?" in address or "#" in address:
        return "has a '?' or a '#', which the address of a store cannot have: give the address of the directory"
    if not _CHARACTERS.fullmatch(address) or len(address) > LONGEST_ADDRESS:
        return "has characters that an address cannot have, or is too long: encode them as %XX"
    if {".", ".."} & set(parts.path.split("/")):
        return "has a part '.' or '..': give the address without it"
    return None


def joined(store: str, *names: str) -> str:
    """Return the location of a file, given its path below a store. For an address, special characters are encoded as ``%XX``."""
    if not is_address(store):
        return posixpath.join(store, *names)
    return "/".join((store.rstrip("/"), *(quote(to_bytes(name), safe="/") for name in names)))


def shown(location: str) -> str:
    """Return a location for a message, without a user name and password."""
    return show_text(without_secrets(location))


def without_secrets(location: str) -> str:
    """Return a location without user name, password, query and fragment. Paths stay as they are."""
    if not is_address(location):
        return location
    try:
        parts = urlsplit(location)
    except ValueError:
        return location.partition(":")[0] + ":..."
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
