"""Take one measurement in a separate process, so that its times and its memory are those of the work alone.

    worker.py build STATE_DIR MANIFEST...   build the directory layer of a view
    worker.py image STATE_DIR MKCOMPOSEFS MANIFEST...
                                            build the image of a view
    worker.py publish STORE MKCOMPOSEFS MANIFEST...
                                            publish the image of a view in an image store, with deltas
    worker.py install STORE STATE_DIR GENERATION
                                            install an image from there
    worker.py dump FILE MANIFEST...         write the entries of a view as composefs-dump
    worker.py read MANIFEST...              read and compose the manifests without building
    worker.py scan ROOT                     scan a tree as a release

Each prints its results as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stopwatch import Stopwatch

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer, packed_image
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import compose
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.directory_layer import DirectoryLayer
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest, manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan import Scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, image_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths

VIEW = "bench"


def build(state_dir: str, *manifests: str) -> dict[str, Any]:
    """Build a layer as metadata_layer does. ``synced`` is the total; ``built`` ends before the sync."""
    layer = Stopwatch(DirectoryLayer.build)
    # Only a function, not the stopwatch itself, becomes a method that gets the layer.
    setattr(DirectoryLayer, "build", lambda *given: layer(*given))  # noqa: B010, PLW0108
    paths = ViewPaths.of(state_dir, VIEW)
    spec = LayerSpec(VIEW, _placements(manifests), "directory", "data_only", "trusted")
    whole = Stopwatch(generations.build)
    generation, report = whole(paths, spec)
    return {
        "built": layer.seconds,
        "synced": whole.seconds,
        "peak_bytes": _peak_memory(),
        "entries": generation.entries.as_dict(),
        "bytes_on_disk": report.bytes_on_disk,
        "layer": os.path.join(paths.generation(generation.directory), "layer"),
    }


def image(state_dir: str, builder: str, *manifests: str) -> dict[str, Any]:
    """Build an image as metadata_layer does. ``built`` ends when the image is written and its digest computed.

    ``processor`` is the processor time of this process in seconds; peaks are in bytes.
    """
    making = Stopwatch(erofs_layer.build)
    setattr(erofs_layer, "build", making)  # noqa: B010 (mypy knows it as a function)
    paths = ViewPaths.of(state_dir, VIEW)
    before = _processor_seconds(resource.RUSAGE_SELF)
    started = time.perf_counter()
    spec = LayerSpec(VIEW, _placements(manifests), "erofs", "data_only", "trusted")
    generation, _report = generations.build(paths, spec, Builder("mkcomposefs", builder))
    synced = time.perf_counter() - started
    assert generation.image is not None
    return {
        "built": making.ended - started,
        "synced": synced,
        "processor": _processor_seconds(resource.RUSAGE_SELF) - before,
        "builder_processor": _processor_seconds(resource.RUSAGE_CHILDREN),
        "peak_bytes": _peak_memory(),
        "digest": generation.image.digest,
        "layer": os.path.join(paths.generation(generation.directory), "layer.erofs"),
    }


def publish(store: str, builder: str, *manifests: str) -> dict[str, Any]:
    """Publish an image. ``packing`` and ``deltas`` are seconds for compressing it and for the deltas."""
    memory = _Memory()
    packing = Stopwatch(packed_image.pack)
    setattr(packed_image, "pack", packing)  # noqa: B010 (mypy knows it as a function)
    spec = LayerSpec(VIEW, _placements(manifests), "erofs", "data_only", "trusted")
    before = time.perf_counter()
    generation = image_store.publish(
        store, spec, Builder("mkcomposefs", builder), generations.composed(spec), memory.sample
    )
    image = generation.image
    assert image is not None
    assert image.packed is not None
    return {
        "generation": generation.id,
        "seconds": time.perf_counter() - before,
        "packing": packing.seconds,
        "deltas": time.perf_counter() - packing.ended,
        "bytes": image.bytes,
        "packed": image.packed.bytes,
        "delta": min((delta.bytes for delta in image.deltas), default=0),
        "peak_bytes": memory.peak,
    }


def install(store: str, state_dir: str, generation: str) -> dict[str, Any]:
    """Install an image."""
    memory = _Memory()
    image = image_store.image_path(store, generation)
    found = image_store.find(image)
    assert found is not None
    before, processor = time.perf_counter(), _processor_seconds(resource.RUSAGE_SELF)
    done = image_store.install(ViewPaths.of(state_dir, VIEW), image, found, memory.sample)
    return {
        "installed_from": done.installed_from,
        "bytes_copied": done.bytes_copied,
        "seconds": time.perf_counter() - before,
        "processor": _processor_seconds(resource.RUSAGE_SELF) - processor,
        "peak_bytes": memory.peak,
    }


class _Memory:
    """The peak of the memory of this process that no file is behind, as far as it was sampled."""

    def __init__(self) -> None:
        self.peak = 0

    def sample(self) -> None:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                self.peak = max(self.peak, int(line.split()[1]) * 1024)


def dump(file: str, *manifests: str) -> dict[str, Any]:
    with open(file, "wb") as stream:
        stream.writelines(map(manifest.encode, compose(_placements(manifests), manifest_store.entries)))
    return {}


def read(*manifests: str) -> dict[str, Any]:
    started = time.perf_counter()
    entries = sum(1 for _entry in compose(_placements(manifests), manifest_store.entries))
    return {"seconds": time.perf_counter() - started, "entries": entries}


def scan(root: str) -> dict[str, Any]:
    started = time.perf_counter()
    directory, name = os.path.split(root)
    entries = sum(1 for _entry in Scan(os.fsencode(directory), os.fsencode(name)))
    return {"seconds": time.perf_counter() - started, "entries": entries}


def _placements(manifests: Sequence[str]) -> tuple[Placement, ...]:
    found = []
    for path in manifests:
        record = manifest_store.read_record(path)
        place = os.fsencode(record.release)
        found.append(Placement(path, record, place, place))
    return tuple(found)


def _processor_seconds(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def _peak_memory() -> int:
    """Return the peak memory of this process in bytes: VmHWM of proc(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not report VmHWM")


if __name__ == "__main__":
    actions: tuple[Callable[..., dict[str, Any]], ...] = (build, image, publish, install, dump, read, scan)
    print(json.dumps({action.__name__: action for action in actions}[sys.argv[1]](*sys.argv[2:])))
