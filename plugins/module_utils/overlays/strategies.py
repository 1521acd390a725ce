# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The strategies of an overlay: how its metadata layer gets the content of files from a data layer."""

from __future__ import annotations

#: The data layers are data-only layers.
DATA_ONLY = "data_only"
#: The data layers are ordinary lower layers, for kernels without data-only layers. The directories of the view are opaque, so none of
#: them is merged with a directory of a data layer.
REDIRECT = "redirect"

#: The directory of a ``redirect`` layer that holds the view. It alone is shown: the kernel always merges the roots of the layers.
SHOWN_DIRECTORY = "view"

#: The namespace of the overlay xattrs that only root can set.
TRUSTED = "trusted"
