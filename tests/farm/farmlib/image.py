"""Build the guests' root image and kernels from Debian packages, and keep them until one of their inputs changes."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from farmlib import cpio, host

SUITE = "bookworm"
# The mtime of all files, so that the image is reproducible.
EPOCH = 1735689600
ROOT_SIZE = "8G"


@dataclass(frozen=True)
class KernelSource:
    """Name the Debian meta package of the newest kernel of a series, and its suite if it is not SUITE."""

    package: str
    suite: str = ""


NEWEST = "newest"
KERNELS = {
    "6.1": KernelSource("linux-image-cloud-amd64"),
    "6.12": KernelSource("linux-image-6.12-cloud-amd64"),
}
# Only by option: it comes from another suite and changes with it.
KERNELS_BY_OPTION = {NEWEST: KernelSource("linux-image-cloud-amd64", "trixie-backports")}
# Modules that the initramfs needs to reach the root disk. Built-in ones are skipped.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")

_INIT = b"""#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir -p /proc /dev /root
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules/order); do $bb insmod /modules/$module || echo "farm: insmod $module failed"; done
tries=0
until $bb mount -t ext4 -o noatime /dev/vda /root; do
    tries=$((tries + 1)); [ $tries -lt 50 ] || { echo "farm: no root disk"; $bb poweroff -f; }
    $bb sleep 0.1
