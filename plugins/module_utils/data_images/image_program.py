# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the EROFS image of a staged tree with mkfs.erofs. The same files and compression give the same bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import images

LZ4HC = "lz4hc"
ZSTD = "zstd"
NONE = "none"
COMPRESSIONS = (LZ4HC, ZSTD, NONE)

#: Bytes of the compressed parts of a file. Larger ones save little, and a small read decompresses one whole part.
_CLUSTER = 16384

#: The time of the image, and the latest mtime in it: the end of the year 9999. Without it, the image has the time of the build.
_IMAGE_TIME = 253402300799
_NO_UUID = "00000000-0000-0000-0000-000000000000"

#: NAME_MAX. Versions before 1.8 fail for files with such a long name.
_LONGEST_NAME = 255

_PROBE_SECONDS = 30.0
_PROBE_CONTENT = b"data image\n" * 4096


@dataclass(frozen=True)
class ImageProgram:
    """The program mkfs.erofs of this host."""

    path: str
    #: Bytes of the longest name that it can store.
    longest_name: int

    def build(self, tree: str, image: str, compression: str, progress: Progress = no_progress) -> None:
        """Build the image of a tree at ``image``, where nothing exists yet, without syncing it.

        Raises OverlayError with the output of the program if it fails, and OSError if there is no room.
        """
        compress = [] if compression == NONE else [f"-z{compression}", f"-C{_CLUSTER}"]
        command = [
            self.path,
            "--quiet",
            "-x-1",
            "--all-root",
            "--preserve-mtime",
            f"-U{_NO_UUID}",
            *compress,
            image,
            ".",
        ]
        with tempfile.TemporaryFile() as said:
            # The run_command of AnsibleModule does not report progress.
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                command,
                cwd=tree,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": str(_IMAGE_TIME)},
                # Safe, because this process has no threads.
                preexec_fn=erofs_layer.end_with_parent,  # noqa: PLW1509
            )
            try:
                status = erofs_layer.wait(process, progress)
            except BaseException:
                process.kill()
                process.wait()
                raise
            said.seek(0)
            words = said.read().decode("utf-8", "backslashreplace").strip()
        if not status:
            return
        if os.strerror(errno.ENOSPC) in words:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), image)
        raise OverlayError(
            f"{self.path} could not build the data image (exit status {status}): {words or 'it printed nothing'}"
        )


def find_image_program() -> ImageProgram:
    """Return the program that builds data images on this host. Raises OverlayError if this host does not have it."""
    found = erofs_layer.find_program("mkfs.erofs")
    if found is None:
        raise OverlayError("this host does not have mkfs.erofs, which builds data images: install erofs-utils")
    is_old = b"headerball" not in erofs_layer.usage_text(found)
    return ImageProgram(found, _LONGEST_NAME - 1 if is_old else _LONGEST_NAME)


def check_compression(program: ImageProgram, compression: str) -> None:
    """Check that this host can build and read images with a compression, by building and mounting a small one.

    Raises OverlayError that says whether the program or the kernel cannot.
    """
    if compression != ZSTD:
        return
    with tempfile.TemporaryDirectory() as area:
        tree, image = os.path.join(area, "tree"), os.path.join(area, "probe.erofs")
        files.make_directories(tree, 0o755)
        with files.written_aside(os.path.join(tree, "file")) as stream:
            stream.write(_PROBE_CONTENT)
        try:
            program.build(tree, image, compression)
        except OverlayError as error:
            raise OverlayError(
                f"{program.path} cannot compress with {compression}: install erofs-utils 1.8, or choose compression=lz4hc ({error})"
            ) from None
        if not deadline.run(lambda _progress: _is_readable(image), _PROBE_SECONDS):
            raise OverlayError(
                f"the kernel of this host cannot read images compressed with {compression} (Linux 6.10 and later can): choose"
                " compression=lz4hc, since render nodes must be able to read the image"
            )


def _is_readable(image: str) -> bool:
    """Mount an image in a private mount namespace, and return whether its file has the right content. Call this in a child process."""
    with contextlib.suppress(OSError, OverlayError):
        images.mount_unseen([os.fsencode(image)], [])
        with open(os.path.join(os.path.splitext(image)[0], "file"), "rb") as stream:
            return stream.read() == _PROBE_CONTENT
    return False
