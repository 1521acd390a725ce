"""Every test that docs/security.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def test_every_named_test_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (CHECKOUT / "docs" / "security.md").read_text(encoding="utf-8")))
    there = {
        name
        for room in ("kernel", "unit")
        for path in (CHECKOUT / "tests" / room).rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 30
    assert named - there == set()
