# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategies: how an overlay makes the content of a data layer appear under the names of a layer."""

from __future__ import annotations

#: Strategies. With ``data_only`` the kernel takes the data layers as data-only ones. With ``redirect``, for kernels that have none of
#: these, they are ordinary lower layers, whose names nothing of the view is merged with, since its directories are opaque.
DATA_ONLY = "data_only"


REDIRECT = "redirect"


#: The folder of a layer of strategy ``redirect`` that has the view in it, and that is seen of the overlay: the kernel always merges
#: the roots of layers, so the view cannot be there.
SHOWN_FOLDER = "view"


TRUSTED = "trusted"
