# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Event source for ansible-rulebook: one event for each new release.

ansible-rulebook runs this file and awaits ``main``. Each poll runs this file once more, as a program in a process of its own: a file
server that does not answer hangs that process and not ansible-rulebook.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

DOCUMENTATION = r"""
---
short_description: Watch for new releases
description:
  - Sends one event for each release that becomes ready, on a software root or in a manifest store.
  - It polls, since inotify does not report what other hosts write to NFS. Each poll lists the directories that O(pattern) names, and looks
    at the releases that it does not know yet.
  - Each poll has a time limit and a process of its own, so a file server that does not answer does not hang the rulebook. The source
    logs a warning once, keeps polling, and sends the events when the server answers again.
  - A release that is deleted sends no event, and neither does one that is published again at the same path.
options:
  store:
    description:
      - Directory with the manifests. A release is ready when it has a manifest.
      - Either this or O(root) is required.
    type: str
  root:
    description:
      - The software root. A release is ready when it has O(ready_marker).
    type: str
  ready_marker:
    description:
      - Path, relative to a release, of the file that is put there when the release is complete. Required with O(root).
    type: str
    default: ""
  pattern:
    description:
      - Where releases are; see the module renderfarm.overlay.release_info.
    type: str
    default: "{package}/{version}"
  interval:
    description:
      - Seconds between the end of a poll and the start of the next one.
    type: float
    default: 60
  timeout:
    description:
      - Seconds after which a poll is given up.
    type: float
    default: 120
  state_file:
    description:
      - Path of a file that records which releases are known, on a local disk, in a directory that only this user can write to.
      - A rulebook that is started again with it sends the releases that became ready in between, and none twice.
      - Without it every start is the first one.
    type: str
  initial:
    description:
      - What to do on the first start with the releases that are ready already. V(remember) sends no events for them, V(emit) sends one
        for each.
    type: str
    choices: [remember, emit]
    default: remember
notes:
  - A release counts as known as soon as ansible-rulebook has taken its event, or, with O(feedback=true) and the persistence of
    ansible-rulebook, as soon as it has processed it. When ansible-rulebook is killed in between, the event is sent again.
"""

EXAMPLES = r"""
- name: Watch the manifests of a store
  hosts: all
  sources:
    - renderfarm.overlay.releases:
        store: /net/manifests
        state_file: /var/lib/eda/releases.json
  rules:
    - name: Show a new release
      condition: event.release.path is defined
      action:
        debug:
          msg: "{{ event.release.package }} {{ event.release.version }} is ready"

- name: Watch for ready markers on the software root
  hosts: all
  sources:
    - renderfarm.overlay.releases:
        root: /net/software
        ready_marker: .ready
        interval: 30
  rules:
    - name: Show a new release of one package
      condition: event.release.package == "houdini"
      action:
        debug:
          msg: "{{ event.release.path }} is ready"
"""

logger = logging.getLogger("renderfarm.overlay.releases")

STATE_FORMAT = 1
#: Seconds that a process is waited for after it was killed. One that waits for a file server may not end before the server answers.
REAP_SECONDS = 2.0
#: Seconds between two looks whether ansible-rulebook has taken an event.
TAKEN_SECONDS = 0.02
#: Problems that are named in one line of the log.
MOST_REPORTED = 3
#: What a poll is given and returns is a line of JSON.
POLL = (sys.executable, os.path.abspath(__file__))


@dataclass(frozen=True)
class Settings:
    """The arguments of the source."""

    store: str = ""
    root: str = ""
    ready_marker: str = ""
    pattern: str = "{package}/{version}"
    interval: float = 60.0
    timeout: float = 120.0
    state_file: str = ""
    initial: str = "remember"
    feedback: bool = False

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> Settings:
        """Return the settings for the arguments of a rulebook. Raises ValueError naming the argument that is wrong."""
        given = {name: value for name, value in args.items() if name != "eda_feedback_queue" and value is not None}
        known = {field.name: field.default for field in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"unknown argument {name!r}; the arguments are {', '.join(known)}")
            kinds = (int, float) if isinstance(known[name], float) else (type(known[name]),)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ValueError(f"{name} must be of type {kinds[-1].__name__}, not {value!r}")
        settings = cls(**given)
        settings._check()
        return settings

    def _check(self) -> None:
        if bool(self.store) == bool(self.root):
            raise ValueError("give either store or root")
        for name in ("store", "root", "state_file"):
            path = getattr(self, name)
            if path and not os.path.isabs(path):
                raise ValueError(f"{name} must be an absolute path, not {path!r}")
        if self.root and not self.ready_marker:
            raise ValueError(
                "root needs ready_marker: without it a release that is still being copied would be taken for ready"
            )
        if os.path.isabs(self.ready_marker) or ".." in self.ready_marker.split("/"):
            raise ValueError(f"ready_marker must be a path inside of a release, not {self.ready_marker!r}")
        if self.store and self.ready_marker:
            raise ValueError("ready_marker goes with root: in a store, a release is ready when it has a manifest")
        if self.initial not in ("remember", "emit"):
            raise ValueError(f"initial must be 'remember' or 'emit', not {self.initial!r}")
        for name in ("interval", "timeout"):
            if not 0 < getattr(self, name) < 1e7:
                raise ValueError(f"{name} must be a number of seconds above 0, not {getattr(self, name)!r}")

    def watched(self) -> dict[str, str]:
        """Return what is watched: a state file is good for this and nothing else."""
        return {name: getattr(self, name) for name in ("store", "root", "pattern", "ready_marker")}


