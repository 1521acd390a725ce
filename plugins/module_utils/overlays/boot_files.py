# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the files that say what is mounted at boot, without interpreting them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab

UNITS = "/etc/systemd/system"


def mount_units() -> Iterator[tuple[str, bytes]]:
    """Yield the name and text of each mount unit in the administrator's directory, sorted by name."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(UNITS)):
            if name.endswith(".mount"):
                # A link to /dev/null is a unit without content. A dangling link is skipped.
                with contextlib.suppress(FileNotFoundError), open(os.path.join(UNITS, name), "rb") as stream:
                    yield name, stream.read()


def texts() -> list[bytes]:
    """Return the text of fstab and of each mount unit."""
    return [fstab.read(), *(text for _name, text in mount_units())]
