"""Compare the declaration of a software root with live NFS mounts."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mountpoint
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_options, root_plan
from ansible_collections.renderfarm.overlay.tests.unit.software_root.nfs_lines import (
    DEFAULT_OPTIONS,
    V3,
    V4,
    mount,
    spec,
)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (V4, DEFAULT_OPTIONS),
        (V4, ()),
        (V4, ("acregmin=3600", "acregmax=3600", "acdirmin=3600", "acdirmax=3600")),
        (V4, ("actimeo=03600",)),
        (V4, ("vers=4",)),
        (V4, ("nfsvers=4.2",)),
        (V4, ("v4.2",)),
        (V4, ("rsize=1048576", "wsize=262144")),
        (V4, ("tcp", "proto=tcp", "timeo=600", "retrans=2", "sec=sys")),
        (V4, ("lookupcache=all", "nconnect=1", "ac", "acl", "rdirplus", "resvport", "sharecache", "lock")),
        (V4, ("suid", "exec", "diratime")),
        (V4, ("_netdev", "nofail", "x-systemd.automount", "retry=0", "bg", "defaults", "relatime", "nouser")),
        (
            V3,
            (
                "vers=3",
                "rw",
                "soft",
                "nolock",
                "actimeo=60",
                "nconnect=4",
                "lookupcache=pos",
                "mountport=635",
                "dev",
                "atime",
            ),
        ),
    ],
)
def test_a_live_mount_matches_its_declaration(line: bytes, options: tuple[str, ...]) -> None:
    declared = spec(*options)
    assert nfs_options.nfs_differences(declared, mount(line)) == {}
    assert root_plan.plan_mounted(declared, Mountpoint(mount(line), None), [], replace=False) == ()
    assert nfs_options.declared_by(mount(line), declared) == declared.as_dict()


@pytest.mark.parametrize(
    ("line", "option", "found"),
    [
        (V4, "rw", {"ro": (True, False)}),
        (V4, "nosuid", {"nosuid": (False, True)}),
        (V4, "atime", {"noatime": (True, False)}),
        (V4, "vers=4.1", {"vers": ("4.2", "4.1")}),
        (V4, "vers=3", {"vers": ("4.2", "3")}),
        (V4, "soft", {"on_timeout": ("hard", "soft")}),
        (V4, "cto", {"cto": (False, True)}),
        (V4, "rsize=131072", {"rsize": ("262144", "131072")}),
        (V4, "nconnect=4", {"nconnect": ("1", "4")}),
        (V4, "lookupcache=none", {"lookupcache": ("all", "none")}),
        (V4, "fsc", {"fsc": (False, True)}),
        (V3, "hard", {"on_timeout": ("soft", "hard")}),
        (V3, "nocto", {"cto": (True, False)}),
        (V3, "lock", {"lock": (False, True)}),
        (V3, "vers=4", {"vers": ("3", "4")}),
        (
            V3,
            "actimeo=3600",
            dict.fromkeys(("acregmin", "acregmax", "acdirmin", "acdirmax"), ("60", "3600")),
        ),
    ],
)
def test_a_difference_has_the_observed_and_the_declared_value(line: bytes, option: str, found: dict[str, Any]) -> None:
    assert nfs_options.nfs_differences(spec(option), mount(line)) == found


@pytest.mark.parametrize(
    "source", ["filer:/export", "10.0.0.1:/", "[fe80::1%eth0]:/export", "filer.example.com:/a/b c"]
)
def test_an_export_is_accepted(source: str) -> None:
    assert spec(source=source).source == source


@pytest.mark.parametrize("source", ["", "/export", "filer", "-ofiler:/x", "filer:export", "fi ler:/x", ":/x", "a/b:/x"])
def test_a_source_that_is_not_an_export_is_refused(source: str) -> None:
    with pytest.raises(OverlayError, match="is not an NFS export"):
        spec(source=source)


@pytest.mark.parametrize("option", ["", "ro,nodev", "a b", "a\nb", "a#b"])
def test_an_option_that_would_break_the_list_is_refused(option: str) -> None:
    with pytest.raises(OverlayError, match="may not be empty or contain"):
        spec(option)
