"""Every difference of a view from its declaration is one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_plan import (
    ReloadSystemd,
    RemovePart,
    RemoveUnit,
    RemoveViewLines,
    Stored,
    WriteUnit,
    WriteViewLines,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_units import Unit
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.shown_layer import shown_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import drift
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ViewState

GENERATIONS = b"/state/views/software/generations"
OLD, NEW = "0" * 16, "f" * 16


def mount(lower: bytes = b"", fstype: bytes = b"overlay") -> Mount:
    options = (b"ro", b"lowerdir=" + lower + b"::/net/software")
    return Mount(2, 1, (0, 2), b"/", b"/software", (b"ro",), (), fstype, b"source", options)


OWN = mount(GENERATIONS + b"/" + OLD.encode() + b"-erofs/layer")
OTHER = mount(b"/elsewhere")
TMPFS = mount(fstype=b"tmpfs")


def state(*generations: str, damaged: Any = ()) -> ViewState:
    return ViewState(True, frozenset(generations), None, None, dict.fromkeys(damaged, "it is damaged"))


@pytest.mark.parametrize(
    ("live", "directory"),
    [
        (OWN, f"{OLD}-erofs"),
        (OTHER, None),
        (TMPFS, None),
        (None, None),
        (mount(GENERATIONS + b"-2/" + OLD.encode() + b"-erofs/layer"), None),
        (mount(GENERATIONS + b"/lost+found/layer"), None),
        (mount(GENERATIONS + b"/" + OLD.encode() + b"-directory-redirect/layer"), f"{OLD}-directory-redirect"),
    ],
)
def test_the_generation_of_a_mount_is_found_by_its_layer(live: Mount | None, directory: str | None) -> None:
    shown = shown_layer(live, GENERATIONS)
    assert (shown.directory if shown else None) == directory


@pytest.mark.parametrize(
    ("stack", "sentences"),
    [
        ([OWN], []),
        ([], ["it is not mounted at /software"]),
        ([TMPFS, OWN], ["a mount of type tmpfs from source covers it at /software"]),
        ([OTHER], ["a mount of type overlay from source is at /software instead of it"]),
    ],
)
def test_a_mountpoint_that_does_not_show_the_view_is_explained(stack: list[Mount], sentences: list[str]) -> None:
    assert list(drift.of_mountpoint(b"/software", stack, GENERATIONS)) == sentences


@pytest.mark.parametrize(
    ("shown", "wanted", "found", "sentences"),
    [
        (f"{OLD}-erofs", OLD, state(f"{OLD}-erofs"), []),
        (None, None, state(), []),
        (f"{OLD}-erofs", None, state(f"{OLD}-erofs"), []),
        (
            f"{OLD}-erofs",
            NEW,
            state(f"{OLD}-erofs", f"{NEW}-directory"),
            [f"it shows generation {OLD} instead of {NEW}"],
        ),
        (None, NEW, state(), [f"generation {NEW} is not on this host"]),
        (
            f"{OLD}-erofs",
            OLD,
            state(f"{OLD}-directory"),
            [f"the layer or the record of generation {OLD}, which is mounted, is missing"],
        ),
        # A damaged record is a failure.
        (f"{OLD}-erofs", OLD, state(damaged=[f"{OLD}-erofs"]), []),
    ],
)
def test_generations_are_compared(
    shown: str | None, wanted: str | None, found: ViewState, sentences: list[str]
) -> None:
    assert list(drift.of_generation(shown, wanted, found)) == sentences


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": (["/a", "/b"], [])}, "its data layers are /a, /b instead of none"),
        ({"upper": (None, "/u")}, "its upper layer is none instead of /u"),
        ({"nosuid": (True, False)}, "mount option nosuid is on instead of off"),
        ({"xino": ("on", "auto")}, "mount option xino is on instead of auto"),
        (
            {"part maya": (None, ["/net/maya"])},
            "its part maya, which has the files of /net/maya, is not mounted",
        ),
        (
            {"part maya": (["/net/maya"], None)},
            "its part maya, which has the files of /net/maya, is mounted and not declared",
        ),
        (
            {"part maya": (["/net/nuke"], ["/net/maya"])},
            "its part maya has the files of /net/nuke instead of /net/maya",
        ),
    ],
)
def test_a_mount_is_compared(changes: dict[str, tuple[object, object]], sentence: str) -> None:
    assert list(drift.of_mount(changes)) == [sentence]


LINE = b"overlay /software overlay ro,x-renderfarm.overlay=view 0 0\n"


@pytest.mark.parametrize(
    ("action", "fstab", "sentences"),
    [
        (WriteUnit(Unit("a.mount", b"", True)), b"", ["unit a.mount, which is needed to mount it at boot, is missing"]),
        (
            WriteUnit(Unit("b.mount", b"", True)),
            b"",
            ["unit b.mount, which is needed to mount it at boot, differs from the declaration"],
        ),
        (RemoveUnit("b.mount"), b"", ["unit b.mount, which is there to mount it at boot, is not declared"]),
        (WriteViewLines(b"/software", ()), b"", ["the lines in /etc/fstab that mount it at boot are missing"]),
        (
            WriteViewLines(b"/software", ()),
            LINE,
            ["the lines in /etc/fstab that mount it at boot differ from the declaration"],
        ),
        (
            WriteViewLines(b"/other", ()),
            LINE,
            ["the lines in /etc/fstab that mount it at boot are missing"],
        ),
        (RemoveViewLines(b"/software"), LINE, ["the lines in /etc/fstab that mount it at boot are not declared"]),
        (ReloadSystemd(), b"", []),
        (RemovePart(b"/layer"), b"", []),
    ],
)
def test_what_mounts_a_view_at_boot_is_compared(action: Action, fstab: bytes, sentences: list[str]) -> None:
    stored = Stored((Unit("b.mount", b"old", True),), fstab)
    path = action.path if isinstance(action, WriteViewLines) else b"/software"
    assert list(drift.of_boot(path, (action,), stored)) == sentences


def test_units_with_one_fault_are_one_reason() -> None:
    # A view of many software roots has more than one unit for each.
    missing = [WriteUnit(Unit(f"part-{number}.mount", b"", True)) for number in range(52)]
    [sentence] = drift.of_boot(b"/software", tuple(missing), Stored((), b""))
    assert sentence == (
        "52 units, which are needed to mount it at boot, are missing: part-0.mount, part-1.mount, part-2.mount, part-3.mount, part-4.mount"
        " and 47 more"
    )


@pytest.mark.parametrize(
    ("failure", "sentences", "is_held", "status"),
    [
        ("it failed", ["drift"], True, "failed"),
        ("", ["drift"], True, "drifted"),
        ("", [], True, "held"),
        ("", [], False, "as declared"),
    ],
)
def test_the_worst_status_counts(failure: str, sentences: list[str], is_held: bool, status: str) -> None:
    assert drift.status_of(failure, sentences, is_held) == status
