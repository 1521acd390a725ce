# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probing in a chroot whose root is not a mountpoint, as in a host that is being installed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import probe

if TYPE_CHECKING:
    from pathlib import Path


def test_a_probe_in_a_chroot_finds_the_features_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "outside").touch()

    def probe_there(_progress: deadline.Progress) -> dict[str, bool | None]:
        os.chroot(tmp_path)
        os.chdir("/")
        return {name: feature.supported for name, feature in probe.probe().items()}

    found = deadline.run(probe_there, 30)
    assert found["data_only"]
    assert found["mount_beneath"]
    # The probe leaves nothing behind, inside or outside.
    assert sorted(os.listdir(tmp_path)) == ["outside", "tmp"]
    assert os.listdir(tmp_path / "tmp") == []
