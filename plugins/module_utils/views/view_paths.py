# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name the files of a view below the state directory, and the directories of its generations."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import FORMATS, USER
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.strategies import DATA_ONLY, REDIRECT, TRUSTED

#: The links of a view to the generation that was deployed last, and to the one before it.
CURRENT = "current"
PREVIOUS = "previous"

#: The name of a layer, before the suffix of its format.
LAYER = "layer"
RECORD = "view.json"

_VIEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_GENERATION_ID = re.compile(r"[0-9a-z]+")


@dataclass(frozen=True)
class GenerationName:
    """The name of a generation's directory: the generation, and the form in which the directory holds it.

    The strategy and the xattr namespace are part of the name unless they are the usual ones.
    """

    id: str
    #: The name of the layer's format.
    format: str
    strategy: str = DATA_ONLY
    xattr_namespace: str = TRUSTED

    def __str__(self) -> str:
        form = ((self.strategy, DATA_ONLY), (self.xattr_namespace, TRUSTED))
        return "-".join((self.id, self.format, *(word for word, usual in form if word != usual)))

    @classmethod
    def parse(cls, name: str) -> GenerationName | None:
        """Return what a name says; None if no generation's directory has such a name."""
        generation_id, *words = name.split("-")
        if not _GENERATION_ID.fullmatch(generation_id) or not words or words[0] not in FORMATS:
            return None
        strategy = REDIRECT if REDIRECT in words else DATA_ONLY
        found = cls(generation_id, words[0], strategy, USER if USER in words else TRUSTED)
        return found if str(found) == name else None


def generation_of(directory: str) -> str:
    """Return the ID of the generation in a directory, given the directory's name.

    The name itself is returned for any other directory, such as one that a killed run has left.
    """
    name = GenerationName.parse(directory)
    return name.id if name else directory


def is_view_name(name: str) -> bool:
    """Return whether a view can have this name."""
    return _VIEW_NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class ViewPaths:
    """The paths of a view's files: ``STATE_DIR/views/NAME/...``"""

    root: str

    @classmethod
    def of(cls, state_dir: str, name: str) -> ViewPaths:
        """Return the paths of the view ``name``. Raises OverlayError if no view can have this name."""
        if not is_view_name(name):
            raise OverlayError(
                f"view name {name!r} is not usable: it becomes the name of a directory. Use at most 100 letters, digits, '.', '_' and '-',"
                " and start with a letter or digit"
            )
        return cls(posixpath.join(state_dir, "views", name))

    @property
    def name(self) -> str:
        """The name of the view."""
        return posixpath.basename(self.root)

    @property
    def generations(self) -> str:
        """The directory of finished generations."""
        return posixpath.join(self.root, "generations")

    @property
    def staging(self) -> str:
        """The directory in which a generation is built before it gets its name. Nothing in it is finished."""
        return posixpath.join(self.root, "staging")

    @property
    def incoming(self) -> str:
        """The directory that images are copied to before they are installed. An interrupted copy continues from what is here."""
        return posixpath.join(self.root, "incoming")

    @property
    def removing(self) -> str:
        """The directory that generations are moved to before they are removed, so that a part of one is never taken for a generation."""
        return posixpath.join(self.root, "removing")

    @property
    def changes(self) -> str:
        """The directory with what was written to the generations of the view."""
        return posixpath.join(self.root, "changes")

    def upper(self, directory: str) -> str:
        """Return the path of the upper layer of a generation, given its directory's name."""
        return posixpath.join(self.changes, directory, "upper")

    def work(self, directory: str) -> str:
        """Return the path of the work directory of a generation, given its directory's name."""
        return posixpath.join(self.changes, directory, "work")

    @property
    def lock(self) -> str:
        """The file that a run locks while it changes the view."""
        return posixpath.join(self.root, "lock")

    def generation(self, directory: str) -> str:
        """Return the path of a generation, given its directory's name."""
        return posixpath.join(self.generations, directory)

    def link(self, name: str) -> str:
        """Return the path of the symbolic link ``current`` or ``previous``."""
        return posixpath.join(self.root, name)


def layer_path(generation_dir: str, layer_format: str) -> str:
    """Return the path of the layer in a generation's directory, given its path and the name of the format."""
    return posixpath.join(generation_dir, LAYER + FORMATS[layer_format].suffix)


def record_path(generation_dir: str) -> str:
    """Return the path of the record in a generation's directory, given its path."""
    return posixpath.join(generation_dir, RECORD)