class Known:
    """The paths of the releases that are known, in memory and in the state file."""

    def __init__(self, settings: Settings) -> None:
        self._file = settings.state_file
        self._watched = settings.watched()
        self.paths: set[str] = set()
        #: Whether there was a first poll, in this process or as the state file says.
        self.started = False
        self._warned = False
        if self._file:
            self._load()

    def _load(self) -> None:
        """Read the state file, or check that it can be written. Raises ValueError or OSError naming it."""
        try:
            state = json.loads(Path(self._file).read_bytes())
        except FileNotFoundError:
            if not os.access(os.path.dirname(self._file), os.W_OK | os.X_OK):
                raise ValueError(f"state_file {self._file}: its directory does not exist or is not writable") from None
            return
        except ValueError as error:
            raise ValueError(f"state_file {self._file} is not a state file ({error}): remove it") from None
        paths = state.get("releases") if isinstance(state, dict) and state.get("format") == STATE_FORMAT else None
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError(f"state_file {self._file} is not a state file of this version: remove it")
        if state.get("watched") != self._watched:
            raise ValueError(
                f"state_file {self._file} is for other arguments ({state.get('watched')}): give another file, or remove it"
            )
        self.paths.update(paths)
        self.started = True

    def add(self, *paths: str) -> None:
        """Add releases, and write the state file. A failure to write is logged once, and made good by the next call."""
        self.paths.update(paths)
        self.started = True
        if not self._file:
            return
        try:
            self._write()
            self._warned = False
        except OSError as error:
            if not self._warned:
                logger.error(
                    "state_file %s cannot be written, so a restart may send events twice: %s", self._file, error
                )
            self._warned = True

    def _write(self) -> None:
        """Replace the state file in one step, so that a reader finds the old or the new one."""
        state = {"format": STATE_FORMAT, "watched": self._watched, "releases": sorted(self.paths)}
        descriptor, aside = tempfile.mkstemp(prefix=".releases-", dir=os.path.dirname(self._file))
        try:
            with open(descriptor, "w", encoding="ascii") as stream:
                json.dump(state, stream, indent=1)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, self._file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise


class UnreachableError(Exception):
    """A poll failed for a reason that may pass."""


class Poller:
    """Run polls, one at a time, each in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hanging: asyncio.subprocess.Process | None = None
        self._reported: set[str] = set()

    async def new_releases(self, known: set[str]) -> list[dict[str, Any]]:
        """Return the releases that are ready and not known, sorted by path.

        Raises UnreachableError if the software root or store cannot be read within the time limit, and ValueError if an argument is wrong.
        """
        if self._hanging and self._hanging.returncode is None:
            raise UnreachableError("an earlier poll still waits for the file server")
        request = json.dumps({**asdict(self._settings), "known": sorted(known)}) + "\n"
        process = await asyncio.create_subprocess_exec(
            *POLL, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(request.encode()), self._settings.timeout)
        except asyncio.TimeoutError:
            raise UnreachableError(f"no answer within {self._settings.timeout:g} seconds") from None
        finally:
            await self._end(process)
        answer = _answer(output, errors, process.returncode or 0)
        self._report(set(answer["problems"]))
        releases: list[dict[str, Any]] = answer["releases"]
        return releases

    def _report(self, problems: set[str]) -> None:
        """Log problems that were not there in the last poll, in one line."""
        new = sorted(problems - self._reported)
        self._reported = problems
        if new:
            more = f"; and {len(new) - MOST_REPORTED} more" if len(new) > MOST_REPORTED else ""
            logger.warning("no events for releases that cannot be read: %s%s", "; ".join(new[:MOST_REPORTED]), more)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Kill a process that still runs. One that does not end is left alone, and no other poll starts until it has."""
        if process.returncode is not None:
            return
        self._hanging = process
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), REAP_SECONDS)


