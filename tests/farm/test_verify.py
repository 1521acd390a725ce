"""Test that the problems that verification knows are found through a real NFS client, and that a stopped server is named."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from farmlib import builder, collection
from farmlib.collection import COLLECTION, ROOT, STATE_DIR, STORE, Result, Run
from farmlib.machines import SOFTWARE, Farm, Machine

VIEW = "/checked"
RELEASE = "checked/1.0"
IMAGES = f"{STORE}/.images"
AREA = "/var/tmp/farm-verify"
DECLARED = {"name": "checked", "mountpoint": VIEW, "releases": [RELEASE], "checksum": "sha256"}
#: The same release as an image of a layer, and a data image with all of its content.
IMAGED = {
    **DECLARED,
    "name": "imaged",
    "mountpoint": "/checked-image",
    "format": "erofs",
    "build": "central",
    "data_images": "everything",
}
#: `new` has both. `old` has the first one, for which its kernel needs strategy redirect.
VIEWS = "{{ checked_views if inventory_hostname == 'new' else checked_views[:1] }}"
VARIABLES: dict[str, Any] = {
    **collection.SITE,
    "overlay_hosts": "new,old",
    "checked_views": [DECLARED, IMAGED],
    "overlay_views": VIEWS,
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
    "duplicate_redirect": "cd ..; mkdir one other; "
    + "; ".join(xattr(name, "redirect", "/1.0") for name in ("one", "other")),
}
#: The last byte of an image differs. A mounted image may not be changed itself.
ROT = (
    "cp {image} {image}.new && printf x | dd of={image}.new bs=1 seek=$(($(stat -c %s {image}) - 1)) conv=notrunc status=none"
    " && mv {image}.new {image}"
)


def run(farm: Farm, tasks: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Run:
    """Call modules in one run of Ansible: each with the hosts, separated by commas, that call it."""
    play = {
        "hosts": "new,old",
        "gather_facts": False,
        "tasks": [
            {f"{COLLECTION}.{name}": options, "when": f"inventory_hostname in '{hosts}'"}
            for hosts, name, options in tasks
        ],
    }
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "verify.yml")
        source.write_text(json.dumps([play]), encoding="utf-8")
        return collection.playbook(farm, source)


def verified(farm: Farm, **options: Any) -> tuple[Result, Result, Result, Result]:
    """Verify the view on `new` and on `old`, and on `new` the view of images and the finalized overlay."""
    given = {"fail_on_problems": False, "store": STORE, "image_store": IMAGES, **options}
    done = run(
        farm,
        (
            ("new,old", "overlay_verify", {"name": "checked", "level": "content", **given}),
            ("new", "overlay_verify", {"name": "imaged", "level": "content", **given}),
            ("new", "overlay_verify", {"path": f"{AREA}/view", "level": "open", "fail_on_problems": False}),
        ),
    )
    of_new, [of_old] = done.of("new", "overlay_verify"), done.of("old", "overlay_verify")
    of_view, of_image, of_upper = of_new
    return of_view, of_old, of_image, of_upper


def found(result: Result) -> set[tuple[str, str]]:
    """Return the last name of the path of each problem, and its code."""
    return {(problem["path"].rpartition("/")[2], problem["code"]) for problem in result.values["problems"]}


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """Return `new` with views of a release that has a file for each problem, and a finalized overlay over it. `old` has the view too."""
    machine, old = farm.nodes["new"], farm.nodes["old"]
    for node in (machine, old):
        collection.mount_store(node)
    builder.install(machine)
    names = [*ON_THE_SERVER, *IN_THE_LAYER, "nested/redirect_across_mount", "linked", ".ready.text", "sub/inner"]
    added = [name for name in names if name not in ("unknown_entry", "lost_hard_links")]
    farm.server.ssh(
        f"mkdir -p {SOFTWARE}/{RELEASE}/nested {SOFTWARE}/{RELEASE}/sub && cd {SOFTWARE}/{RELEASE}"
        f" && for name in {' '.join(added)}; do echo content >$name; done && ln linked lost_hard_links && touch .ready"
    )
    collection.playbook(farm, "deploy", VARIABLES)
    layers = f"lowerdir={ROOT}/checked,upperdir={AREA}/upper,workdir={AREA}/work"
    machine.ssh(
        f"mkdir -p {AREA}/upper {AREA}/work {AREA}/view &&"
        f" mount -t overlay -o {layers},metacopy=on,redirect_dir=on,index=on overlay {AREA}/view"
    )
    finalize = {"path": f"{AREA}/view", "allow_unmount": True}
    assert run(farm, [("new", "overlay_finalize", finalize)]).of("new")[0].values["finalized"]
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
    farm.server.delete_release("checked")
    machine.ssh(f"rm -rf {STORE}/checked {STORE}/.views/checked.json {STORE}/.views/imaged.json {IMAGES}/.data/checked")


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


def test_every_problem_is_found_and_what_this_host_has_made_is_repaired(farm: Farm, new: Machine) -> None:
    for clean in verified(farm):
        assert (clean.failed, clean.values.get("counts")) == (False, {}), clean
    farm.server.ssh(f"cd {SOFTWARE}/{RELEASE} && {' && '.join(ON_THE_SERVER.values())}; touch sub/late")
    farm.server.export_nested(f"{RELEASE}/nested")
    old = farm.nodes["old"]
    layer = f"{STATE_DIR}/views/checked/current/layer"
    for node, top, faults in (
        (new, layer, IN_THE_LAYER),
        (old, f"{layer}/view", {**IN_THE_LAYER, **IN_THE_REDIRECT_LAYER}),
    ):
        node.ssh(
            f"cd {top}/{RELEASE} && {' && '.join(faults.values())} && chmod 777 {STATE_DIR}/views/checked/current/."
        )
    new.ssh(f"cd {AREA}/upper/1.0 && {' && '.join(IN_THE_UPPER_LAYER.values())}")
    images = new.output(f"ls {STATE_DIR}/views/imaged/current/layer.erofs {STATE_DIR}/data/*.erofs").split()
    data_image = new.output(f"findmnt -n -o OPTIONS {IMAGED['mountpoint']}").partition("datadir+=")[2].partition(",")[0]
    images = [one for one in images if one.endswith(("layer.erofs", f"{data_image}.erofs"))]
    new.ssh(" && ".join(ROT.format(image=image) for image in images))
    # Names that a client remembers are not asked for again.
    for node in (new, old):
        node.drop_caches()
    of_view, of_old, of_image, of_upper = verified(farm)
    on_the_server = {*ON_THE_SERVER, "redirect_across_mount"}
    for result, wanted in (
        (of_view, {*on_the_server, *IN_THE_LAYER}),
        (of_old, {*on_the_server, *IN_THE_LAYER, *IN_THE_REDIRECT_LAYER}),
    ):
        assert not result.failed, result
        assert {(code, code) for code in wanted} - found(result) == set(), result.values["problems"]
        assert {"release_differs", "writable_by_others"} <= result.values["counts"].keys()
    assert of_image.values["counts"] == {"digest_differs": 1, "data_image_differs": 1}, of_image
    # The content of the files of an upper layer is not in a manifest, and their times are their own.
    asked = {"missing_target", "target_not_file", "wrong_size", "opaque_over_uncovered"}
    assert {*asked, *IN_THE_UPPER_LAYER} - of_upper.values["counts"].keys() == set(), of_upper

    for node in (new, old):
        node.ssh(f"chmod 755 {STATE_DIR}/views/checked/current/.")
    of_view, of_old, of_image, _upper = verified(farm, level="metadata", repair=True)
    for result in (of_view, of_old):
        assert result.values["ok"], result
        assert {problem["code"] for problem in result.values["repaired"]} >= set(IN_THE_LAYER)
    assert {problem["code"] for problem in of_image.values["repaired"]} == {"digest_differs"}
    for node in (new, old):
        assert node.output(f"cat {VIEW}/{RELEASE}/redirect_without_metacopy") == "content"

    new.ssh(f"umount {VIEW}")
    [gone, image] = run(
        farm,
        [
            ("new", "overlay_verify", {"name": "checked", "fail_on_problems": False}),
            (
                "new",
                "overlay_verify",
                {
                    "name": "imaged",
                    "level": "content",
                    "store": STORE,
                    "image_store": IMAGES,
                    "repair": True,
                    "fail_on_problems": False,
                },
            ),
        ],
    ).of("new")
    assert gone.values["counts"] == {"mount_differs": 1}
    # Its files are read from the data image, so what was done on the server is found in the release alone.
    assert [problem["code"] for problem in image.values["repaired"]] == ["data_image_differs"]
    assert set(image.values["counts"]) <= {"release_differs"}, image
