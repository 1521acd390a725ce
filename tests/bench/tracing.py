"""Measure what tracing the opens of a view costs the jobs that run meanwhile: with and without a listener, in turns."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import open_recorder
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.fanotify import OpenListener
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.open_recorder import Listening
from ansible_collections.renderfarm.overlay.tests.kernel import support

#: Passes over all files in one turn.
PASSES = 5

_MODULES = (
    *("argparse", "asyncio", "bdb", "calendar", "cmd", "configparser", "csv", "dataclasses", "decimal", "difflib"),
    *("doctest", "email.mime.multipart", "fractions", "ftplib", "getopt", "html.parser", "http.client", "http.server"),
    *("imaplib", "inspect", "json", "logging.config", "mailbox", "mimetypes", "multiprocessing.pool", "optparse"),
    *("pdb", "pickle", "pickletools", "plistlib", "pprint", "pydoc", "queue", "random", "smtplib", "statistics"),
    *(
        "tarfile",
        "tempfile",
        "textwrap",
        "timeit",
        "tokenize",
        "trace",
        "tracemalloc",
        "unittest.mock",
        "urllib.robotparser",
    ),
    *(
        "uuid",
        "webbrowser",
        "xml.dom.minidom",
        "xml.etree.ElementTree",
        "xml.sax",
        "xmlrpc.client",
        "zipapp",
        "zipfile",
    ),
)
#: A start of a program: it imports modules from the view.
_START = (
    f"import sys, importlib\nsys.path.insert(0, sys.argv[1])\nfor name in {_MODULES!r}: importlib.import_module(name)"
)
#: Nothing but opens.
_OPENS = f"""
import os, sys
files = [os.path.join(top, name) for top, _directories, names in os.walk(sys.argv[1]) for name in names]
for _pass in range({PASSES}):
    for file in files:
        os.close(os.open(file, os.O_RDONLY))
"""


@dataclass(frozen=True)
class Turn:
    """What one turn of a job needs, in seconds."""

    wall: float
    #: Processor time of the job.
    own: float
    #: Processor time of the listener.
    listener: float = 0.0


@dataclass
class TracedJob:
    """The turns of a job, without and with a listener."""

    name: str
    #: Opens of one turn, counted by the listener.
    opens: int = 0
    plain: list[Turn] = field(default_factory=list)
    traced: list[Turn] = field(default_factory=list)

    def best(self, traced: bool) -> Turn:
        """Return the least of each time of all turns."""
        turns = self.traced if traced else self.plain
        return Turn(*(min(getattr(turn, time) for turn in turns) for time in ("wall", "own", "listener")))


def jobs(directory: Path, rounds: int) -> list[TracedJob]:
    """Run jobs in a view of Python's library, with and without a listener in turns, and return what they need."""
    library = sysconfig.get_path("stdlib")
    root = directory / "root"
    shutil.copytree(
        library,
        root / "python" / "1",
        ignore=shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "config-*"),
    )
    state_dir = directory / "state"
    state_dir.mkdir(mode=0o700)
    layer, _generation, _report = support.build(state_dir, [support.scanned(directory / "store", root, "python/1")])
    found = []
    with support.mounted(support.declared(directory / "view", [layer], [root])) as view:
        top = view / "python" / "1"
        for name, code in (("a start of Python", _START), ("opens and nothing else", _OPENS)):
            job = TracedJob(name)
            argv = [sys.executable, "-S", "-c", code, str(top)]
            job.opens = _opens(view, argv)
            for _round in range(rounds):
                job.plain.append(_seconds(argv))
                with _listening(view) as listener:
                    turn = _seconds(argv)
                job.traced.append(replace(turn, listener=listener[0]))
            found.append(job)
    return found


def _opens(view: Path, argv: list[str]) -> int:
    """Return how many opens one turn has. This also fills the caches."""
    listener = OpenListener()
    try:
        listener.mark(os.fsencode(view), whole=True)
        with subprocess.Popen(argv) as process:
            while process.poll() is None:
                listener.read()
                time.sleep(0.005)
        listener.read()
    finally:
        listener.close()
    return sum(file.opens for file in listener.opened.files.values())


def _seconds(argv: list[str]) -> Turn:
    before, started = _processor(resource.getrusage(resource.RUSAGE_CHILDREN)), time.perf_counter()
    subprocess.run(argv, check=True)
    wall = time.perf_counter() - started
    return Turn(wall, _processor(resource.getrusage(resource.RUSAGE_CHILDREN)) - before)


def _processor(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _listening(view: Path) -> Iterator[list[float]]:
    """Trace the view in another process, as access_trace does for a duration, while the block runs.

    When the block has ended, the list has the processor time that the listener needed.
    """
    needed: list[float] = []
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _listen(view, told)
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        yield needed
    finally:
        time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        needed.append(_processor(os.wait4(child, 0)[2]))
        os.close(ready)
        os.close(told)


def _listen(view: Path, told: int) -> None:
    """Trace the view until this process is killed, and write a byte to ``told`` when it is being traced."""
    is_told = False

    def tick() -> None:
        nonlocal is_told
        if not is_told:
            is_told = True
            os.write(told, b".")

    open_recorder.record_time(Listening(os.fsencode(view), whole=True), 3600, tick)
