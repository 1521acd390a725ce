# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""New files and directories have an explicit mode: only few files may make calls whose result depends on the umask."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"

#: The files that may create files and directories, with the reason.
MAKERS = {
    "files.py": "it creates files for other rooms, and sets the mode afterwards",
    "beneath.py": "it creates directories in trees of others, with the umask set to 0",
    "mount_lock.py": "its file is for root only, with a mode that no usual umask changes",
    "covered.py": "its directories are in memory, in a private mount namespace",
    "inner_mounts.py": "its directories are in memory, in a private mount namespace",
    "moving.py": "it creates a directory for root only, and then sets the mode of the moved directory",
    "gathered_report.py": "it makes a directory of the user of the controller, whose umask decides",
    "directory_layer.py": "it sets the mode of each entry of a layer to that of the release",
    "staging.py": "it compares the mode of each file that it creates, and sets it where it differs",
}
#: The files that may open a path for writing that is not on a disk, or that nobody else sees.
WRITERS = {*MAKERS, "probe.py", "nfs_mount.py", "deadline.py"}
CREATING = {"makedirs", "mkdir", "mknod", "mkfifo"}


def creations(source: str) -> Iterator[tuple[str, int]]:
    """Yield the name and line of each call whose result depends on the umask."""
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
def test_a_call_that_creates_is_recognised(line: str, expected: list[str]) -> None:
    assert [name for name, _line in creations(line)] == expected
