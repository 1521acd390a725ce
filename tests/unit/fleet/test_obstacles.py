"""What a host that resolves the views says when it cannot, and what it does not try then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.action import resolved_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import declared_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import shared_views

ROOTS = [{"name": name, "path": f"/net/{name}"} for name in ("houdini", "maya", "nuke")]


class Host(resolved_views.ActionModule):
    """A host that scans, with what its modules return."""

    def __init__(self, **answers: Any) -> None:
        self._task = SimpleNamespace(check_mode=False)
        self._display = SimpleNamespace(display=lambda _line: None)
        self.answers = answers
        self.calls: list[tuple[str, str]] = []

    def _call(self, module: str, options: dict[str, Any], _variables: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((module, str(options.get("root", ""))))
        answer = self.answers[module]
        return dict(answer(options["root"]) if callable(answer) else answer)


def resolved(host: Host, **keys: Any) -> resolved_views._Resolution:
    given = {"name": "software", "mountpoint": "/software", **keys}
    declared, problems = declared_views([given], {"root": "/net/software", "store": "/net/manifests"})
    assert problems == []
    return host._resolve(shared_views({"one": declared}, "one")[0], {})


def test_after_a_root_that_cannot_be_listed_the_others_of_its_view_are_not_asked() -> None:
    """Each root whose server does not answer would take a time limit of its own."""

    def listed(root: str) -> dict[str, Any]:
        if root == "/net/maya":
            return {"failed": True, "msg": "gave up"}
        return {"releases": [], "links": []}

    host = Host(release_info=listed)
    found = resolved(host, roots=ROOTS, query="@")
    assert host.calls == [("release_info", "/net/houdini"), ("release_info", "/net/maya")]
    assert (found.failures, found.obstacle) == ({"software": "gave up"}, "gave up")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (
            "release tool/1 does not exist: there is no /net/software/tool/1",
            "release tool/1 does not exist: there is no /net/software/tool/1",
        ),
        ("/net/x: Read-only file system", "release tool/1 cannot be scanned: /net/x: Read-only file system"),
        ("release tool/1.0 is a mount", "release tool/1 cannot be scanned: release tool/1.0 is a mount"),
    ],
)
@pytest.mark.parametrize("each", [False, True])
def test_a_release_that_cannot_be_scanned_is_named_once(reason: str, expected: str, each: bool) -> None:
    failure: dict[str, Any] = {"failed": True, "msg": reason}
    if each:
        failure.update(msg="1 of 1 failed", failures=[{"release": "tool/1", "msg": reason, "of_host": False}])
    host = Host(release_info={"releases": [], "links": []}, release_manifest=failure)
    assert resolved(host, releases=["tool/1"]).failures == {"software": expected}


def test_after_a_scan_that_is_broken_off_no_other_batch_is_scanned() -> None:
    host = Host(release_info={"releases": [], "links": []}, release_manifest={"failed": True, "msg": "gave up"})
    found = resolved(host, releases=[f"tool/{number}" for number in range(60)])
    assert [module for module, _root in host.calls] == ["release_info", "release_manifest"]
    assert (list(found.failures), found.obstacle) == (["software"], "gave up")


def test_an_obstacle_names_its_view_once() -> None:
    listed = {"path": "tool/1", "version": "1", "exists": True, "ready": True, "manifest": "/net/manifests/tool/1"}
    reason = "view software: the store is full"
    for given in (reason, "the store is full"):
        answer = {"views": [{"name": "software", "msg": given, "of_host": True}]}
        host = Host(release_info={"releases": [listed], "links": []}, view_lock=answer)
        assert resolved(host, releases=["tool/1"]).obstacle == reason
