"""Keeps the bytecode of what is imported from zip files, which Python makes anew for each process.

Ansible sends every module as a zip file of sources; compiling them took an emulated processor a quarter of each task.
"""

from __future__ import annotations

import _imp
import marshal
import os
import zipimport
from types import CodeType

FOLDER = "/var/cache/farm-python"
_compile = zipimport._compile_source  # type: ignore[attr-defined]  # not for others


def _kept(pathname: str, source: bytes) -> CodeType:
    # Names of the folders that Ansible unpacks into differ from task to task, what is below them does not.
    key = os.fsencode(pathname.rpartition(".zip/")[2]) + b"\0" + source
    place = f"{FOLDER}/{_imp.source_hash(311, key).hex()}"
    try:
        with open(place, "rb") as file:
            code: CodeType = marshal.load(file)  # noqa: S302  # only root writes there
        # What went wrong is told with the names of now.
        _imp._fix_co_filename(code, pathname)  # type: ignore[attr-defined]
        return code
    except (OSError, ValueError, EOFError):
        pass
    code = _compile(pathname, source)
    aside = f"{place}.{os.getpid()}"
    try:
        os.makedirs(FOLDER, mode=0o700, exist_ok=True)
        with open(aside, "wb") as file:
            marshal.dump(code, file)
        os.rename(aside, place)
    except OSError:
        pass
    return code


zipimport._compile_source = _kept  # type: ignore[attr-defined]
