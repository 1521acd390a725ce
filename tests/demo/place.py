"""Where the demo is, and in which mount namespace its view is mounted.

With root that is the one that everybody sees. Without root it is that of a process, the holder, which does nothing but keep a user
namespace and a mount namespace alive. The holder is found by its command line, so that nothing has to be written down about it and
a demo that was interrupted at any moment can be taken down.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / ".build"
DEMO = BUILD / "demo"
SOFTWARE = DEMO / "software"
MANIFESTS = DEMO / "manifests"
STATE = DEMO / "state"
VIEW = DEMO / "view"
NAME = "demo"

# Ends of itself when the folder of the demo is gone.
HOLD = """\
import os, sys, time
while os.path.isdir(sys.argv[2]):
    time.sleep(1)
"""
MARK = "renderfarm.overlay-demo"
START_SECONDS = 10.0


class DemoError(Exception):
    """What is in the demo's way, in one line."""


def holder_command() -> list[str]:
    return [sys.executable, "-c", HOLD, MARK, str(DEMO)]


def holder() -> int | None:
    """Return the number of the process that keeps the namespace of this checkout's demo, if there is one."""
    wanted = b"\0".join([MARK.encode(), os.fsencode(DEMO)]) + b"\0"
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().endswith(wanted):
                return int(folder.name)
        except OSError:  # it has ended
            continue
    return None


def start_holder() -> int:
    """Return the number of the holder, started where there is none yet."""
    running = holder()
    if running is not None:
        return running
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "--", *holder_command()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stderr
        limit = time.monotonic() + START_SECONDS
        # unshare becomes the holder once the namespaces are there.
        while Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0] != os.fsencode(sys.executable):
            if process.poll() is not None or time.monotonic() > limit:
                process.kill()
                raise DemoError(f"unshare cannot make a user namespace: {process.stderr.read().strip()}")
            time.sleep(0.02)
        process.stderr.close()
        process.returncode = 0  # it stays
        return process.pid


def inside(pid: int | None) -> list[str]:
    """Return the words in front of a command that make it run where the view is mounted."""
    if pid is None:
        return []
    return ["nsenter", "--target", str(pid), "--user", "--mount", "--preserve-credentials", f"--wd={CHECKOUT}", "--"]


def mounts(pid: int | None) -> list[Mount]:
    """Return the mounts below the demo's folder, in the order in which they were made."""
    text = Path(f"/proc/{pid or 'self'}/mountinfo").read_bytes()
    below = os.fsencode(DEMO) + b"/"
    return [mount for mount in mountinfo.parse(text) if mount.path.startswith(below)]
