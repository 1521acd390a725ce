"""The imports point one way: modules -> runner -> linux -> core, and a filter sees core alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
PREFIX = "ansible_collections.renderfarm.overlay.plugins."
# What core may not touch: the system, the clock, the network.
IMPURE = {
    "asyncio",
    "ctypes",
    "datetime",
    "fcntl",
    "glob",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "resource",
    "select",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}
# Each room, and the rooms of this collection that it may import from.
ALLOWED = {
    "core": {"core"},
    "linux": {"linux", "core"},
    "runner": {"runner", "linux", "core"},
    "modules": {"runner", "linux", "core"},
    "filter": {"core"},
    "doc_fragments": set[str](),
}


def room_of(name: str) -> str:
    """Return the room of a module, given its dotted name below plugins."""
    parts = name.split(".")
    return parts[1] if parts[0] == "module_utils" else parts[0]


def imports(source: str) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def complaints(room: str, source: str) -> list[str]:
    """Return what a file in a room imports and may not."""
    found = []
    for name in imports(source):
        top = name.partition(".")[0]
        if top == "ansible_collections":
            allowed = name.startswith(PREFIX) and room_of(name[len(PREFIX) :]) in ALLOWED[room]
        elif top == "ansible":
            allowed = room not in ("core", "linux")
        elif room == "core":
            allowed = top in sys.stdlib_module_names and top not in IMPURE
        else:
            allowed = True
        if not allowed:
            found.append(name)
    return found


def files() -> list[Path]:
    return sorted(PLUGINS.rglob("*.py"))


def test_there_is_something_to_check() -> None:
    rooms = {room_of(".".join(path.relative_to(PLUGINS).with_suffix("").parts)) for path in files()}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(".".join(path.relative_to(PLUGINS).with_suffix("").parts))
    assert complaints(room, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("core", "import os.path"),
        ("core", "from time import monotonic"),
        ("core", "from ansible.module_utils.basic import AnsibleModule"),
        ("core", "import xattr"),
        ("core", "def f():\n    import subprocess"),
        ("core", f"from {PREFIX}module_utils.linux.mounts import x"),
        ("linux", f"from {PREFIX}module_utils.runner import x"),
        ("linux", "from ansible.module_utils.basic import AnsibleModule"),
        ("runner", f"from {PREFIX}modules import overlay_mount"),
        ("filter", f"from {PREFIX}module_utils.linux import mounts"),
        ("modules", "from ansible_collections.ansible.posix.plugins.module_utils.mount import x"),
    ],
)
def test_a_wrong_import_is_noticed(room: str, statement: str) -> None:
    assert complaints(room, statement)
