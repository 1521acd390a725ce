# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several modules have."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  timeout:
    description:
      - Seconds without any progress after which the task fails.
      - File servers that no longer answer make every access hang; with this limit the task fails with a message instead.
      - It limits the time between two steps of the work, not the work as a whole.
    type: float
    default: 120.0
"""

    STATE_DIR = r"""
options:
  state_dir:
    description:
      - Folder on the managed node that holds the layers of all views.
      - It is created with mode V(0700) when it does not exist. Only root may be able to write to it, since who can write to a layer can
        make any file of the software root appear anywhere in a view.
    type: path
    default: /var/lib/renderfarm-overlay
"""

    READY_MARKER = r"""
options:
  ready_marker:
    description:
      - Path, relative to a release, of a file that is put there when the release is complete.
      - A release without it is still being written, and is not used.
      - When empty, every release is taken to be complete.
    type: str
    default: ''
"""
