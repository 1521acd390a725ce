"""The examples in the documentation of the filters run as they are written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.renderfarm.overlay.plugins.filter import conda_releases, rez_releases, spack_releases

ENVIRONMENTS = Path(__file__).parent / "environments"
TASKS = [task for plugin in (rez_releases, spack_releases, conda_releases) for task in yaml.safe_load(plugin.EXAMPLES)]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the examples in one playbook, and return what each task shows, or the releases that it declares, by its name."""
    directory = tmp_path_factory.mktemp("examples")
    shutil.copytree(ENVIRONMENTS, directory / "files")
    names = [f"example_{position}" for position in range(len(TASKS))]
    examples = [{**task, "register": name} for task, name in zip(TASKS, names)]
    results = {
        "content": "{{ [" + ", ".join(names) + "] | to_json }}",
        "dest": str(directory / "results.json"),
        "mode": "0644",
    }
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [*examples, {"ansible.builtin.copy": results}]}
    (directory / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
    environment = {**os.environ, "ANSIBLE_HOME": str(directory / "home")}
    argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-c", "local", "play.yml"]
    done = subprocess.run(
        argv, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    return {
        task["name"]: result["ansible_facts"]["overlay_views"][0]["releases"]
        if "ansible_facts" in result
        else result["msg"]
        for task, result in zip(TASKS, found)
    }


def test_the_examples_give_releases(values: dict[str, Any]) -> None:
    merged = values["Declare a view that merges what a Spack environment has"]
    placed = values["Declare a view as the default view of spack.yaml is"]
    assert values == {
        "Declare a view of what rez resolved for a show": ["python/3.11.9", "usd/25.05", "houdini/20.5.410"],
        "Show which packages are left out, and why": [
            {"package": ".feature.denoise-1", "version": "", "reason": "is an ephemeral package, which has no files"},
            {
                "package": "platform",
                "version": "linux",
                "reason": "is in the repository '/net/local', which is outside of '/net/software'",
            },
        ],
        "Declare a view that merges what a Spack environment has": merged,
        "Declare a view as the default view of spack.yaml is": placed,
        "Declare a view that merges the packages of a conda environment": [
            {"release": f"conda/{name}", "at": "/"}
            for name in ("imath-3.1.12-h7955e40_0", "ocio-configs-2.1.0-hd8ed1ab_1", "openexr-3.3.2-h09bb8a1_0")
        ],
        "Read the records of the environment itself": ["imath/3.1.12", "ocio-configs/2.1.0", "openexr/3.3.2"],
    }
    assert [one["release"].rpartition("-")[0] for one in merged] == [
        f"linux-x86_64_v3/{name}"
        for name in (
            "openexr-3.3.2",
            "python-3.11.9",
            "gcc-runtime-13.3.0",
            "imath-3.1.12",
            "libdeflate-1.22",
            "zlib-ng-2.2.1",
        )
    ]
    assert {one["at"] for one in merged} == {"/"}
    assert [one["at"] for one in placed][:2] == ["openexr/3.3.2", "languages/python-3.11.9"]
