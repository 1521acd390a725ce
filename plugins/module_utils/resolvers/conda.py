# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what conda installed in an environment: ``conda list --json``, or the records in ``conda-meta``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.json_values import (
    mapping,
    member,
    parsed,
    sequence,
    text,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers.resolved import Environment, Package

FIELDS = ("package", "name", "version", "build", "subdir", "dist_name")
_WHAT = "the list of conda packages"

#: Fields of a template, the keys of a record in ``conda-meta``, and those of ``conda list``. A record also has a ``platform``, ``linux``.
_KEYS = (("build", "build", "build_string"), ("subdir", "subdir", "platform"))


def environment(packages: Any) -> Environment:
    """Return the packages of a conda environment. Each record may be parsed or text.

    Raises OverlayError naming the key if a record has no name or version, or a value has the wrong type.
    """
    listed = parsed(packages, _WHAT)
    if isinstance(listed, Mapping):
        raise OverlayError(
            f"{_WHAT} must be a list, as conda list --json prints it, or a list of the records in conda-meta"
        )
    return Environment(
        [_package(record, f"packages[{position}]") for position, record in enumerate(sequence(listed, _WHAT))], FIELDS
    )


def _package(record: Any, where: str) -> Package:
    values = mapping(parsed(record, where), where)
    name = text(member(values, "name", where), f"{where}.name")
    version = text(member(values, "version", where), f"{where}.version")
    fields = {"package": name, "name": name, "version": version}
    for field, *keys in _KEYS:
        for key in keys:
            if values.get(key):
                fields[field] = text(values[key], f"{where}.{key}")
                break
    if "build" in fields:
        fields["dist_name"] = f"{name}-{version}-{fields['build']}"
    if values.get("channel") == "pypi":
        return Package(fields, reason="was installed by pip and not by conda")
    return Package(fields)
