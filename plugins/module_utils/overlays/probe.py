# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try which features this kernel has, in a private mount namespace.

The version of a kernel does not say this: distributions backport features, and disable them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, images, strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import mount_spec

_CONTENT = b"content of the data layer"

#: Directories of which each host has one. The trials mount a tmpfs there, in their own mount namespace.
_SCRATCH_PLACES = ("/tmp", "/run", "/mnt")  # noqa: S108 (covered, not used)

#: A directory for temporary files on a disk.
_DISK_PLACE = "/var/tmp"  # noqa: S108 (its file has no name)


@dataclass(frozen=True)
class Feature:
    """The result of trying one feature. ``supported`` is None if it was not tried."""

    supported: bool | None
    #: ``probe`` or ``none``.
    source: str
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a module returns it."""
        return {"supported": self.supported, "source": self.source, "detail": self.detail}


Trial = Callable[[str], str]


class TrialError(Exception):
    """Raised if the kernel accepts a mount that then does not work."""


def _directories(scratch: str) -> tuple[str, str, str]:
    """Create an empty layer, a data layer with one file, and a mountpoint; return their paths."""
    layer, data, view = (os.path.join(scratch, name) for name in ("layer", "data", "view"))
    for path in (layer, data, view):
        files.make_directories(path, 0o755)
    with open(os.path.join(data, "file"), "wb") as stream:
        stream.write(_CONTENT)
    return layer, data, view


def _layer(scratch: str, namespace: str = "trusted") -> tuple[str, str, str]:
    """Create a layer with the metadata of a file, a data layer with its content, and a mountpoint; return their paths."""
    layer, data, view = _directories(scratch)
    _add_metadata(layer, data, namespace)
    return layer, data, view


def _add_metadata(layer: str, data: str, namespace: str = "trusted") -> None:
    """Add the file's metadata to a layer, and a second file to the data layer that the layer does not have."""
    with open(os.path.join(layer, "file"), "wb") as stream:
        os.setxattr(stream.fileno(), f"{namespace}.overlay.metacopy", b"")
        os.setxattr(stream.fileno(), f"{namespace}.overlay.redirect", b"/file")
        stream.truncate(len(_CONTENT))
    with open(os.path.join(data, "hidden"), "wb"):
        pass


def _check_view(view: str, hidden: bool) -> None:
    with open(os.path.join(view, "file"), "rb") as stream:
        if stream.read() != _CONTENT:
            raise TrialError("a file does not have the content of the data layer")
    if hidden and os.path.exists(os.path.join(view, "hidden")):
        raise TrialError("the view shows names of the data layer")


def _try_overlay(scratch: str) -> str:
    lower, other, view = _directories(scratch)
    _mount_string(view, f"lowerdir={lower}:{other}")
    _check_view(view, hidden=False)
    return "two lower layers, mounted read-only"


def _try_data_only(scratch: str) -> str:
    layer, data, view = _layer(scratch)
    spec = mount_spec(view.encode(), [layer.encode()], [data.encode()], {}, read_only=True)
    _attach(creating.create_overlay(spec), view)
    _check_view(view, hidden=True)
    return "one lower and one data-only layer, with metacopy=on"


def _try_data_only_userxattr(scratch: str) -> str:
    layer, data, view = _layer(scratch, "user")
    spec = mount_spec(view.encode(), [layer.encode()], [data.encode()], {"userxattr": True}, read_only=True)
    _attach(creating.create_overlay(spec), view)
    _check_view(view, hidden=True)
    return "one lower and one data-only layer, with userxattr"


def _try_redirect(scratch: str) -> str:
    layer, data, view = _directories(scratch)
    shown = os.path.join(layer, strategies.SHOWN_DIRECTORY)
    files.make_directories(shown, 0o755)
    os.setxattr(shown, "trusted.overlay.opaque", b"y")
    _add_metadata(shown, data)
    spec = mount_spec(
        view.encode(), [layer.encode()], [data.encode()], {}, read_only=True, strategy=strategies.REDIRECT
    )
    _attach(creating.new_overlay(spec), view)
    _check_view(view, hidden=True)
    return "absolute redirects from opaque directories into an ordinary lower layer"


