"""Make a package repository with rez, and say what rez finds in one. Runs in the environment of rez.

python make_rez.py make REPOSITORY
python make_rez.py find REPOSITORY    print the versions of each package in the order of rez, as JSON
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rez.package_maker import make_package  # type: ignore[import-not-found]
from rez.package_repository import package_repository_manager  # type: ignore[import-not-found]
from rez.packages import get_latest_package, iter_package_families  # type: ignore[import-not-found]
from rez.version import Version  # type: ignore[import-not-found]

#: The versions of a package without content, in no order: rez and vendors order them differently.
LIBRARY = ("1.0.0", "1.10.0", "1.9.0", "1.10.0-beta", "1.10", "1.10.0.1", "2.0.rc1", "2.0.0", "1.0-wip", "v3")


def make(repository: str) -> None:
    def package(name: str, version: str, **values: Any) -> None:
        with make_package(name, repository) as made:
            if version:
                made.version = version
            for key, value in values.items():
                setattr(made, key, value)

    for version in ("3.9.1", "3.11.0"):
        package("python", version)
    for version in LIBRARY:
        package("library", version)
    # The directory of such a variant is named as the requirement is.
    package(
        "odd_name", "1.0+x", requires=["library-1"], variants=[["python>=3.9<3.11"], ["python==3.11.0", "!library-2"]]
    )
    # It has no directory of a version.
    package("unversioned", "", variants=[["python-3.9"], ["python-3.11"]])
    made = package_repository_manager.get_repository(repository)
    assert made.ignore_package("library", Version("2.0.0")) == 1


def find(repository: str) -> dict[str, Any]:
    """Return the versions of each package, oldest first, and the newest one. Packages without versions have an empty one."""
    found = {}
    for family in iter_package_families([repository]):
        versions = sorted(package.version for package in family.iter_packages())
        latest = get_latest_package(family.name, paths=[repository])
        found[family.name] = {"versions": [str(version) for version in versions], "newest": str(latest.version)}
    return found


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        json.dump(find(sys.argv[2]), sys.stdout)
