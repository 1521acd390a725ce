# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that are prepared in a chroot, as images are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, probe

if TYPE_CHECKING:
    from pathlib import Path


def test_a_probe_in_a_chroot_says_why_it_cannot_try_anything(tmp_path: Path) -> None:
    def probe_there(_progress: deadline.Progress) -> object:
        os.chroot(tmp_path)
        return probe.probe()

    with pytest.raises(OverlayError, match="as in a chroot"):
        deadline.run(probe_there, 30)
