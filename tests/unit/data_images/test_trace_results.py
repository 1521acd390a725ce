"""Opened files are attributed to releases by the paths of their content."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.trace_results import (
    AddToTrace,
    OpenedReleases,
    ReleasePlaces,
    plan_traces,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import TracedFile, trace_of

PLACES = ReleasePlaces(
    [
        {"release": "a/1", "source": "a/1", "at": "a/1"},
        {"release": "b/1", "source": "b/1", "at": ""},
        {"release": "a/1/in", "source": "a/1/in", "at": "in"},
        {"release": "whole", "source": "", "at": "whole"},
        {"release": "n/\udcff", "source": "n/\udcff", "at": "n"},
    ]
)


@pytest.mark.parametrize(
    ("content", "name", "found"),
    [
        (b"a/1/lib/x", b"a/1/lib/x", ("a/1", b"lib/x")),
        (b"a/1/lib/x", None, ("a/1", b"lib/x")),
        (b"b/1/x", b"x", ("b/1", b"x")),
        # Two releases have the file, and the name in the view decides.
        (b"a/1/in/x", b"in/x", ("a/1/in", b"x")),
        (b"a/1/in/x", b"a/1/in/x", ("a/1", b"in/x")),
        (b"a/1/in/x", b"whole/a/1/in/x", ("whole", b"a/1/in/x")),
        # The name of a hard link is not that of its content.
        (b"a/1/in/x", b"in/other-name", ("a/1/in", b"x")),
        (b"a/1/in/x", None, ("a/1/in", b"x")),
        (b"a/10/x", None, ("whole", b"a/10/x")),
        (b"n/\xff/\n", b"n/\n", ("n/\udcff", b"\n")),
    ],
)
def test_the_path_of_the_content_gives_the_release(
    content: bytes, name: bytes | None, found: tuple[str, bytes]
) -> None:
    assert PLACES.find(content, name) == found


@pytest.mark.parametrize("content", [b"", b"a", b"a/1", b"a/10/x", b"x"])
def test_content_of_no_release_is_not_attributed(content: bytes) -> None:
    assert ReleasePlaces([{"release": "a/1", "source": "a/1", "at": "a/1"}]).find(content) is None


def _found() -> OpenedReleases:
    found = OpenedReleases()
    found.add("a/1", b"x", 10, 2, {1, 2})
    found.add("a/1", b"x", 10, 1, {2})
    found.add("a/1", b"w", 5, 1, {3})
    found.add("b/1", b"x", 1, 4, {1})
    return found


def test_starts_are_processes_unless_there_was_one_start() -> None:
    found = _found()
    assert found.releases == ["a/1", "b/1"]
    assert found.trace("a/1", one_start=False) == trace_of("a/1", 3, [TracedFile(b"x", 3, 2), TracedFile(b"w", 1, 1)])
    assert found.trace("a/1", one_start=True) == trace_of("a/1", 1, [TracedFile(b"x", 3, 1), TracedFile(b"w", 1, 1)])
    assert found.bytes_of("a/1") == 15


def test_files_that_the_manifest_does_not_have_are_of_no_release() -> None:
    found = _found()
    found.keep("a/1", {b"w"})
    found.keep("b/1", ())
    assert found.releases == ["a/1"]
    assert found.paths("a/1") == {b"w"}
    assert found.unmapped == 7


def test_the_plan_names_each_release() -> None:
    plan = plan_traces([_found().trace("a/1", one_start=True)])
    assert [str(action) for action in plan] == ["add 4 opens of 2 files to the trace of release a/1"]
    assert isinstance(plan[0], AddToTrace)
