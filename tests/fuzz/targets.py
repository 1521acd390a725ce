"""What the fuzzer can be given: each reader of tests/unit/hostile_readers.py, and each property of tests/unit/test_hostile.py.

A reader gets the bytes that the fuzzer makes. A property gets what hypothesis makes of them. The target ``all`` is all of these; the first
byte of an input chooses one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import atheris  # type: ignore[import-not-found]
from hypothesis import settings

settings.register_profile("hostile", deadline=None, database=None)
with atheris.instrument_imports(include=["ansible_collections.renderfarm.overlay.plugins"]):
    from ansible_collections.renderfarm.overlay.tests.unit import hostile_readers, test_hostile

ALL = "all"
PROPERTIES = {
    name: getattr(test_hostile, name)
    for name in (
        "test_patterns_of_paths",
        "test_comparing_versions",
        "test_patterns_of_releases",
        "test_links_of_a_view",
        "test_symbolic_modes",
        "test_options_of_an_overlay",
        "test_options_of_a_software_root",
        "test_units_and_fstab",
    )
}


@dataclass(frozen=True)
class Target:
    """What gets the inputs, and the inputs to begin with."""

    check: Callable[[bytes], object]
    samples: tuple[bytes, ...]


_SINGLE = {
    **{name: Target(reader.check, reader.samples) for name, reader in hostile_readers.READERS.items()},
    **{
        name.replace("test_", "", 1): Target(function.hypothesis.fuzz_one_input, (bytes(64),))
        for name, function in PROPERTIES.items()
    },
}


def _check_any(text: bytes) -> None:
    targets = list(_SINGLE.values())
    targets[text[0] % len(targets) if text else 0].check(text[1:])


TARGETS = {
    ALL: Target(
        _check_any,
        tuple(bytes((number,)) + sample for number, target in enumerate(_SINGLE.values()) for sample in target.samples),
    ),
    **_SINGLE,
}

if __name__ == "__main__":
    print("\n".join(TARGETS))