def _writable(scratch: str) -> tuple[str, str, str]:
    """Mount a writable overlay, and copy up its directory ``directory`` with the file in it, without the content.

    Return the paths of this directory in the lower layer, in the upper layer and in the overlay.
    """
    _empty, lower, view = _directories(scratch)
    files.make_directories(os.path.join(lower, "directory"), 0o755)
    os.rename(os.path.join(lower, "file"), os.path.join(lower, "directory", "file"))
    upper, work = (os.path.join(scratch, name) for name in ("upper", "work"))
    files.make_directories(upper, 0o755)
    files.make_directories(work, 0o755)
    _mount_string(view, f"lowerdir={lower},upperdir={upper},workdir={work},metacopy=on,redirect_dir=on", flags=0)
    os.utime(os.path.join(view, "directory", "file"), ns=(0, 0))
    return os.path.join(lower, "directory"), os.path.join(upper, "directory"), os.path.join(view, "directory")


def _try_metadata_copy_up(scratch: str) -> str:
    _lower, upper, _view = _writable(scratch)
    os.getxattr(os.path.join(upper, "file"), "trusted.overlay.metacopy")
    return "a change of times copies up only metadata"


def _try_kernel_seal(scratch: str) -> str:
    lower, upper, view = _writable(scratch)
    os.listdir(view)
    if _attribute(upper, "trusted.overlay.opaque") != b"z":
        raise TrialError("the kernel does not mark a directory whose entries are all copied up when it is read")
    with open(os.path.join(lower, "late"), "wb"):
        pass
    if os.path.exists(os.path.join(view, "late")):
        raise TrialError("the kernel marks a directory, and still looks up names in the lower layer")
    return "the kernel seals a directory whose entries are all copied up when it is read"


