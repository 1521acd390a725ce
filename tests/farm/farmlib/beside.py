"""Run a second farm beside the checkout's own one, with the same images, in a separate process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from farmlib import host

VARIABLE = "RENDERFARM_FARM_BUILD"
#: Directories that all farms of a checkout share.
MADE = ("images", "software", "wheels")
#: Free memory that two farms side by side need. With less, the second one starts after the first has ended.
MEMORY = 9 << 30
PATIENCE = 30  # seconds within which a farm must end after a signal


def use_what_is_made(directory: Path) -> None:
    """Link images and downloads of the checkout's own farm into the directory of another farm below it."""
    for name in MADE:
        (directory / name).symlink_to(f"../{name}")


class Other:
    """Run the process of the second farm, and keep its output until it ends."""

    def __init__(self, directory: Path, arguments: Sequence[str]) -> None:
        self._log = directory / "output"
        self._argv = [sys.executable, str(host.FARM_SOURCE / "run"), *arguments, "beside"]
        self._environment = {**os.environ, VARIABLE: str(directory), "PYTHONUNBUFFERED": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self._log, "wb") as log:
            self._process = host.spawn(
                self._argv, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self) -> int:
        """Wait until it has ended, print its output, and return its exit status."""
        if self._process is None:
            self.start()
        assert self._process is not None
        code = int(self._process.wait())
        print(f"\n==== the farm beside\n{self._log.read_text(encoding='utf-8', errors='replace')}", end="", flush=True)
        return code

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                host.kill_session(self._process)


@contextmanager
def farm(arguments: Sequence[str]) -> Iterator[Other]:
    """Start a second farm if there is enough memory. It ends with the block, whatever happens."""
    directory = host.BUILD / "beside"
    host.remove_tree(directory)
    directory.mkdir(parents=True)
    use_what_is_made(directory)
    other = Other(directory, arguments)
    try:
        if host.available_memory() >= MEMORY:
            other.start()
        yield other
    finally:
        other.stop()
        # A killed farm leaves these: its tests would clean up with playbooks, which takes too long when a farm is stopped.
        for name in ("run", "stop", "tmp"):
            host.remove_tree(directory / name)
