"""Each module ends within its time limit if a file server dies before or during its work, and names the mount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins import action, modules
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import declared_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import LockedView
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import locked_views
from ansible_collections.renderfarm.overlay.tests.kernel import fuse_server, support, writable

#: The time limit of the modules. On a loaded machine a module may be given up before it reaches the server, and runs again with the next.
LIMITS = (2.0, 10.0, 30.0)
#: The most that a module takes, in seconds.
LONGEST = 60.0
#: How many modules run at the same time: a message names at most ten mounts.
WORKERS = 10

RELEASES = ("tool/1", "tool/2")
Arguments = dict[str, Any]


@dataclass
class Site:
    """A host with a software root and a manifest store on a file server of its own."""

    area: Path
    server: fuse_server.Server

    @property
    def net(self) -> Path:
        return self.area / "net"

    @property
    def root(self) -> str:
        return str(self.net / "software")

    @property
    def store(self) -> str:
        return str(self.net / "store")

    @property
    def state_dir(self) -> str:
        return str(self.area / "state")

    @property
    def view(self) -> str:
        return str(self.area / "view")

    def manifest(self, release: str) -> str:
        return f"{self.store}/{release}.dump.gz"

    def lock(self) -> list[dict[str, Any]]:
        """Resolve the view to the second release."""
        found: list[dict[str, Any]] = support.module("view_lock", **view_lock(self)).ok["views"]
        return found

    def layer(self) -> str:
        """Build a layer of the first release and return its path."""
        arguments: Arguments = {
            "name": "view",
            "state_dir": self.state_dir,
            "releases": [{"manifest": self.manifest("tool/1")}],
        }
        return str(support.module("metadata_layer", **arguments).ok["layer"])

    def overlay(self) -> Path:
        """Mount a writable overlay with the software root as an ordinary lower layer."""
        return writable.overlay_at(
            self.area / "overlay",
            Path(self.root),
            options=(("metacopy", "on"), ("redirect_dir", "on"), ("index", "on")),
        ).path

    def mounted(self) -> None:
        """Mount the first release as a view."""
        support.module("overlay_mount", **overlay_mount(self)).ok  # noqa: B018


def release_info(site: Site) -> Arguments:
    return {"root": site.root, "store": site.store}


def release_manifest(site: Site) -> Arguments:
    return {"root": site.root, "store": str(site.area / "local"), "releases": list(RELEASES)}


def view_releases(site: Site) -> Arguments:
    return {"name": "view", "root": site.root, "store": site.store, "releases": [{"release": "tool/1"}], "linger": 0}


def view_lock(site: Site) -> Arguments:
    view = {"name": "view", "root": site.root, "store": site.store, "releases": [{"release": "tool/2"}], "linger": 0}
    return {"views": [view]}


def metadata_layer(site: Site) -> Arguments:
    releases = [{"manifest": site.manifest(release)} for release in RELEASES]
    return {"name": "view", "state_dir": site.state_dir, "releases": releases}


def overlay_mount(site: Site) -> Arguments:
    return {"path": site.view, "lower": [site.layer()], "data": [site.root]}


def view(site: Site, **keys: Any) -> Arguments:
    common = {"root": site.root, "store": site.store, "state_dir": site.state_dir}
    declared, problems = declared_views([{"name": "view", "mountpoint": site.view, "query": "@", **keys}], common)
    assert problems == []
    (one,) = site.lock()
    locked = LockedView("view", one["generation"], tuple(one["releases"]), (), one["image_digest"])
    return {"views": locked_views(declared, {"view": locked})}


def data_image(site: Site) -> Arguments:
    images = site.area / "images"
    images.mkdir(0o700, exist_ok=True)
    return {
        "root": site.root,
        "store": site.store,
        "release": "tool/1",
        "select": "everything",
        "image_store": str(images),
        "staging": str(site.area / "staging"),
    }


def access_trace(site: Site) -> Arguments:
    site.mounted()
    # The server is read-only.
    shutil.copytree(site.store, site.area / "written")
    command = "cat tool/1/version tool/1/bin/tool"
    return {"path": site.view, "command": command, "user": "root", "store": str(site.area / "written"), "time_limit": 2}


def overlay_finalize(site: Site) -> Arguments:
    return {"path": str(site.overlay()), "allow_unmount": True}


def overlay_move(site: Site) -> Arguments:
    overlay = site.overlay()
    return {"source": str(overlay / "tool"), "destination": str(overlay / "moved")}


def software_root(site: Site) -> Arguments:
    return {"path": site.root, "state": "present"}


def reported(site: Site) -> Arguments:
    """Return the arguments of a module that reports a view that is mounted from the software root."""
    given = view(site)
    support.module("view", **given).ok  # noqa: B018
    return given


def overlay_verify(site: Site) -> Arguments:
    reported(site)
    return {"name": "view", "state_dir": site.state_dir, "level": "open", "store": site.store}


def release_usage_info(site: Site) -> Arguments:
    reported(site)
    return {"paths": [f"{site.root}/tool/2/version"], "roots": [site.root], "state_dirs": [site.state_dir]}


def release_retire(site: Site) -> Arguments:
    """The server is read-only, and the release has gone already."""
    return {
        "root": site.root,
        "store": site.store,
        "releases": ["tool/0"],
        "delete": True,
        "state_dirs": [site.state_dir],
    }


def image_store_prune(site: Site) -> Arguments:
    return {"image_store": site.store, "needed": []}


def view_info(site: Site) -> Arguments:
    return {**reported(site), "state_dir": site.state_dir}


def overlay_info(site: Site) -> Arguments:
    reported(site)
    return {"state_dir": site.state_dir}


def overlay_prune(site: Site) -> Arguments:
    reported(site)
    return {"state_dir": site.state_dir}


#: Modules that need an answer of the file server.
NEEDS: tuple[Callable[[Site], Arguments], ...] = (
    *(release_info, release_manifest, view_releases, view_lock, metadata_layer, overlay_mount, view),
    *(data_image, access_trace, overlay_finalize, overlay_move, software_root),
    *(overlay_verify, release_retire, image_store_prune),
)
#: Modules that never ask it.
NEVER: tuple[Callable[[Site], Arguments], ...] = (
    view_info,
    overlay_info,
    overlay_prune,
    release_usage_info,
    reported,
)
#: The module that a function is for, if it has another name.
NAMES = {"reported": "view_lock_info"}


def name_of(arguments: Callable[[Site], Arguments]) -> str:
    return NAMES.get(arguments.__name__, arguments.__name__)


def test_every_module_is_tried() -> None:
    found = {path.stem for path in Path(modules.__path__[0]).glob("[!_]*.py")}
    on_controller = {path.stem for path in Path(action.__path__[0]).glob("[!_]*.py")}
    tried = [name_of(one) for one in (*NEEDS, *NEVER)]
    assert len(tried) == len(set(tried))
    assert found - on_controller == set(tried), "add the module to NEEDS or to NEVER"


@pytest.fixture(scope="module")
def served(arena: Path) -> Path:
    """Make a software root with releases and their manifests."""
    top = arena / "dead-server"
    for release in RELEASES:
        support.make_small_release(top / "software" / release, release)
    for release in RELEASES:
        support.scanned(top / "store", top / "software", release)
    return top


@pytest.fixture
def sites(area: Path, served: Path) -> Iterator[Callable[[], Site]]:
    """Provide a function that makes a host with a file server of its own."""
    with ExitStack() as stack:

        def make() -> Site:
            place = area / f"host{len(os.listdir(area))}"
            for path in (place, place / "net", place / "local"):
                path.mkdir(0o755)
            return Site(place, stack.enter_context(fuse_server.served(served, place / "net")))

        yield make


@dataclass
class Run:
    """A run of a module on a host of its own. The server hangs after some requests, if their number is given."""

    arguments_of: Callable[[Site], Arguments]
    site: Site
    requests: int | None = None

    def __post_init__(self) -> None:
        self.name = name_of(self.arguments_of)
        self.arguments = self.arguments_of(self.site)

    def asked(self) -> int:
        """Run the module with a server that answers, and return how many requests it gets. The module must succeed."""
        return self.site.server.requests(lambda: support.module(self.name, timeout=LONGEST, **self.arguments).ok)

    def check_given_up(self) -> None:
        """Check that the module fails in time and names the mount of the server, which hangs after ``requests``."""
        assert self.requests is not None
        message = ""
        for limit in LIMITS:
            self.site.server.hang_after(self.requests)
            began = time.monotonic()
            message = support.module(self.name, timeout=limit, **self.arguments).message
            took = time.monotonic() - began
            hung = self.site.server.has_hung
            # At most as many servers hang at a time as a message names.
            self.site.server.recover()
            if hung:
                break
        assert hung, f"{self.name}: {message}"
        assert f"{self.site.net} (served)" in message, f"{self.name}: {message}"
        assert took < LONGEST, self.name


def test_a_server_that_dies_is_named_in_time(sites: Callable[[], Site]) -> None:
    """Each module runs with a server that answers, which counts its requests, with one that is dead, and with one that dies halfway."""
    answered = [Run(one, sites()) for one in NEEDS]
    asked = {run.name: run.asked() for run in answered}
    assert [name for name, requests in asked.items() if requests < 2] == [], "add the module to NEVER"
    before = [Run(one, sites(), 0) for one in NEEDS]
    during = [Run(one, sites(), asked[name_of(one)] // 2) for one in NEEDS]
    with ThreadPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(run.check_given_up) for run in (*before, *during)]:
            future.result()


def test_modules_that_report_never_ask_a_server(sites: Callable[[], Site]) -> None:
    for arguments in NEVER:
        run = Run(arguments, sites())
        assert run.asked() == 0, run.name
        run.site.server.hang_after(0)
        assert support.module(run.name, timeout=LONGEST, **run.arguments).ok, run.name


def test_fact_gathering_of_the_roles_never_asks_a_server(sites: Callable[[], Site]) -> None:
    site = sites()
    site.mounted()
    given = {"ANSIBLE_MODULE_ARGS": {"gather_subset": ["!all", "!min", "distribution"]}}
    argv = [sys.executable, "-W", "ignore", "-m", "ansible.modules.setup"]

    def gather() -> None:
        done = subprocess.run(argv, input=json.dumps(given).encode(), stdout=subprocess.PIPE, check=True)
        assert json.loads(done.stdout)["ansible_facts"]["ansible_distribution"]

    assert site.server.requests(gather) == 0
