"""NFS calls are read from mountstats as kernels write it, for the mounts below views."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import mountstats
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.mountstats import NfsCalls
from ansible_collections.renderfarm.overlay.tests.unit.reports.nfs_host import MOUNTINFO, MOUNTSTATS


def test_only_nfs_mounts_are_read() -> None:
    assert set(mountstats.parse_mountstats(MOUNTSTATS)) == {b"/net/software", b"/mnt/old release"}


def test_calls_and_errors_are_read_for_each_operation() -> None:
    calls = mountstats.parse_mountstats(MOUNTSTATS)[b"/net/software"]
    assert calls["LOOKUP"] == NfsCalls(2241, 1361)
    assert calls["READ"] == NfsCalls(0, 0)
    assert set(calls) == {"NULL", "READ", "ACCESS", "GETATTR", "LOOKUP", "SEQUENCE", "READ_PLUS"}


def test_a_kernel_without_the_error_count_leaves_it_open() -> None:
    old = MOUNTSTATS.replace(b" 3 3 1361", b" 3 3")
    assert mountstats.parse_mountstats(old)[b"/net/software"]["LOOKUP"] == NfsCalls(2241, None)


@pytest.mark.parametrize("text", [b"", b"device proc mounted on /proc with fstype proc\n", b"\xff\n\tLOOKUP: 1\n"])
def test_a_text_without_nfs_mounts_has_none(text: bytes) -> None:
    assert mountstats.parse_mountstats(text) == {}


def mounts_at(*mountpoints: bytes) -> list[bytes]:
    return mountstats.nfs_mounts_below(mountpoints, list(mountinfo.parse(MOUNTINFO)))


def test_the_nfs_mounts_of_data_layers_and_of_ordinary_lower_layers_are_found() -> None:
    assert mounts_at(b"/software") == [b"/net/software"]
    assert mounts_at(b"/redirected") == [b"/mnt/old release"]
    assert mounts_at(b"/redirected", b"/software") == [b"/mnt/old release", b"/net/software"]


def test_two_mounts_of_one_file_system_are_counted_once() -> None:
    assert mounts_at(b"/software", b"/again") == [b"/net/software"]


@pytest.mark.parametrize("path", [b"/net/software", b"/nowhere", b"/local"])
def test_what_is_no_overlay_over_nfs_has_none(path: bytes) -> None:
    assert mounts_at(path) == []


def test_the_manifest_store_of_the_same_server_is_not_counted() -> None:
    calls = mountstats.calls_below([b"/software"], list(mountinfo.parse(MOUNTINFO)), MOUNTSTATS)
    assert set(calls) == {b"/net/software"}
