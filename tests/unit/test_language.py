"""The language of the project: plain technical English, and one word for one thing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

#: What is not written, and what is written instead.
INSTEAD = {
    r"\bfolders?\b": "directory",
    r"\b(?:is|are|was|were) told\b": "say what is returned, shown or recorded",
    r"\bcounts? for nobody\b": "say what ignores it",
    r"\bthe like\b": "name the others",
    r"\bwhat it is at\b|\bwhat the work is at\b": "the item being worked on",
    r"\bby whom\b|\bof whom\b": "name the process or user",
    r"\b(?:come|comes|came) to be\b": "say what makes it so",
    r"\bis there of\b|\bare there of\b": "what exists",
    r"\bthe number of (?:a|the|its|that) mount\b": "mount ID",
    r"(?<=[.:] )Of [a-z]": "begin with the subject",
    r"\bTell whether\b": "Return whether",
    r"\bmount numbers?\b": "mount ID",
    r"\bended from outside\b": "killed",
}
#: This list, and a key of the stamps in environments, which would all be made anew under another name.
EXCEPT = {"tests/unit/test_language.py", "tests/tools/setup.py"}


READ = ("*.py", "*.md", "*.yml", "*.txt", "*.toml", "*.j2", "Makefile", "tests/*/run", "tests/*/clean")


def texts() -> list[str]:
    """Return the paths of the files that are read."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *READ],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(path for path in listed.stdout.split() if path not in EXCEPT and (CHECKOUT / path).is_file())


def complaints(text: str) -> list[str]:
    """Return what a text says and should not, each with its line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in INSTEAD.items():
            match = re.search(pattern, line)
            if match:
                found.append(f"{number}: {match[0]!r}: {instead}")
    return found


@pytest.mark.parametrize("path", texts())
def test_the_language_is_plain(path: str) -> None:
    assert complaints((CHECKOUT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "Make a folder.",
        "a name that counts for nobody",
        "What is left. Of hard links, the number stays right.",
        "as it is told",
    ],
)
def test_what_is_not_written_is_noticed(line: str) -> None:
    assert complaints(line)
