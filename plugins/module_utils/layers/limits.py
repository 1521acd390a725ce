# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much a layer may have of what its record keeps."""

from __future__ import annotations

#: Limits of patterns. The time to match a name grows only with the number of patterns and of the ``**`` in them.
MOST_PATTERNS = 256


CONFLICTS_KEPT = 100
