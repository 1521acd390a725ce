"""Write an install tree as Spack does (https://spack.readthedocs.io, file formats and basic usage).

Spack itself cannot be installed from a package registry. The tree has the default projection of Spack 1.0 and later, and each prefix
has the files that Spack writes beside what the build installs.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

#: The first and the last file that Spack writes when it installs a package.
SPEC, MANIFEST = ".spack/spec.json", ".spack/install_manifest.json"


def install(root: Path, name: str, version: str, *, done: bool = True, **parameters: Any) -> str:
    """Write a prefix below the install tree, and return its path below the tree. Without ``done``, Spack is still building."""
    node = {
        "name": name,
        "version": version,
        "arch": {"platform": "linux", "platform_os": "debian12", "target": {"name": "x86_64_v3"}},
        "namespace": "builtin",
        "parameters": {"build_system": "autotools", **parameters},
        "annotations": {"original_specfile_version": 5},
    }
    text = json.dumps(node, separators=(",", ":"))
    node["hash"] = base64.b32encode(hashlib.sha1(text.encode()).digest()).decode().lower()  # noqa: S324 - as Spack does
    path = f"linux-x86_64_v3/{name}-{version}-{node['hash']}"
    prefix = root / path
    files = {
        SPEC: json.dumps({"spec": {"_meta": {"version": 5}, "nodes": [node]}}),
        ".spack/spack-build-env.txt": "",
        ".spack/install_environment.json": "{}",
        f".spack/repos/builtin/packages/{name}/package.py": f"# {name}\n",
        f"bin/{name}": f"#!/bin/bash {root}/bin/sbang\n#!{prefix}/bin/interpreter\n",
        f"lib/lib{name}.so.1": f"{name} {version}\n",
        f"share/{name}/version": f"{version}\n",
    }
    if done:
        files |= {".spack/spack-build-out.txt.gz": "", MANIFEST: "{}"}
    for file, content in files.items():
        (prefix / file).parent.mkdir(parents=True, exist_ok=True)
        (prefix / file).write_text(content)
    (prefix / "bin" / name).chmod(0o755)
    (prefix / "lib" / f"lib{name}.so").symlink_to(f"lib{name}.so.1")
    (prefix / "lib64").symlink_to("lib")
    (prefix / "etc").mkdir()
    return path


def make(root: Path) -> list[str]:
    """Write an install tree, and return the paths of what is installed in it."""
    installed = [
        install(root, "zlib-ng", "2.2.1"),
        install(root, "zlib-ng", "2.2.4"),
        install(root, "hdf5", "1.14.5", mpi=True),
        install(root, "hdf5", "1.14.5", mpi=False),
        # Versions with dashes in them.
        install(root, "ca-certificates-mozilla", "2023-05-30"),
        install(root, "ca-certificates-mozilla", "2024-03-11"),
        install(root, "boost", "1.86.0"),
        install(root, "boost", "1.87.0-beta1"),
        # The version of a branch.
        install(root, "llvm", "main"),
        install(root, "py-h5py", "3.12.1"),
        install(root, "7zip", "24.08"),
    ]
    # A file of one prefix leads to another one with its absolute path.
    (root / installed[9] / "lib" / "libhdf5.so").symlink_to(root / installed[2] / "lib" / "libhdf5.so")
    install(root, "zlib-ng", "2.3.0", done=False)
    for file in (".spack-db/index.json", ".spack-db/lock", ".spack-db/prefix_lock", "bin/sbang"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text("")
    (root / "bin" / "sbang").chmod(0o755)
    return installed
