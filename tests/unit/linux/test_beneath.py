"""Code that works inside trees that others may write to uses descriptors only (linux/beneath.py), and no paths."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = Path(__file__).resolve().parents[3] / "plugins" / "module_utils"

#: The files with such code: one of overlays, one of retirement, and all of finalize.
FOREIGN = sorted(
    str(path.relative_to(ROOMS))
    for path in (
        ROOMS / "overlays" / "uppers.py",
        ROOMS / "retirement" / "deleting.py",
        *(ROOMS / "finalize").glob("*.py"),
    )
    if path.name != "__init__.py"
)
#: Their functions that use paths which only root can change: below /run, /proc and /sys, or in a private mount namespace.
OWN_PATHS = {
    "finalize/moving.py": {"_longest_redirect"},
    "finalize/parallel.py": {"held"},
    "finalize/remount.py": {"forget"},
    "overlays/uppers.py": {"mark_empty"},
}

#: Functions of module os that take a path.
PATHED = {
    *(
        "access",
        "chdir",
        "chflags",
        "chmod",
        "chown",
        "chroot",
        "getxattr",
        "lchown",
        "link",
        "listdir",
        "listxattr",
        "lstat",
    ),
    *(
        "makedirs",
        "mkdir",
        "mkfifo",
        "mknod",
        "open",
        "readlink",
        "remove",
        "removedirs",
        "removexattr",
        "rename",
        "renames",
    ),
    *(
        "replace",
        "rmdir",
        "scandir",
        "setxattr",
        "stat",
        "statvfs",
        "symlink",
        "truncate",
        "unlink",
        "utime",
        "walk",
        "fwalk",
    ),
}
#: Functions of os.path that only handle text.
TEXTUAL = {"join", "split", "basename", "dirname", "isabs", "normpath"}
#: Functions of linux/ that may be called with a path: they work where only root can write, or open the path safely.
HARMLESS = {
    "files": {"allow_deep_trees", "check_nothing_mounted", "empty", "make_directories", "remove_tree", "written_aside"},
    "syscalls": {"has_superblock", "mount", "syncfs", "umount", "die_with_parent"},
}
#: Modules whose functions take paths only.
BANNED = {"glob", "pathlib", "shutil", "tempfile", "xattr"}


def complaints(source: str, exempt: set[str]) -> list[str]:
    """Return the calls that take a path, each with its line."""
    tree = ast.parse(source)
    return [text for node in tree.body for text in _of(node, exempt)]


def _of(node: ast.AST, exempt: set[str]) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef) and node.name in exempt:
        return
    if isinstance(node, ast.Import):
        yield from (f"{node.lineno}: import {name.name}" for name in node.names if name.name.split(".")[0] in BANNED)
    if isinstance(node, ast.ImportFrom):
        yield from (f"{node.lineno}: import {name.name}" for name in node.names if name.name == "xattrs")
        if (node.module or "").split(".")[0] in {*BANNED, "os"}:
            yield f"{node.lineno}: from {node.module} import"
    if isinstance(node, ast.Attribute) and _is_pathed(node):
        yield f"{node.lineno}: {ast.unparse(node)}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
        yield f"{node.lineno}: open"
    for child in ast.iter_child_nodes(node):
        yield from _of(child, exempt)


def _is_pathed(node: ast.Attribute) -> bool:
    if isinstance(node.value, ast.Name):
        owner = node.value.id
        return (owner == "os" and node.attr in PATHED) or (
            owner in HARMLESS and not node.attr.isupper() and node.attr not in HARMLESS[owner]
        )
    return ast.unparse(node.value) == "os.path" and node.attr not in TEXTUAL


@pytest.mark.parametrize("name", FOREIGN)
def test_nothing_is_named_by_a_path(name: str) -> None:
    assert complaints((ROOMS / name).read_text(encoding="utf-8"), OWN_PATHS.get(name, set())) == []


@pytest.mark.parametrize("name", sorted(OWN_PATHS))
def test_no_exemption_is_left_over(name: str) -> None:
    source = (ROOMS / name).read_text(encoding="utf-8")
    for function in OWN_PATHS[name]:
        assert complaints(source, OWN_PATHS[name] - {function}), function


@pytest.mark.parametrize(
    "statement",
    [
        "os.chmod(path, 0o755)",
        "os.lchown(name, 1, 2)",
        "os.listdir(fd)",
        "for here in os.walk(top): pass",
        "def f():\n    with os.scandir(path) as found: pass",
        "os.path.isdir(path)",
        "os.path.realpath(path)",
        "import shutil",
        "from shutil import rmtree",
        "from os import chmod",
        "from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, xattrs",
        "files.sync_directory(path)",
        "syscalls.rename_new(1, a, 2, b)",
        "remove = os.unlink",
        "open(path)",
    ],
)
def test_a_path_is_noticed(statement: str) -> None:
    assert complaints(statement, set())


def test_calls_without_paths_of_others_are_allowed() -> None:
    assert (
        complaints(
            "os.path.join(a, b)\nos.fstat(fd)\nos.fchmod(fd, 1)\nbeneath.open_at(fd, name)\nfiles.remove_tree(x)", set()
        )
        == []
    )
