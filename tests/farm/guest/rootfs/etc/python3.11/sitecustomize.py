"""Cache the bytecode of imports from zip files, which Python would compile again in each process.

Ansible sends every module as a zip file of sources. Compiling them took an emulated processor a quarter of each task.
"""

from __future__ import annotations

import _imp
import marshal
import os
import zipimport
from types import CodeType

DIRECTORY = "/var/cache/farm-python"
_compile = zipimport._compile_source  # type: ignore[attr-defined]  # private


def _kept(pathname: str, source: bytes) -> CodeType:
    # Ansible unpacks each task to another directory, but the paths below it stay the same.
    key = os.fsencode(pathname.rpartition(".zip/")[2]) + b"\0" + source
    place = f"{DIRECTORY}/{_imp.source_hash(311, key).hex()}"
    try:
        with open(place, "rb") as file:
            code: CodeType = marshal.load(file)  # noqa: S302  # only root writes there
        # Tracebacks must show the current path.
        _imp._fix_co_filename(code, pathname)  # type: ignore[attr-defined]
        return code
    except (OSError, ValueError, EOFError):
        pass
    code = _compile(pathname, source)
    aside = f"{place}.{os.getpid()}"
    try:
        os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
        with open(aside, "wb") as file:
            marshal.dump(code, file)
        os.rename(aside, place)
    except OSError:
        pass
    return code


zipimport._compile_source = _kept  # type: ignore[attr-defined]
