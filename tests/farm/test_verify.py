"""Test that the problems that verification knows are found through a real NFS client, and that a stopped server is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import collection
from farmlib.collection import ROOT, STATE_DIR, STORE, Result
from farmlib.machines import SOFTWARE, Farm, Machine

VIEW = "/checked"
RELEASE = "checked/1.0"
VIEWS = [{"name": "checked", "mountpoint": VIEW, "releases": [RELEASE], "checksum": "sha256"}]

#: What is done in the release on the server, for the code of the problem. The file has the name of the code.
ON_THE_SERVER = {
    "missing_target": "rm missing_target",
    "target_not_file": "rm target_not_file; mkdir target_not_file",
    "wrong_size": "echo more >>wrong_size",
    "wrong_time": "touch -d @1000000000 wrong_time",
    "redirect_through_symlink": "ln -sf .ready redirect_through_symlink",
    # The server maps root of the node to another user.
    "unreadable_target": "chmod 600 unreadable_target",
    "content_differs": "touch -r content_differs ../time; tr a-z A-Z <.ready.text >content_differs; touch -r ../time content_differs",
}
XATTR = "python3 -c 'import os, sys; os.{call}(sys.argv[1], \"trusted.overlay.{name}\"{value})' {code}"


def xattr(code: str, name: str, value: str | None = None) -> str:
    """Return the command that sets or removes an xattr of the file with the name of the code."""
    call = "removexattr" if value is None else "setxattr"
    return XATTR.format(call=call, name=name, value="" if value is None else f', b"{value}"', code=code)


#: The same in the layer on the node.
IN_THE_LAYER = {
    "missing_entry": "rm missing_entry",
    "unknown_entry": "touch unknown_entry",
    "entry_differs": "chmod 777 entry_differs",
    "lost_hard_links": "rm lost_hard_links; cp -a linked lost_hard_links",
    "metacopy_without_redirect": xattr("metacopy_without_redirect", "redirect"),
    "redirect_without_metacopy": xattr("redirect_without_metacopy", "metacopy"),
    "invalid_metacopy": xattr("invalid_metacopy", "metacopy", "xyz"),
    "relative_redirect": xattr("relative_redirect", "redirect", "checked/1.0/linked"),
    "escaping_redirect": xattr("escaping_redirect", "redirect", "/../checked/1.0/linked"),
    "double_slash_redirect": xattr("double_slash_redirect", "redirect", "/checked//1.0/linked"),
}


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """Return `new` with a view of a release that has a file for each problem."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    names = [*ON_THE_SERVER, *IN_THE_LAYER, "nested/redirect_across_mount", "linked", ".ready.text"]
    added = [name for name in names if name not in ("unknown_entry", "lost_hard_links")]
    farm.server.ssh(
        f"mkdir -p {SOFTWARE}/{RELEASE}/nested && cd {SOFTWARE}/{RELEASE} && for name in {' '.join(added)}; do echo content >$name; done"
        " && ln linked lost_hard_links && touch .ready"
    )
    collection.deploy(farm, VIEWS)
    yield machine
    farm.server.ssh(
        f"exportfs -u 10.77.0.0/24:{SOFTWARE}/{RELEASE}/nested; exportfs -f;"
        f" for second in $(seq 30); do umount {SOFTWARE}/{RELEASE}/nested && break; sleep 1; done",
        check=False,
    )
    machine.ssh(f"umount {ROOT}/{RELEASE}/nested; chmod 755 {STATE_DIR}/views/checked/current/.", check=False)
    collection.playbook(farm, "remove", {**collection.SITE, "overlay_hosts": "new", "overlay_views": VIEWS})
    farm.server.delete_release("checked")
    machine.ssh(f"rm -rf {STORE}/checked {STORE}/.views/checked.json")


def verify(farm: Farm, node: Machine, **options: Any) -> Result:
    return collection.module(
        farm, node, "overlay_verify", {"name": "checked", "fail_on_problems": False, **options}, check=False
    )


def test_a_stopped_server_is_named_in_time(farm: Farm, new: Machine) -> None:
    new.drop_caches()
    with farm.server.nfsd_stopped():
        # A call that hangs is given up by the farm, and fails the test.
        opened = verify(farm, new, level="open", timeout=5)
        # The layer itself is on this host.
        checked = verify(farm, new, timeout=5)
    assert opened.failed
    assert "no progress for 5 seconds" in opened.message
    assert f"data layer {ROOT}. No answer from the file server of " in opened.message
    assert f"{ROOT} (server:{SOFTWARE})" in opened.message
    assert (checked.failed, checked.values["counts"]) == (False, {}), checked


def test_every_problem_is_found_and_the_layer_is_repaired(farm: Farm, new: Machine) -> None:
    clean = verify(farm, new, level="content", store=STORE)
    assert (clean.failed, clean.values.get("counts")) == (False, {}), clean
    farm.server.ssh(f"cd {SOFTWARE}/{RELEASE} && {' && '.join(ON_THE_SERVER.values())}")
    farm.server.export_nested(f"{RELEASE}/nested")
    layer = f"{STATE_DIR}/views/checked/current/layer/{RELEASE}"
    new.ssh(f"cd {layer} && {' && '.join(IN_THE_LAYER.values())} && chmod 777 ../../..")
    # Names that the client remembers are not asked for again.
    new.drop_caches()
    found = verify(farm, new, level="content", store=STORE)
    assert not found.failed, found
    codes = {(problem["path"].rpartition("/")[2], problem["code"]) for problem in found.values["problems"]}
    wanted = [*ON_THE_SERVER, *IN_THE_LAYER, "redirect_across_mount"]
    assert {(code, code) for code in wanted} - codes == set(), found.values["problems"]
    assert {"release_differs", "writable_by_others"} <= found.values["counts"].keys()

    new.ssh(f"chmod 755 {layer}/../../..")
    repaired = verify(farm, new, store=STORE, repair=True)
    assert repaired.values["ok"], repaired
    assert {problem["code"] for problem in repaired.values["repaired"]} >= set(IN_THE_LAYER)
    assert new.output(f"cat {VIEW}/{RELEASE}/redirect_without_metacopy") == "content"

    new.ssh(f"umount {VIEW}")
    assert verify(farm, new).values["counts"] == {"mount_differs": 1}
