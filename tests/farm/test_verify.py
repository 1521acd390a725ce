"""Test that each problem that verification knows is found through a real NFS client, and that a stopped server is named.

Nothing drops what the clients remember: before the faults are made, all of it was verified and read. The codes are those of
`module_utils/verify/problems.py`. All are made here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from farmlib import builder, collection
from farmlib.collection import COLLECTION, ROOT, STATE_DIR, STORE, Result
from farmlib.machines import SOFTWARE, Farm, Machine

VIEW = "/checked"
RELEASE = "checked/1.0"
IMAGES = f"{STORE}/.images"
AREA = "/var/tmp/farm-verify"
DECLARED = {
    "name": "checked",
    "mountpoint": VIEW,
    "releases": [RELEASE],
    "checksum": "sha256",
    # A node that can make images would.
    "format": "directory",
}
#: The same release as an image of a layer, and a data image with all of its content.
IMAGED = {
    **DECLARED,
    "name": "imaged",
    "mountpoint": "/checked-image",
    "format": "erofs",
    "build": "central",
    "data_images": "everything",
}
#: Two software roots that share an overlay.
ROOTED = {
    "name": "rooted",
    "mountpoint": "/checked-roots",
    "roots": [
        {"name": name, "path": f"{ROOT}/checked-roots/{name}", "pattern": f"{name}/{{version}}", "at": ""}
        for name in ("one", "two")
    ],
    "store": f"{STORE}/.checked",
    "query": "@",
    "checksum": "sha256",
    "format": "directory",
}
#: `new` has all. `old` has the first one, for which its kernel needs strategy redirect.
VIEWS = "{{ checked_views if inventory_hostname == 'new' else checked_views[:1] }}"
VARIABLES: dict[str, Any] = {
    **collection.SITE,
    "overlay_hosts": "new,old",
    "checked_views": [DECLARED, IMAGED, ROOTED],
    "overlay_views": VIEWS,
}
#: What is verified: the hosts, and the options. The last one is a finalized overlay.
SUBJECTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "checked": ("new,old", {"name": "checked"}),
    "imaged": ("new", {"name": "imaged", "image_store": IMAGES}),
    "rooted": ("new", {"name": "rooted", "store": ROOTED["store"]}),
    "upper": ("new", {"path": f"{AREA}/view"}),
}

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

#: The same in a layer of strategy redirect on `old`.
IN_THE_REDIRECT_LAYER = {
    "missing_opaque": "mkdir missing_opaque",
    "whiteout_in_opaque": "mknod whiteout_in_opaque c 0 0",
}
#: The same in the upper layer of a finalized overlay on `new`. The kernel looks up names in its root alone.
IN_THE_UPPER_LAYER = {
    **{code: command for code, command in IN_THE_LAYER.items() if "redirect" in code or code == "invalid_metacopy"},
    "whiteout_in_opaque": "mknod sub/whiteout_in_opaque c 0 0",
    "orphan_whiteout": "mknod ../orphan_whiteout c 0 0",
    "missing_impure": xattr("..", "impure"),
    "duplicate_redirect": "mkdir ../one ../other; "
    + "; ".join(xattr(f"../{name}", "redirect", "/1.0") for name in ("one", "other")),
    "writable_by_others": f"chmod 777 {AREA}",
}
#: What was done on the server, and is found below the upper layer. No manifest has the content of its files, and their times are their own.
BELOW_THE_UPPER_LAYER = {*ON_THE_SERVER, "redirect_across_mount", "opaque_over_uncovered"} - {
    "wrong_time",
    "content_differs",
}
#: The last byte of an image differs. A mounted image may not be changed itself.
ROT = (
    "cp {image} {image}.new; printf x | dd of={image}.new bs=1 seek=$(($(stat -c %s {image}) - 1)) conv=notrunc status=none;"
    " mv {image}.new {image}"
)


def verified(farm: Farm, subjects: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Result]:
    """Verify some of SUBJECTS with these options in one run of Ansible. Return the results by subject and host."""
    tasks = [
        {
            "name": name,
            f"{COLLECTION}.overlay_verify": {
                "level": "content",
                "store": STORE,
                "fail_on_problems": False,
                **SUBJECTS[name][1],
                **options,
            },
            "when": f"inventory_hostname in {SUBJECTS[name][0].split(',')}",
        }
        for name, options in subjects.items()
    ]
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "verify.yml")
        source.write_text(json.dumps([{"hosts": "new,old", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
        done = collection.playbook(farm, source)
    return {(result.task, result.host): result for result in done.results if result.status != "skipped"}


def counts(result: Result) -> dict[str, int]:
    assert not result.failed, result
    return dict(result.values["counts"])


def codes(result: Result) -> set[tuple[str, str]]:
    """Return the last name of the path of each problem, and its code."""
    return {(problem["path"].rpartition("/")[2], problem["code"]) for problem in result.values["problems"]}


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """Return `new` with views of a release that has a file for each problem, and a finalized overlay over it. `old` has a view too."""
    machine, old = farm.nodes["new"], farm.nodes["old"]
    for node in (machine, old):
        collection.mount_store(node)
    builder.install(machine)
    names = [*ON_THE_SERVER, *IN_THE_LAYER, "nested/redirect_across_mount", "linked", ".ready.text", "sub/inner"]
    added = [name for name in names if name not in ("unknown_entry", "lost_hard_links")]
    farm.server.ssh(
        f"mkdir -p {SOFTWARE}/{RELEASE}/nested {SOFTWARE}/{RELEASE}/sub && cd {SOFTWARE}/{RELEASE}"
        f" && for name in {' '.join(added)}; do echo content >$name; done && ln linked lost_hard_links && touch .ready"
        f" && cd {SOFTWARE} && for root in one two; do mkdir -p checked-roots/$root/$root/1.0"
        " && echo $root >checked-roots/$root/$root/1.0/name && touch checked-roots/$root/$root/1.0/.ready; done"
    )
    machine.ssh(f"mkdir -p {ROOTED['store']}")
    collection.playbook(farm, "deploy", VARIABLES)
    layers = f"lowerdir={ROOT}/checked,upperdir={AREA}/upper,workdir={AREA}/work"
    machine.ssh(
        f"mkdir -p {AREA}/upper {AREA}/work {AREA}/view &&"
        f" mount -t overlay -o {layers},metacopy=on,redirect_dir=on,index=on overlay {AREA}/view"
    )
    finalize = {"path": f"{AREA}/view", "allow_unmount": True}
    assert collection.module(farm, machine, "overlay_finalize", finalize).values["finalized"]
    yield machine
    farm.server.ssh(
        f"exportfs -u 10.77.0.0/24:{SOFTWARE}/{RELEASE}/nested; exportfs -f;"
        f" for second in $(seq 30); do umount {SOFTWARE}/{RELEASE}/nested && break; sleep 1; done",
        check=False,
    )
    machine.ssh(f"umount {AREA}/view; rm -rf {AREA}", check=False)
    for node in (machine, old):
        node.ssh(f"umount {ROOT}/{RELEASE}/nested; chmod 755 {STATE_DIR}/views/checked/current/.", check=False)
    collection.playbook(farm, "remove", VARIABLES)
    builder.remove(machine)
    for release in ("checked", "checked-roots"):
        farm.server.delete_release(release)
    records = " ".join(f"{STORE}/.views/{name}.json" for name in ("checked", "imaged"))
    machine.ssh(f"rm -rf {STORE}/checked {ROOTED['store']} {records} {IMAGES}/.data/checked")


@pytest.fixture(scope="module")
def faulty(farm: Farm, new: Machine) -> dict[tuple[str, str], Result]:
    """Verify everything, make all faults, and return what is found then."""
    everything: Mapping[str, Mapping[str, Any]] = {name: {} for name in SUBJECTS}
    for clean in verified(farm, everything).values():
        assert counts(clean) == {}, clean
    farm.server.ssh(
        f"set -e; cd {SOFTWARE}/{RELEASE}; {'; '.join(ON_THE_SERVER.values())}; touch sub/late"
        f"; cd {SOFTWARE}/checked-roots; mkdir one/two; mv two/two/1.0 one/two"
    )
    farm.server.export_nested(f"{RELEASE}/nested")
    current = f"{STATE_DIR}/views/checked/current"
    for node, layer, faults in (
        (new, f"{current}/layer", IN_THE_LAYER),
        (farm.nodes["old"], f"{current}/layer/view", {**IN_THE_LAYER, **IN_THE_REDIRECT_LAYER}),
    ):
        node.ssh(f"set -e; cd {layer}/{RELEASE}; {'; '.join(faults.values())}; chmod 777 {current}/.")
    options = new.output(["findmnt", "-n", "-o", "OPTIONS", str(IMAGED["mountpoint"])]).split(",")
    data = next(option.partition("=")[2] for option in options if option.startswith("datadir+="))
    rot = "; ".join(
        ROT.format(image=image) for image in (f"{STATE_DIR}/views/imaged/current/layer.erofs", f"{data}.erofs")
    )
    new.ssh(f"set -e; {rot}; cd {AREA}/upper/1.0; {'; '.join(IN_THE_UPPER_LAYER.values())}")
    return verified(farm, everything)


def test_a_stopped_server_is_named_in_time(farm: Farm, new: Machine) -> None:
    def verify(level: str) -> Result:
        options = {"name": "checked", "fail_on_problems": False, "level": level, "timeout": 5}
        return collection.module(farm, new, "overlay_verify", options, check=False)

    new.drop_caches()
    with farm.server.nfsd_stopped():
        # A call that hangs is given up by the farm, and fails the test.
        opened = verify("open")
        # The layer itself is on this host.
        checked = verify("metadata")
    assert opened.failed
    assert "no progress for 5 seconds" in opened.message
    assert f"data layer {ROOT}. No answer from the file server of " in opened.message
    assert f"{ROOT} (server:{SOFTWARE})" in opened.message
    assert counts(checked) == {}


@pytest.mark.parametrize("node", ["new", "old"])
def test_every_problem_of_a_layer_and_of_a_release_is_found(faulty: dict[tuple[str, str], Result], node: str) -> None:
    found = faulty["checked", node]
    wanted = {*ON_THE_SERVER, "redirect_across_mount", *IN_THE_LAYER}
    if node == "old":
        wanted |= set(IN_THE_REDIRECT_LAYER)
    assert {"release_differs", "writable_by_others"} <= counts(found).keys()
    assert {(code, code) for code in wanted} - codes(found) == set(), found.values["problems"]


def test_every_problem_of_images_and_of_several_roots_is_found(faulty: dict[tuple[str, str], Result]) -> None:
    assert counts(faulty["imaged", "new"]) == {"digest_differs": 1, "data_image_differs": 1}
    found = faulty["rooted", "new"]
    assert counts(found).keys() == {"wrong_root", "release_differs"}, found.values["problems"]


def test_every_problem_of_a_finalized_overlay_is_found(faulty: dict[tuple[str, str], Result]) -> None:
    found = faulty["upper", "new"]
    assert {*BELOW_THE_UPPER_LAYER, *IN_THE_UPPER_LAYER} - counts(found).keys() == set(), found.values["problems"]


@pytest.mark.usefixtures("faulty")
def test_what_this_host_has_made_is_repaired(farm: Farm, new: Machine) -> None:
    old = farm.nodes["old"]
    for node in (new, old):
        node.ssh(f"chmod 755 {STATE_DIR}/views/checked/current/.")
    repair = {"level": "metadata", "repair": True}
    done = verified(farm, {"checked": repair, "imaged": repair})
    for node in (new, old):
        assert counts(done["checked", node.name]) == {}
        repaired = {problem["code"] for problem in done["checked", node.name].values["repaired"]}
        assert repaired >= {*IN_THE_LAYER, *(IN_THE_REDIRECT_LAYER if node == old else ())}
        assert node.output(f"cat {VIEW}/{RELEASE}/redirect_without_metacopy") == "content"
    # The kernel does not mount the damaged data image any more, so the layer cannot be switched without it.
    repaired = {problem["code"] for problem in done["imaged", "new"].values["repaired"]}
    assert repaired == {"digest_differs", "data_image_differs"}

    # What does not ask for the content of files: a view that is not mounted, a damaged record, and a manifest that is missing in its store.
    new.ssh(f"umount {VIEW}; cd {ROOTED['store']}/two/two; mv 1.0.json 1.0.aside")
    record = f"{STATE_DIR}/views/checked/current/view.json"
    old.ssh(f"cp -a {record} /var/tmp/view.json; echo '{{' >{record}")
    done = verified(farm, {"checked": {"level": "metadata"}, "imaged": {}, "rooted": {"level": "metadata"}})
    old.ssh(f"mv /var/tmp/view.json {record}")
    new.ssh(f"cd {ROOTED['store']}/two/two; mv 1.0.aside 1.0.json")
    assert counts(done["checked", "new"]) == {"mount_differs": 1}
    assert "record_damaged" in counts(done["checked", "old"])
    assert "manifest_unusable" in counts(done["rooted", "new"])
    # Its files are read from the data image, so what was done on the server is found in the release alone.
    assert counts(done["imaged", "new"]).keys() <= {"release_differs"}