done
$bb mount -t tmpfs -o mode=755,nosuid run /root/run
$bb cp -a /farm /root/run/farm
for word in $($bb cat /proc/cmdline); do case $word in init=*) init=${word#init=};; esac; done
$bb umount /dev
$bb umount /proc
exec $bb switch_root /root ${init:-/sbin/init}
"""


@dataclass(frozen=True)
class Kernel:
    name: str
    release: str
    vmlinuz: Path
    initrd: Path


@dataclass(frozen=True)
class Image:
    root: Path
    kernels: dict[str, Kernel]


def _words(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _guest_files() -> Iterator[tuple[Path, Path]]:
    """Yield the files to add to the guests: path here, and path below the guest's root."""
    base = host.FARM_SOURCE / "guest" / "rootfs"
    for path in sorted(base.rglob("*")):
        if path.is_symlink() or path.is_file():
            yield path, path.relative_to(base)


def inputs_digest(kernels: Mapping[str, KernelSource]) -> str:
    digest = hashlib.sha256(" ".join(kernels).encode())
    for path in (Path(__file__), host.FARM_SOURCE / "guest-packages.txt"):
        digest.update(path.read_bytes())
    for path, target in _guest_files():
        digest.update(f"{target} {path.lstat().st_mode:o} ".encode())
        digest.update(os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes())
    return digest.hexdigest()[:16]


def build(newest: bool = False) -> Image:
    """Return the image for the current inputs. Build it if it is missing, and remove images for other inputs.

    With `newest` it has one more kernel, which is not from the guests' Debian. Raises FarmError if it must be built without root.
    """
    choices = (KERNELS, {**KERNELS, **KERNELS_BY_OPTION})
    chosen = choices[newest]
    directory = host.BUILD / "images" / inputs_digest(chosen)
    if not directory.exists():
        if os.geteuid() != 0:
            raise host.FarmError("making the guests' root image needs root: run the farm as root")
        host.say("making the guests' root image")
        with host.built_aside(directory) as aside:
            _make(aside, chosen)
        kept = {inputs_digest(choice) for choice in choices}
        for other in directory.parent.iterdir():
            if other.name not in kept:
                host.remove_tree(other)
    kernels = {}
    for name in chosen:
        place = directory / name
        kernels[name] = Kernel(
            name, (place / "release").read_text(encoding="ascii").strip(), place / "vmlinuz", place / "initrd"
        )
    return Image(directory / "root.ext4", kernels)


def _fetch_kernels(kernels: Mapping[str, KernelSource]) -> str:
    """Return a shell script for the guests' tree that unpacks the kernels and records their packages, in this order.

    Unpacking instead of installing avoids initramfs-tools and its runs.
    """
    lines = ["set -e", "mkdir /kernels", "cd /kernels"]
    for source in kernels.values():
        options = f"-o APT::Default-Release={source.suite}" if source.suite else ""
        if source.suite:
            # The mirror of the guests' Debian, with the other suite.
            choose = f"sed -n 's/ {SUITE} / {source.suite} /p' /etc/apt/sources.list | head -n 1"
            lines += [f"{choose} >/etc/apt/sources.list.d/{source.suite}.list", "apt-get -q update"]
        newest = "sed -n 's/.*Depends: \\(linux-image-[0-9]\\)/\\1/p' | head -n 1"
        parts = "sed -n 's/.*Depends: \\(linux-binary-.*\\|linux-modules-.*\\)/\\1/p'"
        lines += [
            f"p=$(apt-cache {options} depends {source.package} | {newest})",
            f'[ -n "$p" ] || {{ echo "no kernel in {source.package} of {source.suite or SUITE}"; exit 1; }}',
            # Newer kernels consist of several packages.
            f"apt-get -q download $p $(apt-cache {options} depends $p | {parts})",
            # /lib is a symlink. A plain unpack would replace it by a directory.
            "for deb in *.deb; do dpkg-deb --fsys-tarfile $deb | tar -x --keep-directory-symlink -C /; done",
            "rm *.deb",
            "echo $p >>/kernel-packages",
        ]
    return "\n".join([*lines, "rmdir /kernels", "for v in /lib/modules/*; do depmod ${v##*/}; done"])


def _make(aside: Path, kernels: Mapping[str, KernelSource]) -> None:
    tree = aside / "tree"
    host.run(
        host.contained(
            [
                "mmdebstrap",
                "--mode=root",
                "--variant=apt",
                "--include=" + ",".join(_words(host.FARM_SOURCE / "guest-packages.txt")),
                '--aptopt=Apt::Install-Recommends "false"',
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                '--customize-hook=chroot "$1" sh -c ' + shlex.quote(_fetch_kernels(kernels)),
                SUITE,
                str(tree),
            ]
        ),
        timeout=1200,
        purpose="making the guests' root image from Debian packages",
        env={"SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(aside)},
    )
    _configure(tree)
    packages = host.run(
        ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "--show", "--showformat=${Package} ${Version}\\n"]
    )
    kernel_packages = (tree / "kernel-packages").read_text(encoding="ascii")
    (tree / "kernel-packages").unlink()
    (aside / "packages.list").write_text(packages + kernel_packages, encoding="utf-8")
    for name, package in zip(kernels, kernel_packages.split()):
        _boot_files(tree, package.removeprefix("linux-image-"), aside / name)
    _settle_times(tree)
    host.run(
        [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-I",
            "512",
            "-m",
            "0",
            "-L",
            "farm-root",
            "-U",
            "6661726d-0000-4000-8000-000000000001",
            "-E",
            "hash_seed=6661726d-0000-4000-8000-000000000002,lazy_itable_init=1",
            "-d",
            str(tree),
            str(aside / "root.ext4"),
            ROOT_SIZE,
        ],
        env={"E2FSPROGS_FAKE_TIME": str(EPOCH)},
    )
    shutil.rmtree(tree)


def _configure(tree: Path) -> None:
    for path, target in _guest_files():
        place = tree / target
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            place.unlink(missing_ok=True)
            place.symlink_to(os.readlink(path))
        else:
            shutil.copyfile(path, place)
            os.chmod(place, 0o755 if path.stat().st_mode & 0o111 else 0o644)
    for account, number in (("manifests", 990), ("artist", 1000)):
        host.run(["chroot", str(tree), "useradd", "--uid", str(number), "--user-group", "--shell", "/bin/sh", account])
    # Each start supplies keys. Remove them and everything else that differs between builds.
    for pattern in (
        "etc/ssh/ssh_host_*",
        "var/log/*",
        "var/cache/*",
        "var/lib/apt/lists/*",
        "etc/machine-id",
        "etc/*-",
        "etc/resolv.conf",
        "etc/hostname",
        "var/lib/dbus/machine-id",
        "var/lib/nfs/rmtab",
    ):
        for path in tree.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (tree / "etc/machine-id").touch()
    (tree / "var/lib/nfs/rmtab").touch()
    wants = tree / "etc/systemd/system"
    for unit in (
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        # A way to bring software to a node starts it.
        "cachefilesd.service",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "e2scrub_reap.service",
        "nfs-server.service",
        "nfs-kernel-server.service",
        "nfs-blkmap.service",
        "nfsdcld.service",
        "systemd-pstore.service",
        "getty@tty1.service",
        "systemd-udev-settle.service",
        "systemd-update-utmp.service",
        "systemd-random-seed.service",
    ):
        place = wants / unit
        place.unlink(missing_ok=True)
        place.symlink_to("/dev/null")
    (wants / "default.target").unlink(missing_ok=True)
    (wants / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (wants / "sysinit.target.wants").mkdir(exist_ok=True)
    (wants / "sysinit.target.wants" / "farm-setup.service").symlink_to("../farm-setup.service")


def _boot_files(tree: Path, release: str, place: Path) -> None:
    place.mkdir()
    (place / "release").write_text(release + "\n", encoding="ascii")
    modules = tree / "lib" / "modules" / release
    # Newer packages have vmlinuz beside the modules.
    vmlinuz = next(path for path in (tree / "boot" / f"vmlinuz-{release}", modules / "vmlinuz") if path.exists())
    shutil.copyfile(vmlinuz, place / "vmlinuz")
    vmlinuz.unlink()
    for path in (tree / "boot").glob(f"*-{release}"):
        path.unlink()
    files: dict[str, tuple[int, bytes]] = {
        "bin": (stat.S_IFDIR | 0o755, b""),
        "bin/busybox": (stat.S_IFREG | 0o755, (tree / "bin/busybox").read_bytes()),
        "modules": (stat.S_IFDIR | 0o755, b""),
        "init": (stat.S_IFREG | 0o755, _INIT),
    }
    order = []
    for module in _load_order(modules, BOOT_MODULES):
        content = (modules / module).read_bytes()
        name = Path(module).name
        if name.endswith(".xz"):
            name, content = name[: -len(".xz")], lzma.decompress(content)
        files[f"modules/{name}"] = (stat.S_IFREG | 0o644, content)
        order.append(name)
    files["modules/order"] = (stat.S_IFREG | 0o644, "\n".join(order).encode())
    (place / "initrd").write_bytes(cpio.archive(files))


def _load_order(modules: Path, wanted: tuple[str, ...]) -> list[str]:
    """Return the module files to load, each after its dependencies."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text(encoding="ascii").splitlines():
        module, _, needed = line.partition(":")
        needs[module] = needed.split()
    by_name = {re.sub(r"\.ko.*", "", Path(module).name).replace("-", "_"): module for module in needs}
    order: list[str] = []

    def add(module: str) -> None:
        for needed in needs[module]:
            add(needed)
        if module not in order:
            order.append(module)

    for name in wanted:
        if name in by_name:
            add(by_name[name])
    return order


def _settle_times(tree: Path) -> None:
    for base, directories, files in os.walk(tree):
        for name in [*directories, *files, "."]:
            path = os.path.join(base, name)
            if os.lstat(path).st_mtime > EPOCH:
                os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
