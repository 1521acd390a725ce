"""Measure switching a mounted view, from reading mountinfo until the old view is detached."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountpoints
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, detached, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import plan_mounted
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, mount_spec

TURNS = 101


def seconds_of_switches(directory: Path, images: bool) -> list[float]:
    """Switch between two generations below ``directory``, as directories or images; return the seconds of each switch."""
    detached.DIRECTORY = str(directory / "detached" / "records")
    specs = [_generation(directory, number, images) for number in range(2)]
    found = []
    for turn in range(TURNS + 1):
        spec = specs[turn % 2]
        started = time.perf_counter()
        plan = plan_mounted(
            spec, mounts.observe(spec.path), creating.overlay_defaults(), "beneath", mounts.can_mount_beneath()
        )
        for action in plan:
            apply(action, mounts.HANDLERS)
        found.append(time.perf_counter() - started)
    mountpoints.unmount(specs[0].path)
    # The first turn only mounts.
    return found[1:]


def _generation(directory: Path, number: int, image: bool) -> MountSpec:
    layer, data = directory / f"layer{number}", directory / "data"
    data.mkdir(exist_ok=True)
    layer.mkdir()
    (layer / "file").touch()
    lower = os.fsencode(layer)
    if image:
        lower = os.fsencode(layer) + b".erofs"
        subprocess.run(["mkfs.erofs", "--quiet", lower, layer], check=True, stdout=subprocess.DEVNULL)
        (layer / "file").unlink()
        layer.rmdir()
    return mount_spec(os.fsencode(directory / "view"), [lower], [os.fsencode(data)], {}, True, [lower] if image else [])
