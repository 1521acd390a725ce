"""Locks: read as they were written, readable as a diff, and refused if they are anything else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import LockedImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import (
    LockedView,
    lock_from_json,
    lock_from_values,
    lock_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

DIGEST = "sha256:" + "0f" * 32
IMAGE = LockedImage("a/1", "trace", "sha256:" + "1c" * 32, 4096, 17, False)
VIEWS = (
    LockedView("tools", "0123456789abcdef", ({"release": "usd/1", "digest": DIGEST},)),
    LockedView(
        "software",
        "fedcba9876543210",
        (
            {"release": "houdini/20", "digest": DIGEST, "at": "houdini", "exclude": ["demo"]},
            {"release": "a/1", "digest": DIGEST},
        ),
        ({"release": "a/1", "until": "2026-11-27T18:57:00Z"},),
        DIGEST,
    ),
)


def altered(change: Any) -> str:
    values = json.loads(lock_to_json(VIEWS))
    change(values)
    return json.dumps(values)


def test_a_lock_is_read_as_it_was_written() -> None:
    assert lock_from_json(lock_to_json(VIEWS)) == {view.name: view for view in VIEWS}
    assert lock_from_values(json.loads(lock_to_json(VIEWS))) == {view.name: view for view in VIEWS}
    assert lock_from_json(lock_to_json([])) == {}


def test_a_lock_with_data_images_has_a_newer_format() -> None:
    with_images = [replace(view, data_images=(IMAGE, replace(IMAGE, kind="everything"))) for view in VIEWS]
    text = lock_to_json(with_images)
    assert lock_from_json(text) == {view.name: view for view in with_images}
    assert json.loads(text)["format"] == 2
    assert sum("4096" in line for line in text.splitlines()) == 4
    # Earlier versions read a lock without data images, and this version reads theirs.
    assert json.loads(lock_to_json(VIEWS))["format"] == 1


def test_a_lock_with_links_has_the_newest_format() -> None:
    links = ({"path": "usd/current", "target": "1"}, {"path": "usd/old", "target": "0.9"})
    with_links = [replace(VIEWS[0], links=links), VIEWS[1]]
    text = lock_to_json(with_links)
    assert lock_from_json(text) == {view.name: view for view in with_links}
    assert json.loads(text)["format"] == 3
    assert sum('"path"' in line for line in text.splitlines()) == 2


def test_the_same_views_give_the_same_text_and_a_changed_release_changes_one_line() -> None:
    text = lock_to_json(VIEWS)
    assert text == lock_to_json(reversed(VIEWS))
    before, after = text.splitlines(), text.replace("usd/1", "usd/2").splitlines()
    assert sum(one != other for one, other in zip(before, after)) == 1
    assert sum("release" in line and "digest" in line for line in before) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lock: lock.update(format=4), "a newer version of the collection wrote it"),
        (lambda lock: lock["views"].append(lock["views"][0]), "it has a view twice"),
        (lambda lock: lock["views"][0].update(generation="../../x"), "generation"),
        (lambda lock: lock["views"][0].update(name="../x"), "name"),
        (lambda lock: lock["views"][0]["releases"][0].update(release="../x"), "release"),
        (lambda lock: lock["views"][0]["releases"][0].pop("digest"), "digest"),
        (lambda lock: lock["views"][0].update(releases=[]), "releases"),
        (lambda lock: lock["views"][0].update(other=1), "other"),
        (lambda lock: lock.pop("views"), "views"),
        (lambda lock: lock["views"][0].update(data_images=[{**IMAGE.as_dict(), "kind": "globs"}]), "kind"),
        (lambda lock: lock["views"][0].update(data_images=[{**IMAGE.as_dict(), "digest": "../x"}]), "digest"),
        (lambda lock: lock["views"][0].update(data_images=[{**IMAGE.as_dict(), "release": "/x"}]), "release"),
        (lambda lock: lock["views"][0].update(links=[{"path": "../x", "target": "y"}]), "path"),
    ],
)
def test_what_is_no_lock_is_refused(change: Any, reason: str) -> None:
    with pytest.raises(OverlayError, match=rf"^not a lock of views: .*{reason}"):
        lock_from_json(altered(change))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "views: []", "\ud800"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(OverlayError, match=r"^not a lock of views: "):
        lock_from_json(text)
