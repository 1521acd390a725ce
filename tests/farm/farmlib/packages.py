"""Make a package repository of rez, and give a machine what resolves packages in it."""

from __future__ import annotations

from pathlib import Path

from farmlib import host
from farmlib.machines import SOFTWARE, Farm, Machine

PACKAGES, VERSIONS = 80, 5
#: The package that needs all others.
TOP = "package00"
#: Path on the server, below the software root.
REPOSITORY = "packages"

_REZ = host.CHECKOUT / ".build" / "venv-rez"
#: Runs in rez's own environment. Each package needs later versions of three others; a quarter of them have variants.
_MAKE = """
import sys
from pathlib import Path
from rez.package_maker import make_package

root, marker, packages, versions = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
names = [f"package{number:02}" for number in range(packages - 1)] + ["python"]
for number, name in enumerate(names):
    for version in range(1, versions + 1):
        with make_package(name, root) as package:
            package.version = f"{version}.0.0"
            package.timestamp = 1735689600
            needed = [names[number + step] for step in (1, 2, 7) if number + step < packages]
            package.requires = [f"{other}-{max(version - 1, 1)}+" for other in needed]
            if number % 4 == 0:
                package.variants = [[f"python-{versions - 1}"], [f"python-{versions}"]]
        Path(root, name, f"{version}.0.0", marker).touch()
"""


def make(directory: Path) -> Path:
    """Make a package repository below a directory with rez itself, and return its path. Raises FarmError if rez is missing."""
    python = _REZ / "bin" / "python"
    if not python.exists():
        raise host.FarmError(f"there is no {host.shown(_REZ)}: make setup-test")
    repository = directory / REPOSITORY
    host.run(
        [str(python), "-c", _MAKE, str(repository), ".ready", str(PACKAGES), str(VERSIONS)],
        env={"HOME": str(directory), "REZ_DISABLE_HOME_CONFIG": "1"},
        timeout=120,
        purpose="making a package repository",
    )
    return repository


def publish(farm: Farm, repository: Path) -> None:
    """Publish a package repository on an export of its own."""
    farm.server.export_nested(REPOSITORY)
    farm.server.copy(repository, f"{SOFTWARE}/{REPOSITORY}")


def install_rez(machine: Machine, directory: str) -> None:
    """Install rez and the programs that count calls in a directory of a machine."""
    [site] = (_REZ / "lib").glob("python3.*/site-packages")
    for package in ("rez", "rezplugins"):
        machine.copy(site / package, f"{directory}/rez/{package}")
    for program in ("count.py", "resolve.py"):
        machine.copy(host.FARM_SOURCE / "guest" / program, f"{directory}/{program}")