def _answer(output: bytes, errors: bytes, status: int) -> dict[str, Any]:
    """Return the releases and problems that a poll printed.

    ``status`` is the exit status of its process, or a signal as a negative number. Raises ValueError or UnreachableError with the reason
    if the poll failed.
    """
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        if status < 0:
            raise UnreachableError(f"the process of the poll was ended by signal {-status}") from None
        reason = errors.decode("utf-8", "replace").strip().rpartition("\n")[2] or "it printed nothing"
        raise UnreachableError(f"the poll failed: {reason}") from None
    if "wrong" in answer:
        raise ValueError(answer["wrong"])
    if "unreachable" in answer:
        raise UnreachableError(answer["unreachable"])
    return answer


async def main(queue: Any, args: dict[str, Any]) -> None:
    """Send an event for each new release, until cancelled. Raises ValueError naming the argument that is wrong."""
    settings = Settings.parse(args)
    known = Known(settings)
    poller = Poller(settings)
    place = settings.store or settings.root
    reachable = True
    while True:
        try:
            releases = await poller.new_releases(known.paths)
        except UnreachableError as error:
            if reachable:
                logger.warning("%s cannot be read, and is tried every %g seconds: %s", place, settings.interval, error)
            reachable = False
        else:
            if not reachable:
                logger.warning("%s can be read again", place)
            reachable = True
            if not known.started and settings.initial == "remember":
                known.add(*(release["path"] for release in releases))
                releases = []
            for release in releases:
                await _send(queue, {"release": release}, args.get("eda_feedback_queue"))
                known.add(release["path"])
            if not known.started:
                known.add()
        await asyncio.sleep(settings.interval)


async def _send(queue: Any, event: dict[str, Any], feedback: Any) -> None:
    """Send an event, and return when ansible-rulebook has taken it, or has processed it if it gives feedback."""
    await queue.put(event)
    if feedback is not None:
        await feedback.get()
        return
    # ansible-rulebook hands over a queue of its own, around the one that its rules read.
    inner = getattr(queue, "queue", queue)
    is_empty = getattr(inner, "empty", None)
    while is_empty is not None and not is_empty():
        await asyncio.sleep(TAKEN_SECONDS)


# ---- The poll, in a process of its own


def poll(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one poll finds: releases and problems, or why there are none."""
    # The collection that this file belongs to, which ansible-rulebook does not put on the search path.
    sys.path.insert(0, str(Path(os.path.abspath(__file__)).parents[7]))
    try:
        from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
        from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern
    except ImportError as error:
        return {"wrong": f"the event source has to be used from the installed collection renderfarm.overlay ({error})"}
    try:
        pattern = Pattern.parse(request["pattern"])
    except OverlayError as error:
        return {"wrong": str(error)}
    problems: list[str] = []
    try:
        found = _in_store(request, pattern, problems) if request["store"] else _on_root(request, pattern, problems)
    except (OverlayError, OSError) as error:
        return {"unreachable": str(error)}
    found.sort(key=lambda release: str(release["path"]))
    problems.extend(f"{release['path']!r} is not UTF-8" for release in found if not _is_utf8(release["path"]))
    return {"releases": [release for release in found if _is_utf8(release["path"])], "problems": problems}


def _is_utf8(path: str) -> bool:
    """Return whether a path can be part of an event. Names of other bytes have surrogates."""
    return path.isascii() or not any("\ud800" <= char <= "\udfff" for char in path)


def _in_store(request: Mapping[str, Any], pattern: Any, problems: list[str]) -> list[dict[str, Any]]:
    """Return the unknown releases that have a whole manifest in the store."""
    from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
    from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store

    store, known = request["store"], set(request["known"])
    found = []
    for release in manifest_store.find_manifests(store, pattern):
        if release.path in known:
            continue
        path = manifest_store.manifest_path(store, release.path)
        try:
            record = manifest_store.read_record(path, release.path)
        except OverlayError as error:
            problems.append(str(error))
            continue
        found.append(
            {**release.as_dict(), "root": record.root, "store": store, "manifest": path, "digest": record.digest}
        )
    return found


def _on_root(request: Mapping[str, Any], pattern: Any, problems: list[str]) -> list[dict[str, Any]]:
    """Return the unknown releases on the software root that have the ready marker."""
    from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import scan

    root, marker, known = request["root"], request["ready_marker"], set(request["known"])
    passed_over = scan.PassedOver()
    found = [
        {**release.as_dict(), "root": root}
        for release in scan.find_releases(root, pattern, passed_over)
        if release.path not in known and scan.is_shown_ready(root, release, marker)
    ]
    problems.extend(
        f"{directory} may not be listed, so releases in it are not known" for directory in passed_over.unlisted
    )
    return found


def _poll_once() -> None:
    """Read a request from standard input, and print what the poll finds."""
    request = json.loads(sys.stdin.readline())
    # ansible-rulebook may have been killed meanwhile.
    signal.alarm(int(request["timeout"]) + 60)
    print(json.dumps(poll(request)), flush=True)


if __name__ == "__main__":
    _poll_once()
