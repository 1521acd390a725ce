"""The rooms of the code: which may import from which, which of their files are pure, and how large they are.

Run as a program, it prints the table of imports: `python tests/unit/test_rooms.py`.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
PREFIX = "ansible_collections.renderfarm.overlay.plugins."

#: Each room, and the other rooms that it may import from.
ARROWS = {
    "linux": set[str](),
    "stores": {"linux"},
    "releases": {"stores", "linux"},
    "trees": {"releases", "linux"},
    "overlays": {"trees", "linux"},
    "at_boot": {"overlays", "trees", "linux"},
    "layers": {"overlays", "releases", "linux"},
    "views": {"at_boot", "layers", "overlays", "trees", "releases", "stores", "linux"},
    "data_images": {"views", "layers", "overlays", "releases", "stores", "linux"},
    "retirement": {"data_images", "views", "layers", "overlays", "releases", "stores", "linux"},
    "finalize": {"overlays", "releases", "linux"},
    "software_root": {"linux"},
    "fleet": {
        *("software_root", "data_images", "views", "at_boot", "layers", "overlays", "trees", "releases", "stores"),
        "linux",
    },
    "declaring": {"fleet", "software_root", "views", "layers", "overlays", "releases", "stores", "linux"},
    "verify": {
        *("fleet", "finalize", "data_images", "views", "layers", "overlays", "trees", "releases", "stores", "linux"),
    },
    "reports": {"verify", "fleet", "data_images", "views", "at_boot", "layers", "overlays", "trees", "linux"},
    "runner": {"linux"},
    "modules": {
        "runner",
        "reports",
        "fleet",
        "retirement",
        "data_images",
        "verify",
        "views",
        "layers",
        "finalize",
        "software_root",
        "overlays",
        "trees",
        "releases",
        "stores",
        "linux",
    },
    "resolvers": {"linux"},
    "filter": {"reports", "declaring", "fleet", "resolvers", "releases", "linux"},
    "action": {"reports", "declaring", "fleet", "filter", "linux"},
    "doc_fragments": set[str](),
}
#: Files that make no system call: they take values and return values. They import pure files alone.
PURE = {
    "linux": {"action", "errors", "fstab_lines", "mountinfo", "paths", "records"},
    "stores": {"locations"},
    "releases": {
        *(
            "capability",
            "data_image_record",
            "entries",
            "entry_check",
            "manifest",
            "manifest_plan",
            "nfs4_acl",
            "patterns",
            "posix_acl",
            "rights",
        ),
        *("scan_report", "trace_record", "versions"),
    },
    "overlays": {
        *("detached_records", "image_names", "mount_plan", "option_rules", "options", "strategies", "upper_rules"),
    },
    "at_boot": {"boot_mounts", "boot_paths", "boot_plan", "mount_options", "mount_units", "view_lines"},
    "trees": {"sharing", "tree_parts"},
    "layers": {
        *("compose", "deflating", "dump", "globs", "headerball", "image_delta", "image_records", "layer_formats"),
        *("limits", "links", "merge", "ownership"),
    },
    "views": {"generation_record", "layer_plan", "layer_spec", "linger", "retention", "view_paths"},
    "data_images": {"image_plan", "selection", "trace_results"},
    "retirement": {"release_places", "release_roots", "retire_plan"},
    "finalize": {
        *("decisions", "directories", "finalize_request", "finalize_result", "marks", "move_plan", "remount_notes"),
    },
    "verify": {"comparison", "data_places", "overlay_marks", "problems", "recorded_layer", "verified_record"},
    "software_root": {"nfs_options", "root_plan"},
    "fleet": {
        "data_choice",
        "host_ranges",
        "lock",
        "promotion",
        "resolution",
        "shown_layer",
        "status",
        "view_roots",
    },
    "declaring": {"declared_values", "view_declaration", "view_keys", "view_problems"},
    "reports": {"drift", "gathering", "metrics", "mountstats", "report", "report_page", "usage_report", "verification"},
    "resolvers": {"conda", "json_values", "resolved", "rez", "spack", "spack_lock", "spack_specs"},
}
#: What pure files may not touch: the system, the clock, the network.
IMPURE = {
    *(
        "asyncio",
        "ctypes",
        "datetime",
        "fcntl",
        "glob",
        "grp",
        "http",
        "multiprocessing",
        "os",
        "pathlib",
        "pwd",
        "random",
        "resource",
    ),
    *("select", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time"),
}
#: What stands before the body of a module, which has at most so many lines.
DOCUMENTATION = ("DOCUMENTATION", "EXAMPLES", "RETURN")
MOST_LINES = 100
#: A room with more files than this has two subjects. Modules are the interface of all rooms, so their number is not limited.
MOST_FILES = 20


def place_of(name: str) -> tuple[str, str]:
    """Return the room and the file of a module, given its dotted name below plugins."""
    parts = name.split(".")
    if parts[0] == "module_utils":
        return (parts[1], parts[2]) if len(parts) > 2 else (parts[1], parts[1])
    return parts[0], parts[1] if len(parts) > 1 else ""


def imports(source: str) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def complaints(room: str, file: str, source: str) -> list[str]:
    """Return what a file imports and may not."""
    # Filters run on the controller, which need not be Linux.
    pure = room == "filter" or file in PURE.get(room, ())
    return [name for name in imports(source) if not _allowed(room, pure, name)]


def _allowed(room: str, pure: bool, name: str) -> bool:
    top = name.partition(".")[0]
    if top == "ansible_collections":
        if not name.startswith(PREFIX):
            return False
        other, file = place_of(name[len(PREFIX) :])
        return (other == room or other in ARROWS[room]) and (not pure or file in PURE.get(other, ()))
    if top == "ansible":
        return room in ("runner", "modules", "filter", "action", "doc_fragments")
    if room == "filter" and top in ("jmespath", "jinja2"):
        return True
    return not pure or (top in sys.stdlib_module_names and top not in IMPURE)


def files() -> list[Path]:
    return sorted(path for path in PLUGINS.rglob("*.py") if path.name != "__init__.py")


def place(path: Path) -> tuple[str, str]:
    return place_of(".".join(path.relative_to(PLUGINS).with_suffix("").parts))


def table() -> str:
    """Return the table of imports: for each room its files, how many of them are pure, and how often it imports from which other room."""
    lines = [f"{'room':15}{'files':>6}{'pure':>6}  imports from"]
    for room in ARROWS:
        there = [path for path in files() if place(path)[0] == room]
        used: Counter[str] = Counter()
        for path in there:
            names = {name for name in imports(path.read_text(encoding="utf-8")) if name.startswith(PREFIX)}
            used.update(place_of(name[len(PREFIX) :])[0] for name in names)
        others = ", ".join(f"{other} {used[other]}" for other in ARROWS if used[other] and other != room)
        lines.append(f"{room:15}{len(there):6}{len(PURE.get(room, ())):6}  {others or '-'}")
    return "\n".join(lines)


def test_the_rooms_are_those_that_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert {place(path)[0] for path in files()} == set(ARROWS)
    with capsys.disabled():
        print(f"\n{table()}")


def test_every_pure_file_is_there() -> None:
    there = {place(path) for path in files()}
    assert {(room, file) for room, pure in PURE.items() for file in pure} - there == set()


def test_no_arrow_leads_back() -> None:
    order = list(ARROWS)
    for room, others in ARROWS.items():
        assert all(order.index(other) < order.index(room) for other in others), room


def test_no_room_is_too_large() -> None:
    counts = Counter(place(path)[0] for path in files() if "module_utils" in path.parts)
    assert {room: count for room, count in counts.items() if count > MOST_FILES} == {}


def test_no_name_stands_in_two_rooms() -> None:
    names = Counter(place(path)[1] for path in files() if "module_utils" in path.parts)
    assert [name for name, count in names.items() if count > 1] == []


def test_no_class_name_stands_for_two_things() -> None:
    names = Counter(
        node.name
        for path in files()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and "module_utils" in path.parts
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (PLUGINS / "modules").glob("*.py")))
def test_a_module_is_thin(name: str) -> None:
    source = (PLUGINS / "modules" / f"{name}.py").read_text(encoding="utf-8")
    documented = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in DOCUMENTATION
    ]
    assert source.count("\n") - (documented[-1].end_lineno or 0) <= MOST_LINES


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_imports_point_one_way(path: Path) -> None:
    room, file = place(path)
    assert complaints(room, file, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "file", "statement"),
    [
        ("layers", "compose", "import os.path"),
        ("linux", "paths", "from time import monotonic"),
        ("views", "generation", "from ansible.module_utils.basic import AnsibleModule"),
        ("releases", "manifest", "import xattr"),
        ("overlays", "options", "def f():\n    import subprocess"),
        ("overlays", "options", f"from {PREFIX}module_utils.overlays.mounts import x"),
        ("overlays", "options", f"from {PREFIX}module_utils.linux import files"),
        ("overlays", "mounts", f"from {PREFIX}module_utils.views.generation import x"),
        ("overlays", "mounts", f"from {PREFIX}module_utils.releases.entries import x"),
        ("linux", "files", f"from {PREFIX}module_utils.overlays import mounts"),
        ("linux", "files", f"from {PREFIX}module_utils.runner import x"),
        ("linux", "files", f"from {PREFIX}module_utils import runner"),
        ("software_root", "nfs_mount", f"from {PREFIX}module_utils.overlays.options import x"),
        ("linux", "files", "from ansible.module_utils.basic import AnsibleModule"),
        ("runner", "runner", f"from {PREFIX}modules import overlay_mount"),
        ("runner", "runner", f"from {PREFIX}module_utils.overlays import mounts"),
        ("filter", "select_releases", f"from {PREFIX}module_utils.linux import files"),
        ("modules", "view", "from ansible_collections.ansible.posix.plugins.module_utils.mount import x"),
    ],
)
def test_a_wrong_import_is_noticed(room: str, file: str, statement: str) -> None:
    assert complaints(room, file, statement)


if __name__ == "__main__":
    print(table())


def test_module_defaults_of_the_group_reach_every_module() -> None:
    # Those with an action run on the controller, and take no timeout.
    modules = {path.stem for path in (PLUGINS / "modules").glob("*.py")}
    actions = {path.stem for path in (PLUGINS / "action").glob("*.py")}
    groups = yaml.safe_load((PLUGINS.parent / "meta" / "runtime.yml").read_text(encoding="utf-8"))["action_groups"]
    assert groups["overlay"] == sorted(modules - actions)
