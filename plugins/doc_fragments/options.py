# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document the options that several modules share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  timeout:
    description:
      - Seconds without progress after which the task fails.
      - When a file server does not answer, every access hangs. With this limit the task fails with a message instead.
      - This limits the time between two steps of the work, not the total time.
    type: float
    default: 120.0
"""

    STATE_DIR = r"""
options:
  state_dir:
    description:
      - Directory on the managed node that holds the layers of all views.
      - It is created with mode V(0700) when it does not exist.
      - Only root must be able to write to it. Whoever can write to a layer can make any file of the software root appear anywhere in a
        view.
    type: path
    default: /var/lib/renderfarm-overlay
"""

    READY_MARKER = r"""
options:
  ready_marker:
    description:
      - Path, relative to a release, of a file that is written when the release is complete.
      - A release without it is still being written, and is not used.
      - When empty, every release counts as complete.
    type: str
    default: ''
"""

    IGNORE_NAMES = r"""
options:
  ignore_names:
    description:
      - Names that are no part of a release, wherever they are. They are neither listed as releases nor recorded in manifests, and it is no
        change of a release if they appear or go.
      - They are patterns as the shell has them, with C(*), C(?) and C([...]). The whole name has to match.
      - The default has snapshot directories and recycle bins of file servers, files that an NFS client renamed because they were deleted
        while they were open, and bytecode that Python is writing. A list replaces the default.
    type: list
    elements: str
    default:
      - .nfs[0-9a-fA-F]*
      - .snapshot
      - .snapshots
      - ~snapshot
      - '#snapshot'
      - '@Recently-Snapshot'
      - .zfs
      - '#recycle'
      - '@Recycle'
      - '@eaDir'
      - lost+found
      - .DS_Store
      - '*.pyc.[0-9]*'
"""
