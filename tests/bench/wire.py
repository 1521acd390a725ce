"""Measure what a host copies from an image store: a whole image, and the delta after one release has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import images
import synthetic

Worker = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Copied:
    """Hold what was copied for one view. Keys are those of the results of worker.py."""

    files: int
    releases: int
    published: dict[str, Any]
    changed: dict[str, Any]
    whole: dict[str, Any]
    delta: dict[str, Any]


def measure(files: int, manifests: Path, place: Path, worker: Worker) -> Copied:
    """Publish two generations in a store below ``place``, and install them one after the other on a host below it."""
    store, host = place / "images", place / "host"
    store.mkdir()
    host.mkdir(mode=0o700)
    before = synthetic.write(manifests, files)
    published = worker("publish", store, images.BUILDER, *before)
    whole = worker("install", store, host, published["generation"])
    changed = worker("publish", store, images.BUILDER, *synthetic.write_changed(manifests, files))
    delta = worker("install", store, host, changed["generation"])
    return Copied(files, len(before), published, changed, whole, delta)
