"""The counter of the farm reads /proc/self/mountstats as real kernels write it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

COUNT = Path(__file__).resolve().parents[1] / "farm" / "guest" / "count.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("renderfarm_farm_count", COUNT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses looks up the module
    spec.loader.exec_module(module)
    return module


count = _load()
Calls = count.Calls

# Shortened output of a guest of the farm, with Linux 6.1.
RECORDED = """\
device /dev/root mounted on / with fstype ext4
device proc mounted on /proc with fstype proc
device server:/srv/software mounted on /mnt/farm/nfs with fstype nfs4 statvers=1.1
\topts:\tro,vers=4.2,rsize=131072,wsize=131072,namlen=255,acregmin=3,acregmax=60,acdirmin=30,acdirmax=60,hard
\tage:\t0
\timpl_id:\tname='',domain='',date='0,0'
\tcaps:\tcaps=0xfffbc0bf,wtmult=512,dtsize=131072,bsize=0,namlen=255
\tnfsv4:\tbm0=0xfdffbfff,bm1=0x40fdbe3e,bm2=0x62803,acl=0x3,sessions,pnfs=not configured,lease_time=20
\tsec:\tflavor=1,pseudoflavor=1
\tevents:\t1 3 0 0 1 2 6 0 0 0 0 0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0\x20
\tbytes:\t0 0 0 0 0 0 0 0\x20
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 0 0 2 0 0 36 36 0 36 0 2 0 0
\tper-op statistics
\t        NULL: 1 1 0 44 24 1 1 2 0
\t        READ: 0 0 0 0 0 0 0 0 0
\t      ACCESS: 2 2 0 328 336 0 2 2 0
\t     GETATTR: 2 2 0 312 480 0 1 1 0
\t      LOOKUP: 2 2 0 344 372 0 3 3 1
\t    SEQUENCE: 4 4 0 0 0 0 0 0 0

device server:/srv/soft ware mounted on /mnt/old\\040release with fstype nfs statvers=1.1
\topts:\tro,vers=3,nolock
\tage:\t7
\tRPC iostats version: 1.1  p/v: 100003/3 (nfs)
\txprt:\ttcp 752 1 2 0 0 12 12 0 12 0 2 0 0
\tper-op statistics
\t        NULL: 1 1 0 44 24 5 1 7 0
\t     GETATTR: 3 3 0 260 336 0 1 2 0
\t READDIRPLUS: 1 1 0 116 692 0 1 1 0

device overlay mounted on /mnt/farm/view with fstype overlay
"""


def test_only_nfs_mounts_are_read() -> None:
    assert set(count.parse_mountstats(RECORDED)) == {"/mnt/farm/nfs", "/mnt/old release"}


def test_calls_and_errors_are_read_for_each_operation() -> None:
    calls = count.parse_mountstats(RECORDED)["/mnt/farm/nfs"]
    assert calls["LOOKUP"] == Calls(2, 1)
    assert calls["ACCESS"] == Calls(2, 0)
    assert calls["READ"] == Calls(0, 0)
    assert "xprt" not in calls
    assert count.parse_mountstats(RECORDED)["/mnt/old release"]["READDIRPLUS"] == Calls(1, 0)


def test_a_kernel_without_the_error_count_reads_as_no_errors() -> None:
    old = RECORDED.replace("LOOKUP: 2 2 0 344 372 0 3 3 1", "LOOKUP: 2 2 0 344 372 0 3 3")
    assert count.parse_mountstats(old)["/mnt/farm/nfs"]["LOOKUP"] == Calls(2, 0)


def test_an_empty_text_has_no_mounts() -> None:
    assert count.parse_mountstats("") == {}


@pytest.mark.parametrize(
    ("before", "after", "sent"),
    [
        ({}, {}, {}),
        ({"LOOKUP": Calls(2, 1)}, {"LOOKUP": Calls(2, 1)}, {}),
        ({"LOOKUP": Calls(2, 1)}, {"LOOKUP": Calls(7, 4)}, {"LOOKUP": Calls(5, 3)}),
        # An operation that the first reading lacks.
        ({}, {"OPEN": Calls(3, 0), "CLOSE": Calls(0, 0)}, {"OPEN": Calls(3, 0)}),
    ],
)
def test_the_difference_has_the_calls_sent_in_between(
    before: dict[str, Any], after: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert count.difference(before, after) == sent


def test_calls_that_renew_the_session_are_not_counted() -> None:
    assert count.total({"LOOKUP": Calls(5, 3), "READ": Calls(2, 0), "SEQUENCE": Calls(9, 0)}) == 7


def test_the_same_tree_has_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "MISSING_NAMES", 6)
    monkeypatch.setattr(count, "MISSING_DIRECTORIES", 3)
    monkeypatch.setattr(count, "STATS", 8)
    monkeypatch.setattr(count, "OPENS", 2)
    for release in ("usd/25.11", "usd/26.11", "numpy/2.3"):
        directory = tmp_path / release / "python"
        directory.mkdir(parents=True)
        for number in range(3):
            (directory / f"{number}.py").write_text("pass\n")
        (directory / "link.py").symlink_to("0.py")
    plan = count.make_plan(str(tmp_path))
    assert plan == count.make_plan(str(tmp_path))
    assert len({name.rpartition("/")[0] for name in plan["missing"]}) == 3
    assert len(plan["missing"]) == len(set(plan["missing"])) == 6
    assert not any("link" in name for name in plan["stat"])
    assert count.work_missing(str(tmp_path), plan) == "6 missing"
    assert count.work_stat(str(tmp_path), plan) == "40 bytes"
    assert count.work_open(str(tmp_path), plan) == "10 bytes"
