"""The rulebook in ansible-rulebook itself: a release is published, and the view shows it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = CHECKOUT / ".build" / "venv-eda" / "bin"
RULEBOOK = CHECKOUT / "extensions" / "eda" / "rulebooks" / "deploy_new_releases.yml"
LIMIT = 240.0  # seconds, for a start of ansible-rulebook or a deployment on a busy machine


class Site:
    """A software root, a store, an inventory with a view of the newest releases, and ansible-rulebook."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root, self.mountpoint = directory / "software", directory / "view"
        self.state, self.log = directory / "state.json", directory / "rulebook.log"
        self.root.mkdir()
        (directory / "store").mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": str(TOOLS / "python"),
            "overlay_root": str(self.root),
            "overlay_store": str(directory / "store"),
            "overlay_state_dir": str(directory / "state"),
            "overlay_ready_marker": ".ready",
            "overlay_linger": 0,
            "overlay_views": [{"name": "tools", "mountpoint": str(self.mountpoint), "query": "newest(@)"}],
        }
        self._write("inventory/hosts.yml", {"render": {"hosts": {"node1": {}}}})
        self._write("inventory/group_vars/render.yml", variables)
        # A minute is long for a test. All else is as it is delivered.
        text = RULEBOOK.read_text(encoding="utf-8")
        assert text.count("once_after: 1 minutes") == 1
        (directory / "rulebook.yml").write_text(text.replace("once_after: 1 minutes", "once_after: 2 seconds"))
        self._write(
            "eda.yml",
            {
                "overlay_hosts": "render",
                "overlay_root": str(self.root),
                "overlay_ready_marker": ".ready",
                "overlay_poll_interval": 0.5,
                "overlay_eda_state_file": str(self.state),
            },
        )

    def _write(self, name: str, content: Any) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")

    def publish(self, *releases: str) -> None:
        for release in releases:
            (self.root / release).mkdir(parents=True)
            (self.root / release / "version").write_text(release)
            (self.root / release / ".ready").touch()

    def start(self) -> None:
        """Start ansible-rulebook, and return when its source has polled once."""
        java = shutil.which("java")
        assert java, "there is no java: make setup-eda"
        environment = {
            **os.environ,
            "PATH": f"{TOOLS}:{os.environ['PATH']}",
            "JAVA_HOME": str(Path(java).resolve().parents[1]),
            "ANSIBLE_HOME": str(self.directory / "home"),
        }
        argv = [
            "ansible-rulebook",
            "--rulebook",
            "rulebook.yml",
            "--inventory",
            "inventory",
            "--vars",
            "eda.yml",
            "--print-events",
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_until(lambda: b"Waiting for events" in self.log.read_bytes() or self.known() is not None)

    def stop(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None

    def known(self) -> list[str] | None:
        return json.loads(self.state.read_text())["releases"] if self.state.exists() else None

    def shown(self) -> set[str]:
        return {str(path.parent.relative_to(self.mountpoint)) for path in self.mountpoint.glob("*/*/version")}

    def deployments(self) -> int:
        return self.log.read_text(errors="replace").count("PLAY RECAP")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            assert self._process
            assert self._process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < end, self.log.read_text(errors="replace")
            time.sleep(0.1)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()
    subprocess.run(["umount", "--recursive", site.mountpoint], check=False, capture_output=True)


def test_a_published_release_is_deployed_and_a_restart_deploys_what_was_published_meanwhile(site: Site) -> None:
    site.publish("houdini/20.5.332")
    site.start()
    site.wait_until(lambda: site.known() == ["houdini/20.5.332"])
    assert site.shown() == set()

    site.publish("houdini/20.5.410", "usd/25.05")
    site.wait_until(lambda: site.shown() == {"houdini/20.5.410", "usd/25.05"})
    site.wait_until(lambda: site.deployments() == 1)

    site.stop()
    site.publish("nuke/15.1v3")
    site.start()
    site.wait_until(lambda: site.shown() == {"houdini/20.5.410", "usd/25.05", "nuke/15.1v3"})
    site.wait_until(lambda: site.deployments() == 2)
    assert site.known() == ["houdini/20.5.332", "houdini/20.5.410", "nuke/15.1v3", "usd/25.05"]
