"""Rows of a report: where the views of a host stand, told from the mounts, the state directory and what mounts them at boot."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import rows_of
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.fleet.test_view import Farm
from ansible_collections.renderfarm.overlay.tests.kernel.test_dead_server import LIMIT, dead, etc_of_its_own

Row = dict[str, Any]


@pytest.fixture
def farm(area: Path) -> Iterator[Farm]:
    with etc_of_its_own(area):
        yield Farm(area)


def reported(farm: Farm, **options: Any) -> dict[str, Row]:
    """Return the rows of all views by name. The filter must accept them."""
    ran = support.module("view_info", state_dir=str(farm.top / "state"), timeout=LIMIT, **options).ok
    assert not ran["changed"]
    assert rows_of([{**row, "host": "h"} for row in ran["report"]])
    return {row["view"]: row for row in ran["report"]}


def software(farm: Farm, **options: Any) -> Row:
    return reported(farm, **options)["software"]


def units() -> list[str]:
    return sorted(name for name in os.listdir("/etc/systemd/system") if name.endswith(".mount"))


@pytest.mark.parametrize("persist", ["none", "systemd", "fstab"])
def test_views_are_as_declared_after_a_run(farm: Farm, persist: str) -> None:
    locked = farm.lock("usd/1", "qt/1")
    views = farm.views(locked, persist=persist)
    ran = farm.bring(views).ok
    for row in (*ran["report"], *reported(farm).values(), *reported(farm, views=views).values()):
        assert (row["status"], row["drift"], row["failure"]) == ("as declared", [], "")
        assert row["generation"] == row["declared_generation"] == locked[0]["generation"]
        assert row["mountpoint"] == str(farm.top / row["view"])
        assert row["since"] == row["last_run"] or row["since"] < row["last_run"]
        assert row["bytes_on_disk"] >= 0
    assert sorted(software(farm)["releases"]) == ["qt/1", "usd/1"]
    # The lock has the releases.
    assert all("releases" not in row for row in ran["report"])


@pytest.mark.usefixtures("with_programs")
@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "redirect", "persist": "systemd"},
        {"format": "erofs", "persist": "systemd"},
        {"format": "erofs", "persist": "fstab"},
        {"xattr_namespace": "user"},
    ],
    ids=str,
)
def test_every_kind_of_view_is_as_declared(farm: Farm, keys: dict[str, Any]) -> None:
    namespace = {name: value for name, value in keys.items() if name == "xattr_namespace"}
    views = farm.views(farm.lock("usd/1", **namespace), **keys)
    farm.bring(views)
    for row in (software(farm), software(farm, views=views)):
        assert (row["status"], row["drift"], row["failure"]) == ("as declared", [], "")


def test_an_unmounted_view_has_drifted(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"))
    farm.bring(views)
    support.command("umount", farm.top / "software")
    row = software(farm)
    assert (row["status"], row["generation"]) == ("drifted", None)
    assert row["drift"] == [f"it is not mounted at {farm.top}/software"]
    would = {one["view"]: one for one in farm.bring(views, check=True).ok["report"]}
    assert would["software"]["status"] == "drifted"
    assert would["tools"]["status"] == "as declared"
    assert farm.bring(views).ok["report"][0]["status"] == "as declared"


def test_something_over_a_view_is_named(farm: Farm) -> None:
    farm.bring(farm.views(farm.lock("usd/1")))
    support.command("mount", "-t", "tmpfs", "cover", farm.top / "software")
    assert software(farm)["drift"] == [f"a mount of type tmpfs from cover covers it at {farm.top}/software"]
    support.command("umount", farm.top / "software")
    support.command("umount", farm.top / "software")
    support.command("mount", "-t", "tmpfs", "other", farm.top / "software")
    assert software(farm)["drift"] == [f"a mount of type tmpfs from other is at {farm.top}/software instead of it"]


def test_another_generation_than_declared_has_drifted(farm: Farm) -> None:
    first, second = farm.lock("usd/1"), farm.lock("usd/2")
    farm.bring(farm.views(first))
    old, new = first[0]["generation"], second[0]["generation"]
    row = software(farm, views=farm.views(first), generations={"software": new})
    assert (row["status"], row["generation"], row["declared_generation"]) == ("drifted", old, new)
    assert row["drift"] == [f"it shows generation {old} instead of {new}", f"generation {new} is not on this host"]
    # It is mounted by hand, and not by a run.
    farm.bring(farm.views(second, keep=3))
    layer = next((farm.top / "state/views/software/generations").glob(f"{old}-*/layer*"))
    options: dict[str, Any] = {"data": [str(farm.root)], "options": {"nodev": True, "nosuid": True}}
    assert support.module("overlay_mount", path=str(farm.top / "software"), lower=[str(layer)], **options).ok["changed"]
    row = software(farm)
    assert row["drift"] == [f"it shows generation {old} instead of {new}"]
    assert (row["since"], row["releases"]) == (None, ["usd/1"])


def test_other_options_and_data_layers_have_drifted(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"))
    farm.bring(views)
    other = [{**view, "options": {"nodev": True, "noexec": True}, "data": ["/other"]} for view in views]
    assert software(farm, views=other)["drift"] == [
        f"its data layers are {farm.root} instead of /other",
        "mount option nosuid is on instead of off",
        "mount option noexec is off instead of on",
    ]
    support.command("mount", "-o", "remount,bind,nodev,suid,ro", farm.top / "software")
    assert software(farm)["drift"] == ["mount option nosuid is off instead of on"]


def test_what_mounts_a_view_at_boot_is_compared(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"), persist="systemd")
    farm.bring(views)
    unit = next(name for name in units() if name.endswith("software.mount"))
    path = Path("/etc/systemd/system") / unit
    text = path.read_text()
    path.write_text(text.replace("nosuid", "suid"))
    assert software(farm)["drift"] == [
        f"unit {unit}, which is needed to mount it at boot, differs from the declaration"
    ]
    path.unlink()
    assert software(farm)["drift"] == [f"unit {unit}, which is needed to mount it at boot, is missing"]
    path.write_text(text)
    other = [{**view, "persist": "fstab"} for view in views]
    assert software(farm, views=other)["drift"] == [
        "the lines in /etc/fstab that mount it at boot are missing",
        f"unit {unit}, which is there to mount it at boot, is not declared",
    ]
    farm.bring(other)
    fstab = Path("/etc/fstab")
    fstab.write_text(fstab.read_text().replace("nosuid", "suid"))
    assert software(farm)["drift"] == ["the lines in /etc/fstab that mount it at boot differ from the declaration"]
    none = software(farm, views=views[:0])
    assert none["status"] == "not declared"
    none = software(farm, views=[{**view, "persist": "none"} for view in views])
    assert none["drift"] == ["the lines in /etc/fstab that mount it at boot are not declared"]


def test_a_held_view_is_compared_with_its_hold(farm: Farm) -> None:
    first, second = farm.lock("usd/1"), farm.lock("usd/2")
    farm.bring(farm.views(first))
    farm.bring(farm.views(second))
    farm.bring(farm.views([], generation="previous"), hold=0, hold_reason="black frames")
    ran = farm.bring(farm.views(second)).ok
    for row in (ran["report"][0], software(farm), software(farm, views=farm.views(second))):
        assert (row["status"], row["drift"]) == ("held", [])
        assert row["hold"]["reason"] == "black frames"
        assert (row["generation"], row["declared_generation"]) == (first[0]["generation"], second[0]["generation"])
    assert ran["report"][0]["releases"] == ["usd/1"]
    support.command("umount", farm.top / "software")
    assert software(farm)["status"] == "drifted"


def test_the_failure_of_the_last_run_is_reported(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"))
    (farm.top / "software").mkdir()
    (farm.top / "software" / "precious").touch()
    ran = farm.bring(views)
    assert [row["status"] for row in ran.result["report"]] == ["failed", "as declared"]
    row = software(farm)
    assert row["status"] == "failed"
    assert "is not empty" in row["failure"]
    # Check mode records nothing, and reports its own failure.
    (farm.top / "software" / "precious").unlink()
    assert farm.bring(views, check=True).ok["report"][0]["status"] == "drifted"
    assert software(farm)["status"] == "failed"
    farm.bring(views)
    assert software(farm)["status"] == "as declared"


def test_damaged_records_are_failures_that_name_them(farm: Farm) -> None:
    farm.bring(farm.views(farm.lock("usd/1")))
    top = farm.top / "state" / "views" / "software"
    (top / "status.json").write_text("{}")
    assert f"{top}/status.json is damaged: " in software(farm)["failure"]
    (top / "status.json").unlink()
    assert software(farm)["status"] == "as declared"
    record = next(top.glob("generations/*/view.json"))
    text = record.read_text()
    record.write_text("{")
    row = software(farm)
    assert str(record) in row["failure"]
    assert row["status"] == "failed"
    record.write_text(text)
    (top / "generations").chmod(0o777)
    assert "generations" in software(farm)["failure"]
    assert reported(farm)["tools"]["status"] == "as declared"


def test_a_missing_layer_is_named(farm: Farm) -> None:
    locked = farm.lock("usd/1")
    farm.bring(farm.views(locked))
    generation = locked[0]["generation"]
    shutil.rmtree(next((farm.top / "state/views/software/generations").glob(f"{generation}-*")))
    assert software(farm)["drift"] == [
        f"the layer or the record of generation {generation}, which is mounted, is missing",
        f"generation {generation} is not on this host",
    ]


def test_views_that_are_taken_down_are_as_declared(farm: Farm) -> None:
    farm.bring(farm.views(farm.lock("usd/1"), persist="fstab"))
    row = software(farm, views=farm.views([], state="unmounted"))
    assert row["drift"] == [
        "it is mounted, and is declared unmounted",
        "the lines in /etc/fstab that mount it at boot are not declared",
    ]
    farm.bring(farm.views([], state="unmounted"))
    for row in (software(farm), software(farm, views=farm.views([], state="unmounted"))):
        assert (row["status"], row["generation"], row["declared_generation"]) == ("as declared", None, None)
    absent = farm.views([], state="absent")
    assert software(farm, views=absent)["drift"] == ["it is on this host, and is declared absent"]
    ran = farm.bring(absent).ok
    for row in (ran["report"][0], software(farm, views=absent)):
        assert (row["status"], row["generation"]) == ("as declared", None)
    assert support.module("view_info", state_dir=str(farm.top / "state")).ok["report"] == []


def test_a_view_of_other_modules_is_compared_with_its_current_generation(farm: Farm) -> None:
    state_dir = str(farm.top / "state")
    made = {}
    for release in ("usd/1", "usd/2"):
        given = {"release": release}
        made[release] = support.module(
            "metadata_layer", name="mine", releases=[given], store=str(farm.store), state_dir=state_dir
        ).ok
        if release == "usd/1":
            assert (reported(farm)["mine"]["status"], reported(farm)["mine"]["generation"]) == ("as declared", None)
            mounted = support.module(
                "overlay_mount", path=str(farm.top / "mine"), lower=[made[release]["layer"]], data=[str(farm.root)]
            )
            assert mounted.ok["changed"]
            row = reported(farm)["mine"]
            assert (row["status"], row["generation"]) == ("as declared", made[release]["generation"])
            assert (row["mountpoint"], row["releases"]) == (str(farm.top / "mine"), ["usd/1"])
            assert row["last_run"] is None
    old, new = made["usd/1"]["generation"], made["usd/2"]["generation"]
    assert reported(farm)["mine"]["drift"] == [f"it shows generation {old} instead of {new}"]


def test_a_status_of_an_earlier_version_is_read(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"))
    farm.bring(views)
    path = farm.top / "state" / "views" / "software" / "status.json"
    status = json.loads(path.read_text())
    del status["mount"]
    path.write_text(json.dumps(status))
    assert software(farm)["status"] == "as declared"


def test_a_link_in_the_way_of_a_view_is_followed(farm: Farm) -> None:
    (farm.top / "link").symlink_to(farm.top)
    views = [{**view, "mountpoint": f"{farm.top}/link/{view['name']}"} for view in farm.views(farm.lock("usd/1"))]
    views = [{**view, "state_dir": f"{farm.top}/link/state"} for view in views]
    assert [row["status"] for row in farm.bring(views).ok["report"]] == ["as declared"] * 2
    assert software(farm)["status"] == "as declared"


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_a_dead_file_server_is_not_asked(farm: Farm, persist: str) -> None:
    views = farm.views(farm.lock("usd/1"), persist=persist)
    farm.bring(views)
    with dead(farm.root):
        for row in (software(farm), software(farm, views=views)):
            assert (row["status"], row["drift"]) == ("as declared", [])
    # Neither is one at the mountpoint, or one that holds it.
    with dead(farm.top / "software"):
        assert software(farm)["drift"] == [f"a mount of type fuse from dead covers it at {farm.top}/software"]
    (farm.top / "net").mkdir()
    inside = [{**view, "mountpoint": f"{farm.top}/net/{view['name']}"} for view in views]
    with dead(farm.top / "net"):
        assert software(farm, views=inside)["drift"][0] == f"it is not mounted at {farm.top}/net/software"


@pytest.mark.parametrize(
    ("view", "problem"),
    [
        ({"name": "a"}, "view a: mountpoint is missing"),
        ({"mountpoint": "/a"}, "view None: name is missing"),
        ({"name": "../a", "mountpoint": "/a"}, "view name '../a' is not usable"),
        ({"name": "a", "mountpoint": "a"}, "view a: mountpoint must be an absolute path"),
        ({"name": "a", "mountpoint": "/a", "data": "/b"}, "view a: data has the value"),
    ],
)
def test_a_wrong_view_is_refused(farm: Farm, view: Row, problem: str) -> None:
    assert support.module("view_info", views=[view], state_dir=str(farm.top / "state")).message.startswith(problem)


def test_an_invalid_option_of_a_view_is_its_failure(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"))
    farm.bring(views)
    wrong = [{**view, "options": {"nosuch": True}} for view in views]
    assert "overlay option 'nosuch' is not known" in software(farm, views=wrong)["failure"]
