# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the builder of a layer is given, what it returns, and what a host has to offer for a format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Optional, Protocol

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import Image
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Tally
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import PathCount


@dataclass(frozen=True)
class LayerContent:
    """What a layer is built from."""

    composition: Composition
    strategy: str
    xattr_namespace: str
    #: Whether owners and modes differ from those in the manifests, so that the text of a manifest cannot be copied.
    alters_entries: bool


@dataclass
class BuildReport:
    """What a builder has written."""

    tally: Tally = field(default_factory=Tally)
    #: Disk space that the layer uses besides inodes, in bytes.
    bytes_on_disk: int = 0
    #: Number of files whose xattrs did not fit into the inode, so that the file system uses a block for each.
    spilled: int = 0
    #: Entries whose ACL the file system cannot store.
    narrowed: PathCount = field(default_factory=PathCount)
    #: None if the layer is a directory.
    image: Image | None = None


class LayerBuilder(Protocol):
    """A builder of layers of one format."""

    @property
    def path(self) -> str:
        """The path of the program that builds layers; empty if no program is needed."""

    def build_layer(self, path: str, content: LayerContent, progress: Progress) -> BuildReport:
        """Build a layer at ``path``, where nothing exists yet, without syncing it. Raises OverlayError or OSError if that fails."""


@dataclass(frozen=True)
class FormatSupport:
    """What this host can do with layers of one format."""

    #: Return a builder. Raises OverlayError that says what is missing if the host has none.
    find_builder: Callable[[], LayerBuilder]
    #: Return why the host cannot mount a layer of the format; None if it can.
    mount_obstacle: Callable[[], Optional[str]]  # noqa: UP045 (evaluated by Python 3.9)
