# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the metrics of a host's views to a file for the textfile collector of node_exporter."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import (
    host_report,
    metrics,
    mountstats,
    report,
)

#: The collector ignores files without it. The name of a file that is being written does not end with it.
SUFFIX = ".prom"
_MOUNTSTATS = "/proc/self/mountstats"


def check_path(path: str) -> None:
    """Check that metrics can be written to ``path``.

    Raises OverlayError if it is not an absolute path that ends with ``.prom``, if its directory does not exist, or if a component of the
    directory is a symbolic link. Raises OSError if the directory cannot be opened.
    """
    with _opened(path):
        pass


def write_for(path: str, views: Sequence[Mapping[str, Any]], state_dir: str, explain: host_report.Explain) -> str:
    """Write the metrics of all views of this host: of the declared ones, and of the others below their state directories.

    ``views`` are as the module ``view`` takes them, and ``state_dir`` is that of views that are not among them. Return why they could not
    be written; empty if they were.
    """
    shown = [view for view in views if view["state"] == "mounted"]
    state_dirs = [state_dir, *(view["state_dir"] for view in views)]
    try:
        rows = host_report.of_views(shown, explain)
        rows += host_report.of_others(state_dirs, {view["name"] for view in shown}, False, explain)
        write(path, rows)
    except (OverlayError, OSError) as error:
        return f"metrics_file: {explain(error)}"
    return ""


def write(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the metrics of a host's views to ``path``, atomically and with mode 0644.

    ``rows`` are those of the views of this host, as reports take them; they need not name the host. NFS calls are counted for the mounts
    that hold layers of the views. No file of a view or of its layers is touched. Raises OverlayError as ``check_path`` does, and if a row
    is wrong.
    """
    found = report.rows_of({"host": os.uname().nodename, **row} for row in rows)
    mountpoints = [os.fsencode(row.mountpoint) for row in found if row.mountpoint]
    with open(_MOUNTSTATS, "rb") as stream:
        calls = mountstats.calls_below(mountpoints, namespaces.own_mounts(), stream.read())
    text = metrics.metrics_text(found, calls, int(time.time()))
    with _opened(path) as target, _named(path, target), files.written_aside(target, 0o644) as stream:
        stream.write(text.encode())


@contextlib.contextmanager
def _opened(path: str) -> Iterator[str]:
    """Provide another path of the same file, which stays valid when its directory is renamed.

    The directory often belongs to the user of node_exporter, who could otherwise lead root elsewhere with a symbolic link.
    """
    shown = show(os.fsencode(path))
    parent, name = os.path.split(path)
    if not path.startswith("/") or not name.endswith(SUFFIX) or name == SUFFIX:
        raise OverlayError(
            f"metrics file {shown} must be an absolute path that ends with {SUFFIX}, such as metrics{SUFFIX}"
        )
    try:
        fd = beneath.open_root(os.fsencode(parent), syscalls.LIST_DIRECTORY)
    except OSError as error:
        place = show(os.fsencode(parent))
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise OverlayError(
                f"directory {place} for the metrics file does not exist: install node_exporter, or give the directory of its option"
                " --collector.textfile.directory"
            ) from None
        if error.errno == errno.ELOOP:
            raise OverlayError(
                f"directory {place} for the metrics file has a symbolic link in its path, which is not followed: give the path without it"
            ) from None
        raise
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def _named(path: str, target: str) -> Iterator[None]:
    """Raise an OSError about a file in the directory of ``target`` as one about ``path``, which users know."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and error.filename.startswith(os.path.dirname(target)):
            raise OSError(error.errno, error.strerror, path) from None
        raise
