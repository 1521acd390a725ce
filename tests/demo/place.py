"""Know the paths of the demo, and the mount namespace in which its view is mounted.

With root, that is the namespace of this process. Without root, it is the namespace of the holder: a process that only keeps a user
namespace and a mount namespace alive. The holder is found by its command line. No file records it, so a demo that was interrupted at
any moment can be removed.
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

# It ends when the directory of the demo is gone.
HOLD = """\
import os, sys, time
while os.path.isdir(sys.argv[2]):
    time.sleep(1)
"""
MARK = "renderfarm.overlay-demo"
START_SECONDS = 10.0


class DemoError(Exception):
    """An error that stops the demo, described in one line."""


def holder_command() -> list[str]:
    """Return the command of the holder."""
    return [sys.executable, "-c", HOLD, MARK, str(DEMO)]


def holder() -> int | None:
    """Return the PID of the holder of this checkout's demo, or None when there is none."""
    wanted = b"\0".join([MARK.encode(), os.fsencode(DEMO)]) + b"\0"
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and (directory / "cmdline").read_bytes().endswith(wanted):
                return int(directory.name)
        except OSError:  # the process has ended
            continue
    return None


def start_holder() -> int:
    """Return the PID of the holder, which is started when there is none. Raises DemoError if unshare fails."""
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
        # unshare becomes the holder when the namespaces exist.
        while Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0] != os.fsencode(sys.executable):
            if process.poll() is not None or time.monotonic() > limit:
                process.kill()
                raise DemoError(f"unshare cannot create a user namespace: {process.stderr.read().strip()}")
            time.sleep(0.02)
        process.stderr.close()
        process.returncode = 0  # The holder keeps running; this stops Popen from waiting for it.
        return process.pid


def inside(pid: int | None) -> list[str]:
    """Return the prefix that runs a command in the mount namespace of the holder ``pid``; empty for None."""
    if pid is None:
        return []
    return ["nsenter", "--target", str(pid), "--user", "--mount", "--preserve-credentials", f"--wd={CHECKOUT}", "--"]


def mounts(pid: int | None) -> list[Mount]:
    """Return the mounts below the directory of the demo, in the order of mounting."""
    text = Path(f"/proc/{pid or 'self'}/mountinfo").read_bytes()
    below = os.fsencode(DEMO) + b"/"
    return [mount for mount in mountinfo.parse(text) if mount.path.startswith(below)]