def _attribute(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


def _try_append_layers(scratch: str) -> str:
    del scratch
    if not creating.takes_layers_one_by_one():
        raise TrialError("the kernel does not know lowerdir+")
    return "lowerdir+ and datadir+ name one layer each"


def _try_mount_beneath(scratch: str) -> str:
    layer, data, view = _directories(scratch)
    first = mount_spec(view.encode(), [data.encode(), layer.encode()], [], {}, read_only=True)
    second = mount_spec(view.encode(), [layer.encode(), data.encode()], [], {}, read_only=True)
    _attach(creating.create_overlay(first), view)
    mount = creating.create_overlay(second)
    try:
        syscalls.move_mount(mount, view.encode(), beneath=True)
        syscalls.umount(view.encode(), syscalls.MNT_DETACH)
    finally:
        os.close(mount)
    return "a new overlay is mounted beneath the mounted one"


def _try_erofs(scratch: str) -> str:
    del scratch
    os.close(syscalls.fsopen(b"erofs"))
    return "the kernel has the file system type"


def _try_erofs_file(scratch: str) -> str:
    # The image is on a disk, since the kernel cannot mount one from a file on tmpfs. The file has no name, so nothing is left of it.
    with tempfile.TemporaryFile(dir=_DISK_PLACE) as image:
        image.write(empty_erofs_image())
        image.flush()
        syscalls.mount(b"/proc/self/fd/%d" % image.fileno(), scratch.encode(), b"erofs", syscalls.MS_RDONLY)
        if os.listdir(scratch):
            raise TrialError("an empty image shows files")
        syscalls.umount(scratch.encode())
        if not images.mounts_well_from_file(image.fileno(), scratch.encode()):
            return (
                "an image is mounted from its file, but counts as a level of stacked file systems there, so overlay_mount uses a loop"
                " device"
            )
    return "an image is mounted from its file, without a loop device"


def _try_data_images(scratch: str) -> str:
    layer, data, view = _layer(scratch)
    os.unlink(os.path.join(data, "file"))
    image = os.path.join(scratch, "image.erofs")
    with open(image, "wb") as stream:
        stream.write(erofs_image(b"file", _CONTENT))
    layers = [image.encode(), data.encode()]
    spec = mount_spec(view.encode(), [layer.encode()], layers, {}, read_only=True, images=layers[:1])
    _attach(creating.new_overlay(spec), view)
    _check_view(view, hidden=True)
    return "a file has its content from an image that is a data-only layer"


#: The trial of each feature. It takes an empty directory on a tmpfs, and returns what it did as words.
TRIALS: dict[str, Trial] = {
    "overlay": _try_overlay,
    "data_only": _try_data_only,
    "data_only_userxattr": _try_data_only_userxattr,
    "redirect": _try_redirect,
    "metadata_copy_up": _try_metadata_copy_up,
    "kernel_seal": _try_kernel_seal,
    "append_layers": _try_append_layers,
    "mount_beneath": _try_mount_beneath,
    "erofs": _try_erofs,
    "erofs_file": _try_erofs_file,
    "data_images": _try_data_images,
}


def not_tried() -> dict[str, Feature]:
    """Return the result for each feature if none is tried."""
    return {name: Feature(None, "none", "not tried: 'probe' is false") for name in TRIALS}


def probe(features: Collection[str] = tuple(TRIALS)) -> dict[str, Feature]:
    """Try features, by default all, and return their results. Call this in a child process: it enters a private mount namespace.

    Without root the trials run in a user namespace, and the results say what works there. Raises OverlayError if this user cannot create
    one.
    """
    where = enter_namespace()
    scratch = next(place for place in _SCRATCH_PLACES if os.path.isdir(place))
    syscalls.mount(b"tmpfs", scratch.encode(), b"tmpfs", 0, b"mode=0700")
    return {name: _tried(TRIALS[name], os.path.join(scratch, name), where) for name in features}


def enter_namespace() -> str:
    """Enter a private mount namespace, in a new user namespace if this process may not create one otherwise.

    Return words for a message, which are empty without a user namespace. Raises OverlayError if the kernel refuses both.
    """
    try:
        namespaces.make_private()
        return ""
    except PermissionError:
        uid, gid = os.geteuid(), os.getegid()
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        except OSError as error:
            raise OverlayError(
                f"this user can neither mount nor create a user namespace ({error.strerror}): run the task as root (become: true)"
            ) from None
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
                stream.write(text)
        syscalls.mount(b"none", b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        return " (in a user namespace)"


def _tried(trial: Trial, scratch: str, where: str) -> Feature:
    files.make_directories(scratch, 0o755)
    try:
        return Feature(True, "probe", trial(scratch) + where)
    except OSError as error:
        about = f": {error.filename}" if isinstance(error.filename, str) else ""
        return Feature(False, "probe", f"{error.strerror}{about}{where}")
    except (OverlayError, TrialError) as error:
        return Feature(False, "probe", f"{error}{where}")


def _mount_string(view: str, options: str, flags: int = syscalls.MS_RDONLY) -> None:
    syscalls.mount(b"overlay", view.encode(), b"overlay", flags, options.encode())


def _attach(mount: int, view: str) -> None:
    with _closing(mount):
        creating.attach(mount, view.encode())


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


#: The two inodes of a small image, counted in units of 32 bytes.
_ROOT_INODE, _FILE_INODE = 40, 48


def empty_erofs_image() -> bytes:
    """Return an EROFS image of one block with an empty root directory."""
    return _small_image({_ROOT_INODE: (0o40755, _directory({b".": _ROOT_INODE, b"..": _ROOT_INODE}))})


def erofs_image(name: bytes, content: bytes) -> bytes:
    """Return an EROFS image of one block with one small file. ``name`` sorts after two dots."""
    names = {b".": _ROOT_INODE, b"..": _ROOT_INODE, name: _FILE_INODE}
    return _small_image({_ROOT_INODE: (0o40755, _directory(names)), _FILE_INODE: (0o100644, content)})


def _directory(names: Mapping[bytes, int]) -> bytes:
    """Return the content of a directory: an entry for each name, in order, and then the names."""
    entries = b""
    place = 12 * len(names)
    for name, inode in names.items():
        entries += struct.pack("<QHBB", inode, place, 1 if inode == _FILE_INODE else 2, 0)
        place += len(name)
    return entries + b"".join(names)


def _small_image(inodes: Mapping[int, tuple[int, bytes]]) -> bytes:
    """Return an EROFS image of one block (Documentation/filesystems/erofs.rst, erofs_fs.h).

    ``inodes`` have a mode and a content each. The superblock is at byte 1024. An inode is compact, and followed by its content.
    """
    block_bits = 12
    superblock = struct.pack("<IIIBBHQQIIII", 0xE0F5E1E2, 0, 0, block_bits, 0, _ROOT_INODE, len(inodes), 0, 0, 1, 0, 0)
    image = bytearray(1 << block_bits)
    image[1024 : 1024 + len(superblock)] = superblock
    for number, (mode, content) in inodes.items():
        links = 2 if number == _ROOT_INODE else 1
        # i_format 4: compact, content inline; then xattr count, mode, nlink, size, reserved, address, inode, uid, gid, reserved.
        inode = struct.pack("<HHHHIIIIHHI", 4, 0, mode, links, len(content), 0, 0, number - _ROOT_INODE + 1, 0, 0, 0)
        image[number * 32 : number * 32 + len(inode) + len(content)] = inode + content
    return bytes(image)
