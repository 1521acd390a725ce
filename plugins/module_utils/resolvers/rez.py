# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a resolved rez context, the content of an ``.rxt`` file."""

from __future__ import annotations

import posixpath
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.json_values import (
    mapping,
    member,
    parsed,
    sequence,
    text,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.resolved import (
    Environment,
    LeftOut,
    Package,
    below,
    shown,
)

FIELDS = ("package", "version")
_WHAT = "the rez context"


def environment(context: Any, root: Any) -> Environment:
    """Return the packages of a rez context, parsed or as text. ``root`` is where rez sees the software root.

    Raises OverlayError naming the key if the context is not a resolved one, or ``root`` is no absolute path.
    """
    content = mapping(parsed(context, _WHAT), _WHAT)
    below_root = _clean(text(root, "root"))
    if below_root is None:
        raise OverlayError(f"root must be an absolute path, not {shown(root)}")
    status = text(member(content, "status", _WHAT), "status")
    if status != "solved":
        why = content.get("failure_description")
        raise OverlayError(
            f"status of {_WHAT} is {shown(status)}, not 'solved': resolve it again"
            + (f" (rez says: {shown(why, quoted=False)})" if isinstance(why, str) and why else "")
        )
    handles = sequence(member(content, "resolved_packages", _WHAT), "resolved_packages")
    packages = [
        _package(handle, f"resolved_packages[{position}]", below_root) for position, handle in enumerate(handles)
    ]
    return Environment(packages, FIELDS, _ephemerals(content.get("resolved_ephemerals")))


def _package(handle: Any, where: str, root: str) -> Package:
    """Return the package of a resource handle, which names a variant by its repository, package and version."""
    variables = mapping(member(mapping(handle, where), "variables", where), f"{where}.variables")
    where = f"{where}.variables"
    name = text(member(variables, "name", where), f"{where}.name")
    # A package without a version has null here.
    version = variables.get("version") or ""
    fields = {"package": name, "version": text(version, f"{where}.version") if version else ""}
    kind = text(member(variables, "repository_type", where), f"{where}.repository_type")
    location = text(member(variables, "location", where), f"{where}.location")
    if kind != "filesystem":
        return Package(
            fields, reason=f"is in the repository {shown(location)} of the type {shown(kind)}, which has no files"
        )
    path = _clean(location)
    directory = None if path is None else below(path, root)
    if directory is None:
        return Package(fields, reason=f"is in the repository {shown(location)}, which is outside of {shown(root)}")
    if not version:
        return Package(fields, reason="has no version")
    return Package(fields, directory)


def _ephemerals(value: Any) -> list[LeftOut]:
    """Return the ephemeral packages of a context as left out: they are names without files."""
    requests = sequence(value or (), "resolved_ephemerals")
    names = [text(request, f"resolved_ephemerals[{position}]") for position, request in enumerate(requests)]
    return [LeftOut(name, "", "is an ephemeral package, which has no files") for name in names]


def _clean(path: str) -> str | None:
    """Return an absolute path without empty parts, ``.`` and ``..``; None if it is not absolute."""
    return posixpath.normpath("/" + path.lstrip("/")) if path.startswith("/") else None
