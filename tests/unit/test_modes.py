# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made on a disk has a mode that somebody chose: the calls that leave it to the umask are in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"

#: The files that may create things, with the reason.
MAKERS = {
    "files.py": "it has what others call, and sets the mode afterwards",
    "beneath.py": "it has what others call for foreign trees, and sets the mode afterwards",
    "mount_lock.py": "its file is for root alone, which no umask changes",
    "covered.py": "what it makes is in memory, in a mount namespace of its own",
    "inner_mounts.py": "what it makes is in memory, in a mount namespace of its own",
    "moving.py": "it makes a directory for root alone, and gives it the mode of the one that is moved",
    "directory_layer.py": "it sets the mode of each entry of a layer to that of the release",
}
#: The files that may open a path for writing that is not of a disk, or that is seen by nobody else.
WRITERS = {*MAKERS, "probe.py", "nfs_mount.py", "deadline.py"}
CREATING = {"makedirs", "mkdir", "mknod", "mkfifo"}


def creations(source: str) -> Iterator[tuple[str, int]]:
    """Yield what leaves a mode to the umask: the name of each such call, and its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in {*CREATING, "O_CREAT"}:
            yield node.attr, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            modes = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
            of_descriptor = isinstance(node.args[0], ast.Call) or (
                isinstance(node.args[0], ast.Name) and node.args[0].id in ("fd", "sender")
            )
            if any(isinstance(one, ast.Constant) and set(str(one.value)) & set("wax") for one in modes) and not (
                of_descriptor
            ):
                yield "open", node.lineno


@pytest.mark.parametrize("path", sorted(PLUGINS.rglob("*.py")), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_nothing_is_made_with_what_the_umask_leaves(path: Path) -> None:
    found = list(creations(path.read_text()))
    allowed = {"open"} if path.name in WRITERS else set()
    if path.name in MAKERS:
        allowed |= {*CREATING, "O_CREAT"} - {"makedirs"}
    assert [one for one in found if one[0] not in allowed] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("os.makedirs(path, exist_ok=True)", ["makedirs"]),
        ("path.mkdir()", ["mkdir"]),
        ("os.open(path, os.O_WRONLY | os.O_CREAT)", ["O_CREAT"]),
        ("open(path, 'ab')", ["open"]),
        ("open(path, mode='w')", ["open"]),
        ("open(path, 'rb')", []),
        ("open(path)", []),
        ("open(fd, 'wb')", []),
        ("open(files.open_or_make(path, 0o600), 'ab')", []),
    ],
)
def test_what_creates_is_recognised(line: str, expected: list[str]) -> None:
    assert [name for name, _line in creations(line)] == expected
