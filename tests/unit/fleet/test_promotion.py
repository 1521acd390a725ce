"""What canary hosts show goes to the others only if it is the same on all of them, and nothing is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import LockedView
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.promotion import promoted

DIGEST = "sha256:" + "0" * 64
RELEASES = ({"release": "usd/1", "digest": DIGEST},)
ONE, TWO = "1" * 16, "2" * 16


def view(generation: str = ONE, image: str | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "name": "software",
        "generation": generation,
        "mounted": True,
        "seconds": 100,
        "hold": None,
        "failure": "",
        "lock": LockedView("software", generation, RELEASES, (), image).as_dict(),
        **fields,
    }


def shown(*views: dict[str, Any]) -> dict[str, Any]:
    return {"views": list(views)}


def test_what_all_canary_hosts_show_is_promoted() -> None:
    locked, problems = promoted({"c1": shown(view()), "c2": shown(view())}, None, 100)
    assert problems == []
    assert locked == [LockedView("software", ONE, RELEASES)]


HELD = {"generation": ONE, "until": 0, "reason": ""}


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        ({}, "overlay_canary names no host of the inventory"),
        ({"c1": shown(view()), "c2": {}}, "1 of 2 canary hosts were read, and 2 have to be"),
        ({"c1": shown(view()), "c2": {"unreachable": True}}, "unreachable, or --limit leaves them out: c2"),
        ({"c1": shown(view()), "c2": {"failed": True, "msg": "no"}}, "what it shows cannot be read: no (on c2)"),
        ({"c1": shown(view()), "c2": shown(view(TWO))}, f"different generations: {ONE} on c1, {TWO} on c2"),
        ({"c1": shown(view(image=DIGEST)), "c2": shown(view())}, f"different images of generation {ONE}"),
        ({"c1": shown(view(mounted=False))}, "view software: it is not mounted: deploy to the canary hosts first"),
        ({"c1": shown(view(failure="full"))}, "view software: the last run failed: full"),
        ({"c1": shown(view(hold=HELD))}, f"view software: a rollback holds it at generation {ONE}: deploy to"),
        ({"c1": shown(view(lock=None))}, f"it shows generation {ONE}, which was not deployed with a lock"),
        ({"c1": shown(view(lock=view(TWO)["lock"]))}, f"it shows generation {ONE}, which was not deployed with a lock"),
        (
            {"c1": shown(view(seconds=99))},
            f"it has shown generation {ONE} for 99 seconds, and overlay_promote_after is",
        ),
        ({"c1": shown()}, "the canary hosts declare no view that is to be mounted"),
    ],
)
def test_anything_else_is_refused(read: dict[str, Any], problem: str) -> None:
    problems = promoted(read, None, 100)[1]
    assert [problem in found for found in problems] == [True]


def test_some_canary_hosts_may_be_missing_if_that_is_allowed() -> None:
    read = {"c1": shown(view()), "c2": {"unreachable": True}, "c3": {}}
    assert promoted(read, 1, 0) == ([LockedView("software", ONE, RELEASES)], [])
    assert len(promoted(read, 2, 0)[1]) == 1
    # At least one, whatever is given.
    assert "0 of 1 canary hosts were read, and 1 have to be" in promoted({"c1": {}}, 0, 0)[1][0]
