"""A run that builds data images says for each release that it is built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.action import resolved_views

RELEASES = ("usd/1", "usd/2", "qt/1")


class Host(resolved_views.ActionModule):
    """A host that scans, with the releases whose data images are missing."""

    def __init__(self, check_mode: bool = False, unbuilt: tuple[str, ...] = RELEASES) -> None:
        self._task = SimpleNamespace(check_mode=check_mode)
        self.lines: list[str] = []
        self._display = SimpleNamespace(display=self.lines.append)
        self.unbuilt = list(unbuilt)
        self.calls: list[dict[str, Any]] = []

    def _call(self, module: str, options: dict[str, Any], _variables: dict[str, Any]) -> dict[str, Any]:
        assert module == "view_lock"
        (view,) = options["views"]
        self.calls.append({name: view[name] for name in ("sample", "data_builds")})
        builds = len(self.unbuilt) if view["data_builds"] is None else view["data_builds"]
        built = [f"build the data image of {release}" for release in self.unbuilt[:builds]]
        del self.unbuilt[:builds]
        lists: dict[str, list[Any]] = {"releases": [], "leaving": []}
        found = {"name": "software", "msg": "", "generation": "0" * 16, "image_digest": None, **lists}
        return {"views": [{**found, **({"unbuilt": list(self.unbuilt)} if self.unbuilt else {})}], "actions": built}

    def locked(self) -> resolved_views._Resolution:
        resolution = resolved_views._Resolution()
        self._lock([{"name": "software", "sample": 20}], resolution, {})
        return resolution


def test_each_release_is_shown_before_its_image_is_built() -> None:
    host = Host()
    resolution = host.locked()
    assert [view.name for view in resolution.locked] == ["software"]
    assert resolution.actions == [f"build the data image of {release}" for release in RELEASES]
    assert host.lines == [
        "view software: building the data image of usd/1, 2 more to build",
        "view software: building the data image of usd/2, 1 more to build",
        "view software: building the data image of qt/1",
    ]
    later = {"sample": 0, "data_builds": 1}
    assert host.calls == [{"sample": 20, "data_builds": 0}, later, later, later]


def test_without_missing_images_one_call_is_enough() -> None:
    host = Host(unbuilt=())
    host.locked()
    assert (host.lines, host.calls) == ([], [{"sample": 20, "data_builds": 0}])


def test_check_mode_asks_once() -> None:
    host = Host(check_mode=True)
    assert len(host.locked().actions) == 3
    assert (host.lines, host.calls) == ([], [{"sample": 20, "data_builds": None}])
