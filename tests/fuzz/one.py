"""Fuzz one target for some seconds, or repeat one input: one.py TARGET DIRECTORY SECONDS [INPUT].

The directory gets the inputs that reach new code (``corpus``), an input that fails (``crash-*``, ``timeout-*``, ``oom-*``), and the counts
(``counts.json``).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import atheris  # type: ignore[import-not-found]
from targets import TARGETS

from ansible_collections.renderfarm.overlay.tests.unit import tried

# Seconds until one input counts as a hang, and mebibytes of memory that no input needs.
TIME_LIMIT = 20
MEMORY_LIMIT = 1500
LONGEST = 1 << 15


def main(name: str, place: str, seconds: str, repeated: str | None = None) -> None:
    target, directory = TARGETS[name], Path(place)
    if repeated:
        target.check(Path(repeated).read_bytes())
        print(f"{name}: {repeated} gives a value or a named error")
        return
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for sample in target.samples:
        (corpus / hashlib.sha256(sample).hexdigest()[:16]).write_bytes(sample)
    end = time.monotonic() + float(seconds)
    inputs = 0

    def check(text: bytes) -> None:
        nonlocal inputs
        if time.monotonic() > end:
            counts = {"inputs": inputs, "given": sum(tried.GIVEN.values()), "taken": sum(tried.TAKEN.values())}
            (directory / "counts.json").write_text(json.dumps(counts))
            sys.stderr.flush()
            # Nothing is left to do, and the fuzzer would call this function again.
            os._exit(0)
        inputs += 1
        target.check(text)

    argv = ("fuzz", str(corpus), f"-artifact_prefix={directory}/", f"-timeout={TIME_LIMIT}", f"-max_len={LONGEST}")
    atheris.Setup([*argv, f"-rss_limit_mb={MEMORY_LIMIT}"], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
