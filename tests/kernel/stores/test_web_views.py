"""Views of hosts without NFS: images and manifests from a web server, data from a local directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.fleet.test_data_views import Farm as DataFarm
from ansible_collections.renderfarm.overlay.tests.kernel.fleet.test_view import Farm
from ansible_collections.renderfarm.overlay.tests.kernel.stores import web_servers
from ansible_collections.renderfarm.overlay.tests.kernel.stores.web_servers import Nginx

pytestmark = pytest.mark.usefixtures("with_programs", "plain_environment")


@pytest.fixture
def plain_environment(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the proxies and the credentials of this machine."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(area))


@pytest.fixture
def farm(area: Path) -> Farm:
    return Farm(area)


@pytest.fixture
def server(farm: Farm, tmp_path: Path) -> Iterator[Nginx]:
    with web_servers.nginx(tmp_path / "nginx", farm.top) as running:
        yield running


def views_of(farm: Farm, server: Nginx, locked: list[dict[str, Any]], **keys: Any) -> list[dict[str, Any]]:
    """Return the views of a host without NFS. Its copy of the software is in a local directory."""
    copy = farm.top / "copy"
    if not copy.exists():
        shutil.copytree(farm.root, copy)
    more = {"build": "central", "store": f"{server.https}/store", "ca_path": str(server.ca_path), **keys}
    return farm.views(locked, root=str(copy), root_name=str(farm.root), **more)


def scan_again(farm: Farm, release: str) -> None:
    """Replace the manifest of a release that has changed, which the module does not do by itself."""
    for suffix in (".json", ".dump.gz"):
        (farm.store / (release + suffix)).unlink()
    assert support.module("release_manifest", releases=[release], root=str(farm.root), store=str(farm.store)).ok[
        "changed"
    ]


def files_below(place: Path) -> list[str]:
    return sorted(name for _directory, _names, names in os.walk(place) for name in names)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_without_nfs_shows_the_same_views(farm: Farm, server: Nginx, scheme: str) -> None:
    locked = farm.lock("usd/1", image_store=str(farm.store / ".images"))
    views = views_of(farm, server, locked, store=f"{getattr(server, scheme)}/store")
    expected = f"{getattr(server, scheme)}/store/.images/{locked[0]['generation']}.erofs"
    assert views[0]["image"] == expected
    farm.root.rename(farm.top / "unmounted")
    asked = farm.bring(views, check=True).ok
    assert asked["changed"]
    assert not (farm.top / "state").exists()
    brought = farm.bring(views).ok
    assert brought["actions"] == asked["actions"]
    assert (farm.shown(), farm.status()["generation"]) == (["1"], locked[0]["generation"])
    assert (farm.top / "software" / "usd" / "1" / "file").read_bytes() == b"usd/1"
    # What is installed needs no server any more.
    before = server.requests
    assert not farm.bring(views).ok["changed"]
    assert server.requests == before


def test_a_host_without_nfs_builds_its_layer_from_manifests_of_the_lock(farm: Farm, server: Nginx) -> None:
    locked = farm.lock("usd/1", "qt/1")
    views = views_of(farm, server, locked, build="local")
    assert all(one["digest"] for one in views[0]["releases"])
    assert farm.bring(views, check=True).ok["changed"]
    assert farm.bring(views).ok["changed"]
    assert (farm.shown(), farm.status()["generation"]) == (["1"], locked[0]["generation"])
    assert files_below(farm.top / "state" / "manifests") == ["1.dump.gz", "1.dump.gz", "1.json", "1.json"]
    before = server.requests
    assert not farm.bring(views).ok["changed"]
    assert server.requests == before
    # A copy that was truncated is replaced.
    one = next((farm.top / "state" / "manifests").rglob("usd/1.dump.gz"))
    content = one.read_bytes()
    one.write_bytes(content[:-1])
    assert not farm.bring(views[:1]).ok["changed"]
    assert one.read_bytes() == content
    assert server.has_logged("GET /store/usd/1.dump.gz 200 -")


def test_manifests_that_were_not_used_for_a_month_are_removed(farm: Farm, server: Nginx) -> None:
    assert farm.bring(views_of(farm, server, farm.lock("usd/1"), build="local")).ok["changed"]
    cache = farm.top / "state" / "manifests"
    (old,) = cache.iterdir()
    os.utime(old, (0, 0))
    assert farm.bring(views_of(farm, server, farm.lock("usd/2"), build="local")).ok["changed"]
    (new,) = cache.iterdir()
    assert new.name != old.name


@pytest.mark.parametrize("damage", ["rescanned", "other text", "truncated", "longer", "no record", "no manifest"])
def test_a_manifest_that_is_not_the_locked_one_is_refused(farm: Farm, server: Nginx, damage: str) -> None:
    views = views_of(farm, server, farm.lock("usd/1"), build="local")
    manifest, record = farm.store / "usd" / "1.dump.gz", farm.store / "usd" / "1.json"
    other = farm.store / "usd" / "2.dump.gz"
    content = manifest.read_bytes()
    if damage == "rescanned":
        support.write(farm.root / "usd" / "1" / "file", b"changed")
        scan_again(farm, "usd/1")
    elif damage == "other text":
        manifest.write_bytes(other.read_bytes())
        values = json.loads(record.read_text())
        record.write_text(json.dumps({**values, "stored_bytes": other.stat().st_size}))
    elif damage in ("truncated", "longer"):
        manifest.write_bytes(content[:-1] if damage == "truncated" else content + b"x")
    else:
        (record if damage == "no record" else manifest).unlink()
    message = farm.bring(views).message
    name = ".json" if damage in ("rescanned", "no record") else ".dump.gz"
    assert f"{server.https}/store/usd/1{name}: " in message or f"{server.https}/store/usd/1{name} is" in message
    assert support.live(farm.top / "software") is None
    assert files_below(farm.top / "state" / "manifests") == []


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no record", "no image", "other digest"])
def test_an_image_that_is_not_the_locked_one_is_refused(farm: Farm, server: Nginx, damage: str) -> None:
    views = views_of(farm, server, farm.lock("usd/1", image_store=str(farm.store / ".images")))
    image = farm.store / ".images" / views[0]["image"].rpartition("/")[2]
    packed = Path(f"{image}.gz")
    content = bytearray(packed.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        packed.write_bytes(content)
    elif damage == "truncated":
        packed.write_bytes(content[:-1])
    elif damage in ("no record", "no image"):
        (image.with_suffix(".json") if damage == "no record" else packed).unlink()
    else:
        views = [{**view, "image_digest": "sha256:" + "0" * 64} for view in views]
    message = farm.bring(views).message
    assert views[0]["image"] in message
    assert ("nothing was installed" in message) == (damage in ("flipped", "other digest"))
    assert support.live(farm.top / "software") is None
    assert not list((farm.top / "state").rglob("*.erofs"))
    assert not list((farm.top / "state").rglob("incoming/*"))


def test_a_full_disk_leaves_nothing(farm: Farm, server: Nginx) -> None:
    for number in range(3000):
        support.write(farm.root / "usd" / "2" / f"file {number}", b"x")
    scan_again(farm, "usd/2")
    locked = farm.lock("usd/2", image_store=str(farm.store / ".images"))
    record = json.loads((farm.store / ".images" / f"{locked[0]['generation']}.json").read_text())
    assert record["image"]["bytes"] > 1 << 18
    state = farm.top / "state"
    state.mkdir()
    support.command("mount", "-t", "tmpfs", "-o", "mode=0700,size=128k", "tmpfs", state)
    views = views_of(farm, server, locked)
    assert "may take half: nothing was installed" in farm.bring(views).message
    assert not list(state.rglob("incoming/*"))
    # The images of a directory are trusted.
    of_directory = [{**view, "image": str(farm.store / ".images" / Path(view["image"]).name)} for view in views]
    assert "No space left on device" in farm.bring(of_directory).message
    assert not list(state.rglob("incoming/*"))
    support.command("mount", "-o", "remount,size=16m", state)
    assert farm.bring(views).ok["changed"]


def test_a_server_cannot_fill_the_disk_with_an_image(farm: Farm, server: Nginx) -> None:
    """The lock has the digest of an image, and only the record on the server has its length."""
    views = views_of(farm, server, farm.lock("usd/1", image_store=str(farm.store / ".images")))
    record = farm.store / ".images" / Path(views[0]["image"]).with_suffix(".json").name
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "image": {**values["image"], "bytes": 1 << 50}}))
    assert f"{views[0]['image']}: the server says that it takes 1125899" in farm.bring(views).message
    assert not list((farm.top / "state").rglob("incoming/*"))


def test_a_server_cannot_fill_the_disk_with_a_manifest(farm: Farm, server: Nginx) -> None:
    views = views_of(farm, server, farm.lock("usd/1"))
    record = farm.store / "usd" / "1.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "stored_bytes": 1 << 50}))
    assert (
        f"{server.https}/store/usd/1.dump.gz: the server says that it takes 1125899906842624"
        in farm.bring(views).message
    )
    assert files_below(farm.top / "state" / "manifests") == []


# ---- what is refused


def test_without_digest_nothing_is_taken_from_an_address(farm: Farm, server: Nginx) -> None:
    state: dict[str, Any] = {"name": "software", "state_dir": str(farm.top / "state"), "ca_path": str(server.ca_path)}
    store = f"{server.https}/store"
    refused = support.module("metadata_layer", store=store, releases=[{"release": "usd/1"}], **state).message
    assert refused == (
        f"release usd/1: the digest of its manifest is not known, and {store} is an address, whose manifests are only taken by their"
        " digest: deploy with a lock, which has it"
    )
    refused = support.module("metadata_layer", releases=[{"manifest": f"{store}/usd/1.dump.gz"}], **state).message
    assert refused.startswith(f"manifest {store}/usd/1.dump.gz is an address: give 'release' and 'digest' instead")
    assert "required together" in support.module("metadata_layer", image=f"{store}/.images/x.erofs", **state).message


def test_nothing_is_published_to_an_address_or_listed_there(farm: Farm, server: Nginx) -> None:
    store, root = f"{server.https}/store", str(farm.root)
    served = "give the directory that"
    published = support.module("metadata_layer", name="view", store=str(farm.store), image_store=store).message
    assert f"image store {store} is an address, and nothing can be published to a web server: {served}" in published
    assert f"{store} is an address, which can neither be listed" in support.module("release_info", store=store).message
    options: dict[str, dict[str, Any]] = {
        "release_manifest": {"releases": ["usd/1"], "store": store, "root": root},
        "view_lock": {"views": [{"name": "view", "store": store, "root": root, "releases": []}]},
        "view_releases": {"name": "view", "store": store, "root": root, "releases": []},
    }
    for name, given in options.items():
        assert served in support.module(name, **given).message, name


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///etc/shadow.erofs", "has the scheme file"),
        ("ftp://host/x.erofs", "has the scheme ftp"),
        ("https://host/x.erofs?signature=1", "has a '?' or a '#'"),
        ("https:///x.erofs", "has no host"),
        ("relative.erofs", "must be an absolute path or an http(s) address"),
    ],
)
def test_an_unusable_address_is_refused(farm: Farm, address: str, words: str) -> None:
    ran = support.module(
        "metadata_layer",
        name="view",
        state_dir=str(farm.top / "state"),
        image=address,
        image_digest="sha256:" + "0" * 64,
    )
    assert words in ran.message


def test_a_password_in_an_address_is_refused_and_in_no_result(farm: Farm, server: Nginx) -> None:
    store = server.https.replace("//", "//reader:s3cret-word@") + "/store"
    views = views_of(farm, server, farm.lock("usd/1"), build="local")
    ran = farm.bring([{**view, "store": store} for view in views])
    assert "has a user name or a password: leave them out" in ran.message
    assert "s3cret-word" not in ran.output
    ran = support.module("release_info", store=store)
    assert "s3cret-word" not in ran.output


# ---- no file server at all


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_without_nfs_and_without_a_copy_stands_on_data_images(area: Path, tmp_path: Path, scheme: str) -> None:
    farm = DataFarm(area)
    for release in ("usd/1", "qt/1"):
        farm.publish(release, "everything")
    with web_servers.nginx(tmp_path / "nginx", farm.top) as server:
        store = f"{getattr(server, scheme)}/store"
        keys = {
            "store": store,
            "image_store": f"{store}/.images",
            "ca_path": str(server.ca_path),
            "data_images": "only",
        }
        views = farm.views("usd/1", "qt/1", **keys)
        # The host never had the software root.
        farm.root.rename(farm.top / "elsewhere")
        ran = support.module("view", check=True, views=views).ok
        assert ran["changed"]
        brought = support.module("view", views=views).ok["views"][0]
        assert brought["detached"]
        farm.check_content("usd/1", "qt/1")
        assert len(farm.data()) == 2
        before = server.requests
        assert not support.module("view", views=views).ok["changed"]
        assert server.requests == before


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no image", "no record", "other digest"])
def test_a_data_image_that_is_not_the_locked_one_is_not_installed(area: Path, tmp_path: Path, damage: str) -> None:
    farm = DataFarm(area)
    image = farm.publish("usd/1", "everything")
    path = farm.images / ".data" / "usd" / "1" / f"{image.id}.erofs"
    content = bytearray(path.read_bytes())
    with web_servers.nginx(tmp_path / "nginx", farm.top) as server:
        store = f"{server.http}/store"
        keys = {"store": store, "image_store": f"{store}/.images", "data_images": "everything"}
        views = farm.views("usd/1", **keys)
        if damage == "flipped":
            content[-1] ^= 1
            path.write_bytes(content)
        elif damage == "truncated":
            path.write_bytes(content[:-1])
        elif damage == "other digest":
            views[0]["locked_data_images"][0]["digest"] = image.digest[:-1] + ("0" if image.digest[-1] != "0" else "1")
        else:
            (path if damage == "no image" else path.with_suffix(".json")).unlink()
        # The view is read from the software root then.
        ran = support.module("view", views=views).ok
        assert "usd/1" in str(ran["warnings"])
        assert farm.data() == ["root"]
        assert farm.installed() == set()
        assert files_below(farm.state / "data") in ([], ["lock"])
