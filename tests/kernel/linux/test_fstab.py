"""mount(8), findmnt(8) and getmntent(3) read lines of fstab as they were meant, whatever bytes the paths have."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.fstab_lines import FstabFields
from ansible_collections.renderfarm.overlay.tests.kernel import support

NAMES = [
    b"plain",
    b"a b",
    b" lead and trail ",
    b"tab\tnew\nline",
    b"back\\slash \\040 \\\\",
    b"#first",
    b"in#side #",
    b"\xff\xc3 not utf-8",
    b"return\r\v\f",
    b"quote\"s ' $x",
]


class _MntEnt(ctypes.Structure):
    """struct mntent of mntent.h."""

    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("fsname", "dir", "type", "opts")),
        *((name, ctypes.c_int) for name in ("freq", "passno")),
    )


def getmntent(path: Path) -> list[FstabFields]:
    """Return the lines of a file as getmntent(3) reads them, which systemd's generator uses."""
    libc = ctypes.CDLL(None)
    libc.setmntent.restype = ctypes.c_void_p
    libc.getmntent.argtypes = (ctypes.c_void_p,)
    libc.getmntent.restype = ctypes.POINTER(_MntEnt)
    libc.endmntent.argtypes = (ctypes.c_void_p,)
    stream = libc.setmntent(os.fsencode(path), b"r")
    found: list[FstabFields] = []
    while True:
        entry = libc.getmntent(stream)
        if not entry:
            libc.endmntent(stream)
            return found
        fields = entry.contents
        found.append(FstabFields(fields.fsname, fields.dir, fields.type, tuple(fields.opts.split(b","))))


def findmnt(path: Path, column: str) -> list[bytes]:
    """Return a column of a file as libmount reads it."""
    argv: list[str | Path] = ["findmnt", "--tab-file", path, "--output", column, "--noheadings", "--raw"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, env={**os.environ, "LC_ALL": "C"})
    lines = done.stdout.rstrip(b"\n").split(b"\n")
    return [re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes((int(match[1], 16),)), line) for line in lines]


def test_libmount_and_libc_read_lines_as_they_were_made(area: Path) -> None:
    tab = area / "fstab"
    meant = [FstabFields(b"s" + name, b"/mnt/" + name, b"ext4", (b"ro", b"x-a=" + name)) for name in NAMES]
    tab.write_bytes(
        fstab_lines.join(
            fstab_lines.make_line(one.source, one.path, one.fstype, b",".join(one.options)) for one in meant
        )
    )
    assert getmntent(tab) == meant
    assert findmnt(tab, "SOURCE") == [one.source for one in meant]
    assert findmnt(tab, "TARGET") == [one.path for one in meant]
    assert findmnt(tab, "OPTIONS") == [b",".join(one.options) for one in meant]
    assert [fstab_lines.read_line(line) for line in fstab_lines.split(tab.read_bytes())] == meant


def test_a_number_sign_at_the_start_of_a_line_is_read_by_libmount(area: Path) -> None:
    tab = area / "fstab"
    tab.write_bytes(fstab_lines.make_line(b"#source", b"/mnt", b"ext4", b"ro"))
    assert findmnt(tab, "SOURCE") == [b"#source"]
    # systemd does not undo the escape, as it does not within a line: there the sign is not escaped.
    assert getmntent(tab) == [FstabFields(b"\\043source", b"/mnt", b"ext4", (b"ro",))]


@pytest.mark.parametrize("name", NAMES)
def test_mount_mounts_a_line_as_it_was_meant(area: Path, name: bytes) -> None:
    source, place = (os.fsencode(area / kind) + b"/" + name for kind in ("from", "to"))
    for path in (source, place):
        os.makedirs(path)
    support.write(source + b"/file", name)
    tab = area / "fstab"
    tab.write_bytes(fstab_lines.make_line(source, place, b"none", b"bind,x-test=" + name))
    support.command("mount", "--all", "--fstab", tab)
    with open(place + b"/file", "rb") as stream:
        assert stream.read() == name
    assert place in [mount.path for mount in namespaces.own_mounts()]
