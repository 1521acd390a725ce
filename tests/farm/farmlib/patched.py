"""Build the overlayfs of a node's kernel with a patch that makes it seal directories itself, and load it there."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from farmlib import host, image
from farmlib.machines import Machine

PATCH = host.FARM_SOURCE / "guest" / "overlayfs-seal.patch"
_PLACE = "/run/overlay-patched.ko"

#: What a module is built with. The headers of the kernel are unpacked instead of installed, since they depend on the kernel itself.
_PACKAGES = ("gcc-12", "libelf1", "libssl3", "make", "patch", "xz-utils", "zlib1g")
#: Runs in a Debian tree with these packages. Only the parts of the source that the module needs are unpacked.
_BUILD = """
set -e
mkdir /build
cd /build
version=$(apt-cache show --no-all-versions linux-headers-{release} | sed -n 's/^Version: //p')
apt-get -q download linux-headers-{release} linux-headers-{base}-common linux-kbuild-{base} linux-source-{series}=$version
for deb in linux-headers-*.deb linux-kbuild-*.deb; do
    dpkg-deb --fsys-tarfile $deb | tar -x --keep-directory-symlink -C /
done
dpkg-deb --fsys-tarfile linux-source-*.deb | tar -xO ./usr/src/linux-source-{series}.tar.xz | xz -dc |
    tar -x --strip-components=1 linux-source-{series}/fs/overlayfs linux-source-{series}/fs/internal.h linux-source-{series}/fs/mount.h
patch -p1 </overlayfs.patch
make -C /usr/src/linux-headers-{release} M=/build/fs/overlayfs CONFIG_OVERLAY_FS=m CONFIG_DEBUG_INFO_BTF_MODULES= modules
strip --strip-debug -o /overlay.ko fs/overlayfs/overlay.ko
"""


def build(release: str) -> Path:
    """Return the patched module for a kernel of the guests' Debian, by its release. Build it if it is missing.

    Raises FarmError if it must be built without root, or if a package cannot be downloaded.
    """
    inputs = Path(__file__).read_bytes() + PATCH.read_bytes() + release.encode()
    directory = host.BUILD / "modules" / hashlib.sha256(inputs).hexdigest()[:16]
    if not directory.exists():
        if os.geteuid() != 0:
            raise host.FarmError("building the patched module needs root: run the farm as root")
        host.say(f"building overlayfs for {release} with {PATCH.name}")
        with host.built_aside(directory) as aside:
            _make(aside, release)
        for other in directory.parent.iterdir():
            if other != directory:
                host.remove_tree(other)
    return directory / "overlay.ko"


def _make(aside: Path, release: str) -> None:
    base, series = release.removesuffix("-cloud-amd64"), ".".join(release.split(".")[:2])
    script = _BUILD.format(release=release, base=base, series=series)
    host.run(
        host.contained(
            [
                "mmdebstrap",
                "--mode=root",
                "--variant=apt",
                "--format=null",
                f"--include={','.join(_PACKAGES)}",
                '--aptopt=Apt::Install-Recommends "false"',
                f"--customize-hook=upload {shlex.quote(str(PATCH))} /overlayfs.patch",
                '--customize-hook=chroot "$1" sh -c ' + shlex.quote(script),
                f"--customize-hook=download /overlay.ko {shlex.quote(str(aside / 'overlay.ko'))}",
                image.SUITE,
                "/dev/null",
            ]
        ),
        timeout=1200,
        purpose="building the patched overlayfs from Debian packages",
        env={"TMPDIR": str(aside)},
    )


def load(machine: Machine) -> None:
    """Have a machine use the patched module until it restarts. No overlay may be mounted there."""
    machine.copy(build(machine.output(["uname", "-r"])), _PLACE)
    # What the module needs is loaded with the one of Debian.
    machine.ssh(f"set -e; modprobe overlay; rmmod overlay; insmod {_PLACE}")


@contextmanager
def loaded(machine: Machine) -> Iterator[None]:
    """Have a machine use the patched module while the block runs. No overlay may be mounted there before and after it."""
    load(machine)
    try:
        yield
    finally:
        machine.ssh("rmmod overlay && modprobe overlay")
