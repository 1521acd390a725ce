"""Where symbolic links on a software root lead."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import release_links

RELEASES = ("houdini/20.5.410", "usd/25.05")
ROOTS = ("/net/software", "/export/software/")


@pytest.mark.parametrize(
    ("path", "target", "release", "shown"),
    [
        ("houdini/current", "20.5.410", "houdini/20.5.410", "20.5.410"),
        ("houdini/current", "./20.5.410/", "houdini/20.5.410", "20.5.410"),
        ("houdini/20.5", "../houdini/20.5.410", "houdini/20.5.410", "20.5.410"),
        ("hfs/20.5", "/net/software/houdini/20.5.410", "houdini/20.5.410", "../houdini/20.5.410"),
        ("hfs/20.5", "//export/software/houdini/20.5.410", "houdini/20.5.410", "../houdini/20.5.410"),
        ("houdini-current", "houdini/20.5.410", "houdini/20.5.410", "houdini/20.5.410"),
    ],
)
def test_a_link_to_a_release_of_the_same_root_leads_to_it_in_a_view_too(
    path: str, target: str, release: str, shown: str
) -> None:
    (found,) = release_links([(path, target)], RELEASES, ROOTS)
    assert (found.release, found.reason) == (release, "")
    assert found.as_dict()["link"] == {"path": path, "target": shown}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/vol2/houdini-20.5", "it leads to /vol2/houdini-20.5, which is outside of the software root"),
        ("/net/software2/houdini/20.5.410", "outside of the software root"),
        ("../../houdini/20.5.410", "outside of the software root"),
        ("../..", "outside of the software root"),
        ("latest", "it leads to houdini/latest, which is a symbolic link: let it lead to the release itself"),
        ("current", "it leads to houdini/current, which is a symbolic link"),
        ("20.5.999", "it leads to houdini/20.5.999 on the software root, where there is no release"),
        ("20.5.410/bin", "it leads to houdini/20.5.410/bin on the software root, where there is no release"),
        ("..", "it leads to . on the software root, where there is no release"),
        ("/net/software", "it leads to . on the software root, where there is no release"),
    ],
)
def test_a_link_that_leads_to_no_release_has_a_reason(target: str, reason: str) -> None:
    links = [("houdini/current", target), ("houdini/latest", "20.5.410")]
    first = release_links(links, RELEASES, ROOTS)[0].as_dict()
    assert (first["path"], first["release"], first["link"]) == ("houdini/current", None, None)
    assert reason in first["reason"]


OTHERS = {"maya": "/net/maya", "inner": "/vol2/maya/inner", "whole": "/"}


def resolved(path: str) -> str:
    return {"/net/maya": "/vol2/maya"}.get(path, path)


@pytest.mark.parametrize(
    ("target", "elsewhere"),
    [
        ("/vol2/maya/2025", "maya/2025"),
        ("//net//maya/./2025/", "maya/2025"),
        ("../../maya/2025", "maya/2025"),
        ("/vol2/maya/inner/1", "inner/1"),
        ("/vol2/maya2/2025", "whole/vol2/maya2/2025"),
        ("/vol2/maya/../../etc", "whole/etc"),
        ("../" * 20 + "vol2/maya/2025", "maya/2025"),
        # The root itself is no release of it.
        ("/vol2/maya", "whole/vol2/maya"),
        ("20.5.410", None),
    ],
)
def test_a_link_may_lead_to_another_root(target: str, elsewhere: str | None) -> None:
    roots = ("/vol2/software", "/net/software")
    (found,) = release_links([("houdini/current", target)], RELEASES, roots, OTHERS, resolved)
    assert (found.elsewhere, found.reason, found.release is None) == (elsewhere, "", elsewhere is not None)
    (found,) = release_links([("houdini/current", "/etc")], RELEASES, ROOTS, {"maya": "/net/maya"})
    assert (found.elsewhere, found.reason) == (None, "it leads to /etc, which is outside of the software root")


def test_other_roots_are_resolved_once_and_only_for_a_link_that_leads_to_no_release() -> None:
    asked = []

    def resolve(path: str) -> str:
        asked.append(path)
        return path

    release_links([("houdini/current", "20.5.410")], RELEASES, ROOTS, OTHERS, resolve)
    assert asked == []
    links = [("houdini/current", "/net/maya/1"), ("houdini/old", "/net/maya/2")]
    release_links(links, RELEASES, ROOTS, OTHERS, resolve)
    assert asked == [*OTHERS.values()]
