"""Compare building a view as an image with `mkcomposefs --from-file` alone on the same entries."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUILDER = Path(__file__).resolve().parents[2] / ".build" / "images" / "bin" / "mkcomposefs"

_GZIP_LEVEL = 6
_GZIP_FORMAT = zlib.MAX_WBITS + 16
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Hold the cost of one build: seconds until the image is written and until it is synced, and bytes of memory."""

    written: float
    synced: float
    #: Processor seconds in user mode and in the kernel: in total, and of our own process.
    processor: float
    own_processor: float
    peak: int

    @classmethod
    def of_worker(cls, found: dict[str, Any]) -> Cost:
        own = found["processor"]
        return cls(found["built"], found["synced"], own + found["builder_processor"], own, found["peak_bytes"])


@dataclass(frozen=True)
class Comparison:
    """Hold the costs of several rounds, ours and those of mkcomposefs alone."""

    files: int
    ours: Sequence[Cost]
    alone: Sequence[Cost]
    size: int
    gzipped: int

    def ours_median(self, what: str) -> float:
        return _median(self.ours, what)

    def alone_median(self, what: str) -> float:
        return _median(self.alone, what)

    def ratios(self, what: str) -> list[float]:
        """Return our cost in each round, relative to mkcomposefs alone in the same round."""
        return [getattr(ours, what) / getattr(alone, what) for ours, alone in zip(self.ours, self.alone, strict=True)]


def _median(costs: Sequence[Cost], what: str) -> float:
    figures: list[float] = [getattr(cost, what) for cost in costs]
    return statistics.median(figures)


def build_alone(dump: Path, image: Path) -> Cost:
    """Build the image with mkcomposefs from a file, sync it, and return the cost."""
    started = time.perf_counter()
    process = subprocess.Popen((BUILDER, "--from-file", dump, image))
    _pid, status, used = os.wait4(process.pid, 0)
    written = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    subprocess.run(("sync", "-f", image.parent), check=True)
    return Cost(written, time.perf_counter() - started, _seconds(used), 0, used.ru_maxrss * 1024)


def _seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def digest_and_gzipped_size(image: Path) -> tuple[str, int]:
    """Return the SHA-256 of an image, and its gzipped size in bytes."""
    digest = hashlib.sha256()
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_FORMAT)
    size = 0
    with open(image, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(packer.compress(chunk))
    return f"sha256:{digest.hexdigest()}", size + len(packer.flush())


def clear(directory: Path) -> None:
    """Remove the output of the last round."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
